"""Export: takes a variant that is a whole model, and the evaluations of this variant and of its model; makes
`exports/{variant}/{format}`, files for other programs with a model card."""

exported = Job(lambda wildcards: PLAN.export(wildcards.variant, wildcards.format))


rule export:
    input:
        unpack(exported.inputs),  # checkpoint; evaluations: numbers of the card; model: the first of the chain
    output:
        directory(f"{WORK}/exports/{{variant}}/{{format}}"),
    log:
        f"{WORK}/logs/export/{{variant}}/{{format}}.log",
    benchmark:
        f"{WORK}/logs/export/{{variant}}/{{format}}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: CONFIG.threads
    resources:
        mem_mb=exported.memory_mb,
        gpu=GPU,
    params:
        job=exported.params,
    message:
        "Export {wildcards.variant} as {wildcards.format}{params.job[why]}"
    script:
        "../scripts/export.py"
