"""Evaluate: takes a variant and tokenized documents; makes `evaluations/{variant}/{evaluation}`, the raw number of each
window or prompt and a summary."""


rule evaluate:
    input:
        unpack(planned_inputs),
    output:
        directory(f"{WORK}/evaluations/{{variant}}/{{evaluation}}"),
    log:
        f"{WORK}/logs/evaluate/{{variant}}/{{evaluation}}.log",
    benchmark:
        f"{WORK}/logs/evaluate/{{variant}}/{{evaluation}}.tsv"
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
        "Evaluate {wildcards.variant}: {wildcards.evaluation}{params.why}"
    script:
        "../scripts/evaluate.py"
