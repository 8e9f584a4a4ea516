"""Transcribe: takes a variant of a speech model and a recording of any length; makes
`transcripts/{variant}/{recording}`, its text and segments with their times."""

transcribed = Job(lambda wildcards: PLAN.transcript(wildcards.variant, wildcards.recording))


rule transcribe:
    input:
        unpack(transcribed.inputs),  # checkpoint; base: the parent of an adapter; outside: the recording
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
        mem_mb=transcribed.memory_mb,
        gpu=GPU,
    params:
        job=transcribed.params,
    message:
        "Transcribe {wildcards.recording} with {wildcards.variant}{params.job[why]}"
    script:
        "../scripts/transcribe.py"
