"""Copy a model in Hugging Face layout into the work folder: config, tokenizer, safetensors weights."""

from pathlib import Path

from quantune import job, sources


def model(order, inputs, folder, scratch):
    files = [Path(path) for path in order["options"]["files"]]
    sources.copy_model(files, folder)
    print(f"copied {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    return {"parameters": sources.parameters(folder)}


job.run(snakemake, model, imports=False)
