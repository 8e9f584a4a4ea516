"""Compare: prints what changed in recipes and numbers since another run, and whether significantly; it makes no file.
`snakemake compare --config 'with=<git revision or folder>'`."""


rule compare:
    input:
        report=f"{WORK}/report",
    log:
        f"{tempfile.gettempdir()}/quantune-compare-{os.getuid()}.log",
    conda:
        "../envs/conda.yaml"
    params:
        other=compared_with,
    message:
        "What changed since {params.other}"
    script:
        "../scripts/compare.py"
