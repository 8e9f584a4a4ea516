"""Unknown: takes a target below the work folder that no other rule makes; stops with the reason and a target to
type instead."""


ruleorder: model > dataset > clips > tokenize > resample > merge > quantize > train > transcribe > benchmark > report > unknown


for track in EVALUATIONS:
    workflow.ruleorder(f"evaluate_{track}", "unknown")


rule unknown:
    input:
        explain_unknown,
    output:
        f"{WORK}/{{unknown}}",
    log:
        f"{WORK}/logs/unknown/{{unknown}}.log",
    message:
        "{wildcards.unknown} cannot be made"
