"""Tokenize: takes a dataset and a model's tokenizer; makes `prepared/{dataset}/{model}`, token ids for each document."""

tokenized = Job(lambda wildcards: PLAN.prepared(wildcards.dataset, wildcards.model))


rule tokenize:
    input:
        unpack(tokenized.inputs),  # dataset: the documents; model: the checkpoint with the tokenizer
    output:
        directory(f"{WORK}/prepared/{{dataset}}/{{model}}"),
    log:
        f"{WORK}/logs/tokenize/{{dataset}}/{{model}}.log",
    benchmark:
        f"{WORK}/logs/tokenize/{{dataset}}/{{model}}.tsv"
    wildcard_constraints:
        dataset=name_pattern(TRACKS["text"]),
    conda:
        "../envs/conda.yaml"
    threads: CONFIG.threads
    resources:
        mem_mb=tokenized.memory_mb,
        gpu=0,
    params:
        job=tokenized.params,
    message:
        "Tokenize {wildcards.dataset} for {wildcards.model}{params.job[why]}"
    script:
        "../scripts/tokenize.py"
