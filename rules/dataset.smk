"""Dataset: takes text, JSON, CSV or Parquet files, or recordings with their transcripts; local, on the hub or at URLs;
makes `sources/{dataset}`, one Parquet file of documents or clips a split."""

read = Job(lambda wildcards: PLAN.dataset(wildcards.dataset))


rule dataset:
    input:
        unpack(read.inputs),  # nothing that a rule makes; outside: the files
    output:
        directory(f"{WORK}/sources/{{dataset}}"),
    log:
        f"{WORK}/logs/dataset/{{dataset}}.log",
    benchmark:
        f"{WORK}/logs/dataset/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=any_of(TRACKS["text"]),
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        gpu=0,
    params:
        order=read.order,
        why=read.why,
    message:
        "Read the dataset {wildcards.dataset}{params.why}"
    script:
        "../scripts/dataset.py"


rule clips:
    input:
        unpack(read.inputs),  # nothing that a rule makes; outside: the files
    output:
        directory(f"{WORK}/sources/{{dataset}}"),
    log:
        f"{WORK}/logs/clips/{{dataset}}.log",
    benchmark:
        f"{WORK}/logs/clips/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=any_of(TRACKS["speech"]),
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        gpu=0,
    params:
        order=read.order,
        why=read.why,
    message:
        "Read the recordings of {wildcards.dataset}{params.why}"
    script:
        "../scripts/clips.py"
