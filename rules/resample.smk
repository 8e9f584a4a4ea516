"""Resample: takes recordings and a speech model's feature extractor; makes `prepared/{dataset}/{model}`, each clip
decoded, mono, at the extractor's rate."""

resampled = Job(lambda wildcards: PLAN.prepared(wildcards.dataset, wildcards.model))


rule resample:
    input:
        unpack(resampled.inputs),  # dataset: the clips; model: the checkpoint with the feature extractor
    output:
        directory(f"{WORK}/prepared/{{dataset}}/{{model}}"),
    log:
        f"{WORK}/logs/resample/{{dataset}}/{{model}}.log",
    benchmark:
        f"{WORK}/logs/resample/{{dataset}}/{{model}}.tsv"
    wildcard_constraints:
        dataset=name_pattern(TRACKS["speech"]),
    conda:
        "../envs/conda.yaml"
    threads: CONFIG.threads
    resources:
        mem_mb=resampled.memory_mb,
        gpu=0,
    params:
        job=resampled.params,
    message:
        "Resample {wildcards.dataset} for {wildcards.model}{params.job[why]}"
    script:
        "../scripts/resample.py"
