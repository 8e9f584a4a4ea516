"""Quantize: takes a checkpoint; makes `checkpoints/{parent}+{quantization}`, packed weights that reload exactly."""

quantized = Job(lambda wildcards: PLAN.checkpoint(f"{wildcards.parent}+{wildcards.quantization}"))


rule quantize:
    input:
        unpack(quantized.inputs),  # parent: the checkpoint; data: the calibration set, where the method has one
    output:
        directory(f"{WORK}/checkpoints/{{parent}}+{{quantization}}"),
    log:
        f"{WORK}/logs/quantize/{{parent}}+{{quantization}}.log",
    benchmark:
        f"{WORK}/logs/quantize/{{parent}}+{{quantization}}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: CONFIG.threads
    resources:
        mem_mb=quantized.memory_mb,
        gpu=GPU,
    params:
        job=quantized.params,
    message:
        "Quantize {wildcards.parent} with {wildcards.quantization}{params.job[why]}"
    script:
        "../scripts/quantize.py"
