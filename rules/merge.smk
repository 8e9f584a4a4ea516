"""Merge: takes an adapter and the nearest unquantized ancestor of what it was trained on; makes
`checkpoints/{parent}+merge`, a whole model again."""


rule merge:
    input:
        unpack(planned_inputs),
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
        mem_mb=memory_mb,
        gpu=gpus,
    params:
        order=planned_order,
        why=planned_reason,
    message:
        "Merge the adapter {wildcards.parent}{params.why}"
    script:
        "../scripts/merge.py"
