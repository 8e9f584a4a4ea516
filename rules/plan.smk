"""Plan: prints the artefacts that are not current, with the memory, disk and time of making them; it makes no file."""


rule plan:
    log:
        f"{WORK}/logs/plan.log",
    conda:
        "../envs/conda.yaml"
    params:
        costs=planned_costs,
    message:
        "The artefacts that are not current, and their costs"
    script:
        "../scripts/plan.py"
