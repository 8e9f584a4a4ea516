"""Model: takes a folder in Hugging Face layout, a GGUF file, or a hub repository at the commit in the lock file; makes
`checkpoints/{model}`, a copy with safetensors weights only: pickled weights are converted, layers in GPTQ or AWQ format are
repacked, GGUF files are dequantized."""

copied = Job(lambda wildcards: PLAN.checkpoint(wildcards.model))


rule model:
    input:
        unpack(copied.inputs),  # outside: the files; no output of another rule
    output:
        directory(f"{WORK}/checkpoints/{{model}}"),
    log:
        f"{WORK}/logs/model/{{model}}.log",
    benchmark:
        f"{WORK}/logs/model/{{model}}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        gpu=0,
    params:
        job=copied.params,
    message:
        "Copy the model {wildcards.model}{params.job[why]}"
    script:
        "../scripts/model.py"
