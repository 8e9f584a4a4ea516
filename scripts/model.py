"""Check a model in Hugging Face layout, local or downloaded, and copy it: config, tokenizer, safetensors weights.
Pickled weights are converted to safetensors, layers in GPTQ or AWQ format are repacked.
"""

from quantune.artefacts import job
from quantune.core import hardware
from quantune.core.errors import QuantuneError
from quantune.models import dialects, pickled, stored
from quantune.sources import download, selection


def model(order, inputs, folder, scratch):
    base = download.fetch_sources(order, scratch)
    downloaded = order["options"].get("download")
    files = [base / path for path in order["options"]["files"]]
    where = f"'{downloaded['hub'] if downloaded else files[0].parent}'"
    selection.require_whole_model(files, where)
    facts = download.facts(order)
    if pickles := stored.pickles(files):
        print(f"converting {', '.join(path.name for path in pickles)} to safetensors, in a process without network")
        try:
            converted = pickled.convert(files, scratch / "converted")
        except QuantuneError as error:
            raise QuantuneError(f"{where}: {error}") from None
        files = [path for path in files if path not in pickles and path.name != stored.PICKLE_INDEX] + converted
        selection.require_whole_model(files, where)
        hashes = {path.name: order["sources"][path.name] for path in pickles}
        facts |= {"converted": {"files": hashes, "torch": hardware.version("torch")}}
    config = stored.read_json(next(path for path in files if path.name == stored.CONFIG))
    if dialect := dialects.read(config.get("quantization_config") or {}):
        from quantune.models import repacking

        print(f"repacking layers in {dialect.method} format")
        (scratch / "repacked").mkdir()
        try:
            files, repacked = repacking.repack(files, scratch / "repacked", dialect)
        except QuantuneError as error:
            raise QuantuneError(f"{where}: {error}") from None
        facts |= repacked
    tensors = stored.tensors(files)
    from quantune.data import chat  # torch is imported once the files and headers are known to be good
    from quantune.models import inspection

    weights = [path for path in files if path.suffix == ".safetensors"]
    try:
        for path in files:
            if path not in weights:
                selection.copy(path, folder, link=scratch in path.parents)
        parameters = inspection.inspect(folder, tensors, scratch)
        if template := order["recipe"].get("chat_template"):
            chat.write_template(template, folder)
        inspection.require_finite(tensors.items())
    except QuantuneError as error:
        raise QuantuneError(f"{where}: {error}") from None
    for path in weights:
        selection.copy(path, folder, link=scratch in path.parents)
    print(f"copied {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    return {"parameters": parameters} | facts


job.run(snakemake, model, imports=False)
