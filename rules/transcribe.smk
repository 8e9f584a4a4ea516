"""Transcribe: takes a variant of a speech model and a recording of any length; makes
`transcripts/{variant}/{recording}`, its text and segments with their times."""


rule transcribe:
    input:
        unpack(planned_inputs),
    output:
        directory(f"{WORK}/transcripts/{{variant}}/{{recording}}"),
    log:
        f"{WORK}/logs/transcribe/{{variant}}/{{recording}}.log",
    benchmark:
        f"{WORK}/logs/transcribe/{{variant}}/{{recording}}.tsv"
    conda:
        "../envs/conda.yaml"
    threads: CONFIG.threads
    resources:
        mem_mb=memory_mb,
        gpu=gpus,
    params:
        order=planned_order,
        why=planned_reason,
    message:
        "Transcribe {wildcards.recording} with {wildcards.variant}{params.why}"
    script:
        "../scripts/transcribe.py"
