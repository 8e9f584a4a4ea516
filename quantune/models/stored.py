"""The files of a model folder, read and checked without torch: their selection, JSON, index, safetensors headers.

Everything here comes from outside, so every file is bounded and every value is checked. Errors begin with the name of
the file; the caller adds the folder.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from quantune.core.errors import QuantuneError, listed

CONFIG = "config.json"
GENERATION = "generation_config.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
LAYOUTS = ((SINGLE, INDEX), (PICKLE, PICKLE_INDEX))
"""Names of the weights in one file, and of the index of shards, in the order in which transformers looks for them."""
WEIGHTS = (".safetensors", ".bin")
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
"""Files that hold the tokens of a tokenizer; transformers needs one of them."""
TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
)
SPEECH_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files that hold the settings of a speech model's feature extractor; transformers needs one of them."""
MOST_JSON = 64 * 2**20  # bytes of a JSON file; an index of 100,000 tensors has 10 MB
MOST_HEADER = 100_000_000  # bytes of a header, the limit of safetensors
POINTER = b"version https://git-lfs"  # the beginning of a Git LFS pointer
ZIP, OLD_PICKLE = b"PK\x03\x04", b"\x80"  # the beginnings of files of `torch.save`, since 1.6 and before
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16}
BITS |= {"BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64}
"""Data type of safetensors -> bits of one value."""
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool"}
DTYPES |= {"U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
"""Data type of safetensors -> dtype of torch; no other types are in a model that is not quantized."""
CODES = {"F8_E4M3": "float8_e4m3fn"}
"""The same for codes of quantized weights."""
AGAIN = "download the file again"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, from the header."""

    file: Path
    dtype: str
    """Data type of safetensors, such as BF16."""
    shape: tuple[int, ...]
    begin: int
    """Position of its first byte in the file."""
    end: int


def selected(names: list[str], shards: Iterable[str] | None = None) -> list[str]:
    """Return the names without weights that transformers ignores: other copies, other libraries, adapters.

    transformers loads `model.safetensors`; if there is none, the files that `model.safetensors.index.json` names; if
    there is none, the pickled weights `pytorch_model.bin`, or the files that `pytorch_model.bin.index.json` names.

    Args:
        names: the names of a model's files in one folder.
        shards: the files that the index names; None if the index is not read: all that are named like shards.

    Raises:
        QuantuneError: if transformers would load none of them.
    """
    weights = [name for name in names if name.endswith(WEIGHTS)]
    index = index_of(names)
    single, _ = next((pair for pair in LAYOUTS if index == pair[1] or pair[0] in names), (None, None))
    if single is None:
        allowed = f"{SINGLE} or {PICKLE}, or the files that {INDEX} or {PICKLE_INDEX} names"
        raise QuantuneError(
            f"has {listed(weights)}; transformers loads only {allowed}; rename the file, or add the index"
            if weights
            else f"has no weights; allowed: {allowed}; add them"
        )
    stem, ending = os.path.splitext(single)
    alike = [name for name in weights if name.endswith(ending)]
    numbered = [name for name in alike if name.startswith(f"{stem}-")]
    kept = {index, *(shards or numbered or alike)} if index else {single}
    return [name for name in names if name in kept or not name.endswith((*WEIGHTS, ".index.json"))]


def index_of(names: Iterable[str]) -> str | None:
    """Return the name of the index of shards that transformers reads, or None: the weights are in one file."""
    names = set(names)
    return next((None if single in names else index for single, index in LAYOUTS if {single, index} & names), None)


def pickles(paths: Iterable[Path]) -> list[Path]:
    """Return the pickled weights among a model's files."""
    return [path for path in paths if path.suffix == ".bin"]


def require_pickle(path: Path) -> None:
    """Raise QuantuneError if a file is no whole file of `torch.save`; nothing in it is unpickled."""
    require_file(path)
    with path.open("rb") as opened:
        begin = opened.read(len(ZIP))
    if begin == ZIP:
        try:
            with ZipFile(path) as archive:
                whole = any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
        except (BadZipFile, ValueError, NotImplementedError, OSError) as error:
            raise QuantuneError(f"{path.name}: is damaged or cut off ({error}); {AGAIN}") from None
    else:
        whole = begin.startswith(OLD_PICKLE)
    if not whole:
        raise QuantuneError(f"{path.name}: holds no weights that `torch.save` wrote; {AGAIN}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises QuantuneError if the file is too large, damaged, or holds no object."""
    require_file(path)
    if (size := path.stat().st_size) > MOST_JSON:
        raise QuantuneError(f"{path.name}: has {size:,} bytes; allowed: up to {MOST_JSON:,}; {AGAIN}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise QuantuneError(f"{path.name} is not JSON ({error}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise QuantuneError(f"{path.name} does not hold a JSON object: not a {path.name} of transformers")
    return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def require_file(path: Path) -> None:
    """Raise QuantuneError if a path is not a regular file, or is a Git LFS pointer in place of the file."""
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no regular file"
        raise QuantuneError(f"{path.name}: is {kind if path.exists() or path.is_symlink() else 'missing'}; {AGAIN}")
    try:
        with path.open("rb") as opened:
            begin = opened.read(len(POINTER))
    except OSError as error:
        raise QuantuneError(f"{path.name}: cannot be read ({error.strerror}); check its permissions") from None
    if begin == POINTER:
        raise QuantuneError(f"{path.name}: is a Git LFS pointer, not the file; run `git lfs pull` in its folder")


def shards(index: Path) -> dict[str, str]:
    """Return tensor -> file name, from an index of shards; raises QuantuneError if it names no files, or others.

    The files are in the folder of the index.
    """
    table, ending = read_json(index).get("weight_map"), ".bin" if index.name == PICKLE_INDEX else ".safetensors"
    if not isinstance(table, dict) or not table:
        raise QuantuneError(
            f"{index.name}: 'weight_map' is missing or empty; allowed: tensor name -> file name; {AGAIN}"
        )
    for name in dict.fromkeys(map(str, table.values())):
        if (
            not name.isprintable()
            or "/" in name
            or "\\" in name
            or not name.endswith(ending)
            or name not in table.values()
        ):
            reason = f"names the file {name!r:.90}; allowed: the name of a *{ending} file in the same folder"
            raise QuantuneError(f"{index.name}: 'weight_map' {reason}; correct the index")
    missing = [name for name in sorted(set(table.values())) if not (index.parent / name).exists()]
    if missing:
        raise QuantuneError(
            f"{index.name}: names {listed(missing[:3])}{' and more' if missing[3:] else ''}, which the folder does not "
            f"hold; download {'them' if missing[1:] else 'it'} again"
        )
    return table


def tensors(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    """Return name -> stored tensor of a model's safetensors files; raises QuantuneError if one is damaged.

    Only headers are read. The files are those of a whole model: an index among them must name each tensor's file.
    """
    paths = list(paths)
    by_name: dict[str, StoredTensor] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            for name, stored in header(path).items():
                if name in by_name:
                    raise QuantuneError(
                        f"{path.name}: holds '{name}', as {by_name[name].file.name} does; remove one of the files"
                    )
                by_name[name] = stored
    if not by_name:
        raise QuantuneError(
            f"{listed(path.name for path in paths if path.suffix == '.safetensors')}: holds no tensors; {AGAIN}"
        )
    for index in (path for path in paths if path.name == INDEX):
        for name, file in shards(index).items():
            if name not in by_name or by_name[name].file.name != file:
                raise QuantuneError(f"{index.name}: names '{name}' in {file}, which does not hold it; {AGAIN}")
    return by_name


def header(path: Path) -> dict[str, StoredTensor]:
    """Return name -> stored tensor of a safetensors file; raises QuantuneError if the header or the size is wrong."""
    require_file(path)
    size = path.stat().st_size
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER):
            problem = f"its header has {length:,} bytes, the file has {size:,}" if size >= 8 else f"it has {size} bytes"
            raise QuantuneError(f"{path.name}: is damaged or cut off: {problem}; {AGAIN}")
        try:
            content = json.loads(opened.read(length))
        except (ValueError, RecursionError) as error:
            raise QuantuneError(f"{path.name}: its header is not JSON ({error}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise QuantuneError(f"{path.name}: its header is not a JSON object; {AGAIN}")
    metadata = content.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise QuantuneError(f"{path.name}: '__metadata__' in its header is damaged; allowed: name -> text; {AGAIN}")
    if odd := [name for name in content if not name.isprintable()]:
        raise QuantuneError(f"{path.name}: the name of a tensor has control characters ({odd[0]!r:.60}); {AGAIN}")
    by_name = {name: _stored(path, name, entry, 8 + length) for name, entry in content.items()}
    end = 8 + length
    for name, stored in sorted(by_name.items(), key=lambda item: (item[1].begin, item[1].end)):
        if stored.begin != end:
            raise QuantuneError(f"{path.name}: the bytes of '{name}' overlap others or leave a gap; {AGAIN}")
        end = stored.end
    if end != size:
        state = "cut off" if end > size else "too long"
        raise QuantuneError(
            f"{path.name}: is {state}: its header describes {end:,} bytes, the file has {size:,}; {AGAIN}"
        )
    return by_name


def _stored(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """Return a tensor from its entry in the header of a file whose data begin at the byte `start`."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        good = all(type(value) is int and 0 <= value < 2**63 for value in (*shape, begin, end))
        if good and dtype in BITS and 8 * (end - begin) == prod(shape) * BITS[dtype]:
            return StoredTensor(path, dtype, shape, start + begin, start + end)
    except (KeyError, TypeError, ValueError):
        pass
    known = isinstance(entry, dict) and entry.get("dtype")
    if isinstance(known, str) and known not in BITS:
        raise QuantuneError(
            f"{path.name}: '{name}' is stored as {known[:40]}; allowed: {listed(BITS)}; give unquantized weights"
        )
    raise QuantuneError(
        f"{path.name}: the header's entry of '{name}' is damaged: its type, shape and bytes do not fit; {AGAIN}"
    )


def require_tokenizer(names: Iterable[str], speech: bool) -> None:
    """Raise QuantuneError if a model's files hold no tokenizer or, for a speech model, no settings of features."""
    names = set(names)
    if not names.intersection(VOCABULARIES):
        raise QuantuneError(
            f"has no tokenizer; allowed: one of {listed(VOCABULARIES)}; copy the tokenizer's files "
            "from the original model"
        )
    if names.intersection(VOCABULARIES) == {"vocab.json"} and "merges.txt" not in names:
        raise QuantuneError(
            "has no whole tokenizer: vocab.json needs merges.txt; copy the tokenizer's files from the original model"
        )
    if speech and not names.intersection(SPEECH_FILES):
        raise QuantuneError(
            f"has no settings of the feature extractor; allowed: one of {listed(SPEECH_FILES)}; copy the file from the "
            "original model"
        )
