"""Train: takes a checkpoint and tokenized documents; makes `checkpoints/{parent}+{finetuning}`, a PEFT adapter with its
loss curves. Its state is saved in `tmp`; a killed job goes on from there."""


rule train:
    input:
        unpack(planned_inputs),
    output:
        directory(f"{WORK}/checkpoints/{{parent}}+{{finetuning}}"),
    log:
        f"{WORK}/logs/train/{{parent}}+{{finetuning}}.log",
    benchmark:
        f"{WORK}/logs/train/{{parent}}+{{finetuning}}.tsv"
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
        "Train {wildcards.finetuning} on {wildcards.parent}{params.why}"
    script:
        "../scripts/train.py"
