"""Quantize: takes a checkpoint; makes `checkpoints/{parent}+{quantization}`, packed weights that reload exactly."""


rule quantize:
    input:
        unpack(planned_inputs),
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
        mem_mb=memory_mb,
        gpu=gpus,
    params:
        order=planned_order,
        why=planned_reason,
    message:
        "Quantize {wildcards.parent} with {wildcards.quantization}{params.why}"
    script:
        "../scripts/quantize.py"
