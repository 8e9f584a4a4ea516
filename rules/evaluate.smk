"""Evaluate: takes a variant and the prepared data of its track's evaluations; makes `evaluations/{variant}/{evaluation}`
for each, the raw number of each window, prompt or clip, and a summary. One job loads the variant once and makes those
that are not current; the others stay as they are."""

for track, names in EVALUATIONS.items():

    rule:
        name:
            f"evaluate_{track}"
        input:
            unpack(evaluation_inputs(track)),
        output:
            [update(directory(f"{WORK}/evaluations/{{variant}}/{name}")) for name in names],
        log:
            f"{WORK}/logs/evaluate/{{variant}}.{track}.log",
        benchmark:
            f"{WORK}/logs/evaluate/{{variant}}.{track}.tsv"
        conda:
            "../envs/conda.yaml"
        threads: CONFIG.threads
        resources:
            mem_mb=evaluation_memory_mb(track),
            gpu=gpus,
        params:
            orders=evaluation_orders(track),
            names=evaluation_names(track),
            why=evaluation_reasons(track),
        message:
            "Evaluate {wildcards.variant}: {params.names}{params.why}"
        script:
            "../scripts/evaluate.py"
