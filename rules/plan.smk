"""Plan: prints the artefacts that are not current, with the memory, disk and time of making them; it makes no file."""


rule plan:
    log:
        f"{tempfile.gettempdir()}/quantune-plan-{os.getuid()}.log",  # a read-only work folder can be planned
    conda:
        "../envs/conda.yaml"
    params:
        costs=planned_costs,
    message:
        "The artefacts that are not current, and their costs"
    script:
        "../scripts/plan.py"
