"""Dataset: takes text, JSON, CSV or Parquet files, or recordings with their transcripts; local, on the hub or at URLs;
makes `sources/{dataset}`, one Parquet file of documents or clips a split."""

dataset_job = Job(lambda wildcards: PLAN.dataset(wildcards.dataset))


rule dataset:
    input:
        unpack(dataset_job.inputs),  # outside: the files; no output of another rule
    output:
        directory(f"{WORK}/sources/{{dataset}}"),
    log:
        f"{WORK}/logs/dataset/{{dataset}}.log",
    benchmark:
        f"{WORK}/logs/dataset/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=name_pattern(TRACKS["text"]),
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=dataset_job.memory_mb,
        gpu=0,
    params:
        job=dataset_job.params,
    message:
        "Read the dataset {wildcards.dataset}{params.job[why]}"
    script:
        "../scripts/dataset.py"


rule clips:
    input:
        unpack(dataset_job.inputs),  # outside: the files; no output of another rule
    output:
        directory(f"{WORK}/sources/{{dataset}}"),
    log:
        f"{WORK}/logs/clips/{{dataset}}.log",
    benchmark:
        f"{WORK}/logs/clips/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=name_pattern(TRACKS["speech"]),
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=dataset_job.memory_mb,
        gpu=0,
    params:
        job=dataset_job.params,
    message:
        "Read the recordings of {wildcards.dataset}{params.job[why]}"
    script:
        "../scripts/clips.py"
