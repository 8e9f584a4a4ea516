"""Evaluate: takes a variant and the prepared data of its track's evaluations; makes `evaluations/{variant}/{evaluation}`
for each: the raw numbers of each window, prompt or clip, and a summary. One job loads the variant once and makes the
evaluations that are not current; the others stay as they are."""

evaluated = {
    track: Job(lambda wildcards, track=track: pending_evaluations(wildcards.variant, track)) for track in EVALUATIONS
}

for track, names in EVALUATIONS.items():

    rule:
        name:
            f"evaluate_{track}"
        input:
            unpack(evaluated[track].inputs),  # checkpoint; base: the parent of an adapter; data
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
            mem_mb=evaluated[track].memory_mb,
            gpu=GPU,
        params:
            job=evaluated[track].params,
        message:
            "Evaluate {wildcards.variant}: {params.job[names]}{params.job[why]}"
        script:
            "../scripts/evaluate.py"
