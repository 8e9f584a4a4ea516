"""Train: takes a checkpoint and tokenized documents; makes `checkpoints/{parent}+{finetuning}`, a PEFT adapter or a
whole model with its loss curves. Its state is saved in `tmp`; a job that was killed resumes from it."""

trained = Job(lambda wildcards: PLAN.checkpoint(f"{wildcards.parent}+{wildcards.finetuning}"))


rule train:
    input:
        unpack(trained.inputs),  # parent: the checkpoint; data: the prepared dataset
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
        mem_mb=trained.memory_mb,
        gpu=GPU,
    params:
        job=trained.params,
    message:
        "Train {wildcards.finetuning} on {wildcards.parent}{params.job[why]}"
    script:
        "../scripts/train.py"
