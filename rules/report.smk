"""Report: takes the evaluations and checkpoints of every variant; makes `report/`: report.html, table.csv, metrics.json
and the figures, which `snakemake --report` shows too."""

reported = Job(lambda wildcards: PLAN.report())


rule report:
    input:
        unpack(reported.inputs),  # evaluations, benchmarks, checkpoints; lineage: their data
    output:
        report(
            directory(f"{WORK}/report"),
            patterns=["{figure}.svg"],
            caption="../report/captions/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{WORK}/logs/report.log",
    benchmark:
        f"{WORK}/logs/report.tsv"
    conda:
        "../envs/conda.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        gpu=0,
    params:
        job=reported.params,
    message:
        "Write the report{params.job[why]}"
    script:
        "../scripts/report.py"
