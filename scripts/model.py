"""Check a model, local or downloaded, and copy it: config, tokenizer, safetensors weights.

Pickled weights are converted to safetensors, layers in GPTQ or AWQ format are repacked, a GGUF file is dequantized.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantune.artefacts import job
from quantune.core import hardware
from quantune.core.errors import QuantuneError
from quantune.models import stored
from quantune.models.foreign import dialects, pickled
from quantune.sources import download, selection


def model(order, inputs, folder, scratch):
    base = download.fetch_sources(order, scratch)
    downloaded = order["options"].get("download")
    files = [base / path for path in order["options"]["files"]]
    where = f"'{downloaded['hub'] if downloaded else files[0].parent}'"
    facts = download.facts(order)
    with naming(where):
        if files[0].suffix == ".gguf":
            files, dense = dequantized(files[0], scratch)
            facts |= dense
        selection.require_whole_model(files, where)
        if stored.pickles(files):
            files, converted = unpickled(files, order, scratch)
            selection.require_whole_model(files, where)
            facts |= converted
        config = stored.read_json(next(path for path in files if path.name == stored.CONFIG))
        if dialect := dialects.read(config.get("quantization_config") or {}):
            files, repacked = packed(files, dialect, scratch)
            facts |= repacked
        tensors = stored.tensors(files)
        from quantune.data import chat  # torch is imported once the files and headers are known to be good
        from quantune.models import inspection

        weights = [path for path in files if path.suffix == ".safetensors"]
        for path in files:
            if path not in weights:
                selection.copy(path, folder, link=scratch in path.parents)
        parameters = inspection.inspect(folder, tensors, scratch)
        if template := order["recipe"].get("chat_template"):
            chat.write_template(template, folder)
        inspection.require_finite(tensors.items())
    for path in weights:
        selection.copy(path, folder, link=scratch in path.parents)
    print(f"copied {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    return {"parameters": parameters} | facts


def unpickled(files, order, scratch):
    """Return the files of a model with safetensors in place of pickled weights, and facts."""
    pickles = stored.pickles(files)
    print(f"converting {', '.join(path.name for path in pickles)} to safetensors, in a process without network")
    converted = pickled.convert(files, scratch / "converted")
    hashes = {path.name: order["sources"][path.name] for path in pickles}
    kept = [path for path in files if path not in pickles and path.name != stored.PICKLE_INDEX]
    return kept + converted, {"converted": {"files": hashes, "torch": hardware.version("torch")}}


def packed(files, dialect, scratch):
    """Return the files of a model in GPTQ or AWQ format with its layers repacked, and facts."""
    from quantune.models.foreign import repacking

    print(f"repacking layers in {dialect.method} format")
    return repacking.repack(files, empty(scratch / "repacked"), dialect)


def dequantized(path, scratch):
    """Return the files of a dense model that is made of a GGUF file, and facts."""
    from quantune.models.foreign import gguf_conversion

    print(f"dequantizing {path.name}")
    return gguf_conversion.convert(path, empty(scratch / "dense"))


def empty(folder: Path) -> Path:
    """Make an empty folder; a job that was killed may have left one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Name the model in errors that do not."""
    try:
        yield
    except QuantuneError as error:
        if str(error).startswith(where):
            raise
        raise QuantuneError(f"{where}: {error}") from None


job.run(snakemake, model, imports=False)
