"""Dataset: takes text, JSON, CSV or Parquet files, or recordings with their transcripts; local, on the hub or at URLs;
makes `sources/{dataset}`, one Parquet file of documents or clips a split."""


rule dataset:
    input:
        unpack(planned_inputs),
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
        order=planned_order,
        why=planned_reason,
    message:
        "Read the dataset {wildcards.dataset}{params.why}"
    script:
        "../scripts/dataset.py"


rule clips:
    input:
        unpack(planned_inputs),
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
        order=planned_order,
        why=planned_reason,
    message:
        "Read the recordings of {wildcards.dataset}{params.why}"
    script:
        "../scripts/clips.py"
