"""Resample: takes recordings and a speech model's feature extractor; makes `prepared/{dataset}/{model}`, each clip decoded,
mono, at the extractor's rate."""


rule resample:
    input:
        unpack(planned_inputs),
    output:
        directory(f"{WORK}/prepared/{{dataset}}/{{model}}"),
    log:
        f"{WORK}/logs/resample/{{dataset}}/{{model}}.log",
    benchmark:
        f"{WORK}/logs/resample/{{dataset}}/{{model}}.tsv"
    wildcard_constraints:
        dataset=any_of(TRACKS["speech"]),
    conda:
        "../envs/conda.yaml"
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
        gpu=0,
    params:
        order=planned_order,
        why=planned_reason,
    message:
        "Resample {wildcards.dataset} for {wildcards.model}{params.why}"
    script:
        "../scripts/resample.py"
