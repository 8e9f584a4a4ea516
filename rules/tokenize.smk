"""Tokenize: takes a dataset and a model's tokenizer; makes `prepared/{dataset}/{model}`, token ids for each document."""


rule tokenize:
    input:
        unpack(planned_inputs),
    output:
        directory(f"{WORK}/prepared/{{dataset}}/{{model}}"),
    log:
        f"{WORK}/logs/tokenize/{{dataset}}/{{model}}.log",
    benchmark:
        f"{WORK}/logs/tokenize/{{dataset}}/{{model}}.tsv"
    wildcard_constraints:
        dataset=any_of(TRACKS["text"]),
    conda:
        "../envs/conda.yaml"
    threads: CONFIG.threads
    resources:
        mem_mb=4000,
        gpu=0,
    params:
        order=planned_order,
        why=planned_reason,
    message:
        "Tokenize {wildcards.dataset} for {wildcards.model}{params.why}"
    script:
        "../scripts/tokenize.py"
