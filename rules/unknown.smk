"""Unknown: takes a target below the work folder that no other rule makes; stops with the reason and a target to
type instead."""


ruleorder: model > dataset > clips > tokenize > resample > merge > quantize > train > transcribe > benchmark > export > report


# Snakemake makes a job of each rule whose output matches a path, before it chooses one.
MADE = [item.regex().pattern.removeprefix(re.escape(f"{WORK}/")) for made in workflow.rules for item in made.output]
MADE = "|".join(re.sub(r"\(\?P<\w+>", "(?:", pattern) for pattern in MADE)


rule unknown:
    input:
        explain_unknown,
    output:
        f"{WORK}/{{unknown}}",
    log:
        f"{WORK}/logs/unknown/{{unknown}}.log",
    wildcard_constraints:
        unknown=rf"(?!{MADE}).+",
    message:
        "{wildcards.unknown} cannot be made"
