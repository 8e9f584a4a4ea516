"""Copy or download a model in Hugging Face layout into the work folder: config, tokenizer, safetensors weights."""

from quantune.artefacts import job
from quantune.sources import download, selection


def model(order, inputs, folder, scratch):
    base = download.fetch_sources(order, scratch)
    files = [base / path for path in order["options"]["files"]]
    selection.copy_model(files, folder, downloaded="download" in order["options"])
    print(f"copied {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    return {"parameters": selection.parameters(folder)} | download.facts(order)


job.run(snakemake, model, imports=False)
