"""Merge: takes an adapter and the nearest unquantized ancestor of what it was trained on; makes
`checkpoints/{parent}+merge`, a whole model again."""

merged = Job(lambda wildcards: PLAN.checkpoint(f"{wildcards.parent}+{wildcards.merge}"))


rule merge:
    input:
        unpack(merged.inputs),  # adapter; base: what it is added to; parent: what it was trained on
    output:
        directory(f"{WORK}/checkpoints/{{parent}}+{{merge}}"),
    log:
        f"{WORK}/logs/merge/{{parent}}+{{merge}}.log",
    benchmark:
        f"{WORK}/logs/merge/{{parent}}+{{merge}}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: CONFIG.threads
    resources:
        mem_mb=merged.memory_mb,
        gpu=gpus,
    params:
        order=merged.order,
        why=merged.why,
    message:
        "Merge the adapter {wildcards.parent}{params.why}"
    script:
        "../scripts/merge.py"
