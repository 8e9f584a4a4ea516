"""Plan: takes nothing and makes nothing; prints what is not current, with the memory, disk and time that it will take."""


rule plan:
    log:
        f"{WORK}/logs/plan.log",
    conda:
        "../envs/conda.yaml"
    params:
        costs=planned_costs,
    message:
        "What is not current, and what it will take"
    script:
        "../scripts/plan.py"
