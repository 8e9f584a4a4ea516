"""Check a model in Hugging Face layout, local or downloaded, and copy it: config, tokenizer, safetensors weights."""

from quantune.artefacts import job
from quantune.core.errors import QuantuneError
from quantune.models import stored
from quantune.sources import download, selection


def model(order, inputs, folder, scratch):
    base = download.fetch_sources(order, scratch)
    downloaded = order["options"].get("download")
    files = [base / path for path in order["options"]["files"]]
    where = f"'{downloaded['hub'] if downloaded else files[0].parent}'"
    selection.require_whole_model(files, where)
    tensors = stored.tensors(files)
    from quantune.models import inspection  # torch is imported once the files and headers are known to be good

    weights = [path for path in files if path.suffix == ".safetensors"]
    try:
        for path in files:
            if path not in weights:
                selection.copy(path, folder, bool(downloaded))
        parameters = inspection.inspect(folder, tensors, scratch)
        inspection.require_finite(tensors.items())
    except QuantuneError as error:
        raise QuantuneError(f"{where}: {error}") from None
    for path in weights:
        selection.copy(path, folder, bool(downloaded))
    print(f"copied {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    return {"parameters": parameters} | download.facts(order)


job.run(snakemake, model, imports=False)
