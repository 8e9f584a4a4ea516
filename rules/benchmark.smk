"""Benchmark: takes a variant; makes `benchmarks/{variant}`, its memory, and the time of each run of prefill (of speech:
encode) and decode. It takes every core and GPU that Snakemake may use, so no other job runs at the same time."""

benchmarked = Job(lambda wildcards: PLAN.benchmark(wildcards.variant))


rule benchmark:
    input:
        unpack(benchmarked.inputs),  # checkpoint; base: the parent of an adapter
    output:
        directory(f"{WORK}/benchmarks/{{variant}}"),
    log:
        f"{WORK}/logs/benchmark/{{variant}}.log",
    benchmark:
        f"{WORK}/logs/benchmark/{{variant}}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: all_cores
    resources:
        mem_mb=benchmarked.memory_mb,
        gpu=all_gpus,
    params:
        job=benchmarked.params,
    message:
        "Benchmark {wildcards.variant}{params.job[why]}"
    script:
        "../scripts/benchmark.py"
