"""Merge: takes an adapter and the nearest unquantized ancestor of its parent; makes
`checkpoints/{parent}+merge`, a whole model again."""

merged = Job(lambda wildcards: PLAN.checkpoint(f"{wildcards.parent}+{wildcards.merge}"))


rule merge:
    input:
        unpack(merged.inputs),  # adapter; base: the ancestor; parent: the model that the adapter was trained on
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
        gpu=GPU,
    params:
        job=merged.params,
    message:
        "Merge the adapter {wildcards.parent}{params.job[why]}"
    script:
        "../scripts/merge.py"
