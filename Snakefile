"""quantune: which quantization and which fine-tuning should I ship?

- `snakemake`: the report of config.yaml
- `snakemake --configfile experiments/local-opt.yaml`: the report of another configuration
- `snakemake plan`: a table of the memory, disk and time that this takes; no other output
- `snakemake exports`: the configured exports, for other programs, with their model cards
- `snakemake compare --config 'with=HEAD~1'`: what changed since another run, and whether significantly
- `snakemake transcripts`: the transcripts of the configured recordings
- `snakemake work/checkpoints/opt-2m+nf4+lora`: any chain, named in the configuration or not
"""

from snakemake.utils import min_version

min_version("9.27")


include: "rules/common.smk"  #   the configuration: config.yaml, or that of --configfile
include: "rules/model.smk"  #    checkpoints/{model}
include: "rules/dataset.smk"  #  sources/{dataset}
include: "rules/tokenize.smk"  # prepared/{dataset}/{model}, text
include: "rules/resample.smk"  # prepared/{dataset}/{model}, speech
include: "rules/quantize.smk"  # checkpoints/{parent}+{quantization}
include: "rules/train.smk"  #    checkpoints/{parent}+{finetuning}
include: "rules/merge.smk"  #    checkpoints/{parent}+merge
include: "rules/evaluate.smk"  # evaluations/{variant}/{evaluation}
include: "rules/transcribe.smk"  # transcripts/{variant}/{recording}
include: "rules/benchmark.smk"  # benchmarks/{variant}
include: "rules/export.smk"  #   exports/{variant}/{format}
include: "rules/report.smk"  #   report
include: "rules/plan.smk"  #     a table of the artefacts to make and their costs
include: "rules/compare.smk"  #  what changed since another run
include: "rules/unknown.smk"  #  all other targets: an error with a hint


onstart:
    remove_backups()
    settle_dates()


onsuccess:
    require_settled()


rule all:
    default_target: True
    input:
        f"{WORK}/report",


rule data:
    input:
        reported_data,


rule checkpoints:
    input:
        reported_prepared,
        listed_checkpoints,


rule evaluations:
    input:
        listed_evaluations,


rule measurements:
    input:
        reported_measurements,


rule transcripts:
    input:
        listed_transcripts,


rule exports:
    input:
        listed_exports,


rule benchmarks:
    input:
        listed_benchmarks,


localrules:
    all,
    benchmarks,
    checkpoints,
    compare,
    data,
    evaluations,
    exports,
    measurements,
    plan,
    transcripts,
    unknown,
