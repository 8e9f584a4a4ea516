"""The files and the config.json of a model's entry: a folder in Hugging Face layout, a GGUF file, or the hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantune.core.errors import ConfigError, QuantuneError, nearest
from quantune.core.units import BYTES
from quantune.models import config_values, stored
from quantune.models.foreign import gguf_config, gguf_files
from quantune.sources import selection
from quantune.sources.lock import Lock

if TYPE_CHECKING:
    from quantune.sources.entries import Model


def local_files(entry: Model, key: str) -> dict[str, Path]:
    """Return name -> path of the files of a model on this machine; raises ConfigError if they are not those of one."""
    path = selection.resolve(entry.path, f"{key}.path")
    if path.suffix != ".gguf" and not entry.gguf_file:
        return selection.model_files(path, f"{key}.path")
    if entry.gguf_file:
        if not path.is_dir():
            raise ConfigError(f"{key}.gguf_file: '{path}' is no folder; give the folder of the file, or only 'path'")
        names = [item.name for item in selection.entries(path, key) if item.suffix == ".gguf"]
        if entry.gguf_file not in names:
            hint = nearest(entry.gguf_file, names)
            raise ConfigError(f"{key}.gguf_file: no file '{entry.gguf_file}' in '{path}'{hint}")
        path /= entry.gguf_file
    return {path.name: path}


def config(entry: Model, key: str, lock: Lock) -> dict[str, Any]:
    """Return the checked config.json of a model; raises ConfigError naming the key if it cannot be used."""
    if entry.hub:
        return lock.model(entry.hub, entry.revision, f"{key}.hub", entry.gguf_file)["config"]
    files = local_files(entry, key)
    try:
        if stored.CONFIG in files:
            return selection.model_config(files[stored.CONFIG], f"'{files[stored.CONFIG].parent}'")
        return gguf(next(iter(files.values())))
    except QuantuneError as error:
        raise ConfigError(f"{key}.path: {error}") from None


def gguf(path: Path) -> dict[str, Any]:
    """Return the checked config.json of the model in a GGUF file; raises QuantuneError naming the file."""
    try:
        if find_spec("gguf") is None:
            raise QuantuneError(f"{path.name}: needs the Python package 'gguf'; run `make setup`, which installs it")
        header = gguf_files.read(path)
        factors = header.tensors.get(gguf_config.FACTORS)
        made = gguf_config.config(header, gguf_files.raw(path, factors) if factors else None)
        config_values.check(made)
    except QuantuneError as error:
        raise QuantuneError(f"'{path.parent}': {error}") from None
    return made


def require_whole(entry: Model, key: str) -> None:
    """Raise ConfigError if a local model's files are damaged, incomplete, or do not fit each other; see `selection`."""
    if entry.hub:
        return
    files = local_files(entry, key)
    try:
        if stored.CONFIG in files:
            selection.require_whole_model(list(files.values()), f"'{files[stored.CONFIG].parent}'")
        else:
            gguf(next(iter(files.values())))
    except QuantuneError as error:
        raise ConfigError(f"{key}.path: {error}") from None


def sizes(entry: Model, key: str, lock: Lock) -> dict[str, int]:
    """Return name -> bytes of a model's files; of a GGUF file those of the dense weights that are made of it."""
    if entry.hub:
        locked = lock.model(entry.hub, entry.revision, f"{key}.hub", entry.gguf_file)
        bytes_of = {name: file["size"] for name, file in locked["files"].items()}
        values, made = locked.get("values"), locked["config"]
    else:
        files = local_files(entry, key)
        bytes_of = {name: path.stat().st_size for name, path in files.items()}
        path = next(iter(files.values()))
        values = None if stored.CONFIG in files else gguf_files.read(path).values()
        made = None if values is None else gguf(path)
    return bytes_of if values is None else {stored.SINGLE: values * BYTES[made["dtype"]]}
