"""Select the files of a model, or of the splits of a dataset, by their names alone."""

import os
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch, fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from quantune.core.errors import ConfigError, QuantuneError, listed, nearest
from quantune.models import config_values, stored
from quantune.models.architecture import SPEECH
from quantune.models.foreign import dialects
from quantune.sources import text_files
from quantune.sources.text_files import COMPRESSED

MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja")
FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
CARDS = ("README.md", "dataset_infos.json")  # files of a repository that describe the data


def model_names(names: list[str], where: str, folder: Path | None = None) -> list[str]:
    """Return the names of the files that belong to a model, with the weights that transformers loads and no others.

    Pickled weights are among them only where there are no safetensors; `quantune.models.foreign.pickled` reads them.
    Code is never among them.

    Args:
        names: the names of all files in one folder or repository.
        where: that folder or repository, for errors.
        folder: the folder, if it is on this machine: its index of shards is read.

    Raises:
        QuantuneError: if config.json or the weights are missing, or if an adapter is among the files.
    """
    chosen = [name for name in names if _any(name, MODEL_FILES) and name.isprintable()]
    if stored.ADAPTER in chosen:
        also = "beside a model" if stored.CONFIG in chosen else "without its model"
        advice = "give a whole model: PEFT's `merge_and_unload`, then `save_pretrained`, makes one"
        raise QuantuneError(f"{where} holds an adapter ({stored.ADAPTER}) {also}; {advice}")
    if stored.CONFIG not in chosen:
        files = [name for name in names if name.endswith(".gguf")]
        known = f"'gguf_file' with one of {listed(files[:30])}, or " if files else ""
        raise QuantuneError(f"{where} has no config.json; give {known}a model in Hugging Face layout")
    index = stored.index_of(chosen) if folder else None
    try:
        return stored.selected(chosen, stored.shards(folder / index).values() if index else None)
    except QuantuneError as error:
        raise QuantuneError(f"{where} {error}" if str(error).startswith("has ") else f"{where}: {error}") from None


def format_of(name: str) -> str | None:
    """Return the format of a data file by its ending, or None if it is not known."""
    path = PurePosixPath(name)
    return FORMATS.get((path.with_suffix("") if path.suffix in COMPRESSED else path).suffix)


def are_files(splits: dict) -> bool:
    """Return whether splits are given as names of files, not as shares."""
    return any(not isinstance(value, float | int) for value in splits.values())


def split_patterns(splits: dict) -> dict[str, list[str]]:
    """Return split -> patterns of file names for `matching`; for shares split "" with pattern "": all files of data."""
    if not splits or not are_files(splits):
        return {"": [""]}
    return {split: [patterns] if isinstance(patterns, str) else patterns for split, patterns in splits.items()}


def matching(files: list[str], pattern: str, where: str, key: str) -> list[str]:
    """Return the files of a repository, or of a list of URLs, that match a pattern, as `Path.glob` would in a folder.

    Args:
        files: names with `/` between folders.
        pattern: `*` stands for anything inside a name, `**` for folders; "" for all data, if it is in one folder.
        where: the repository or key that holds them, for errors.
        key: the key in the configuration, for errors.

    Raises:
        ConfigError: if no file matches, or "" matches files in several folders.
    """
    if pattern:
        matches = [name for name in sorted(files) if _matches(name.split("/"), pattern.split("/"))]
        if not matches:
            raise ConfigError(f"{key}.splits: no file '{pattern}' in {where}{nearest(pattern, files)}")
        return matches
    matches = [name for name in sorted(files) if format_of(name) and name not in CARDS]
    folders = sorted({str(PurePosixPath(name).parent) for name in matches})
    if len(folders) > 1:
        raise ConfigError(f"{key}: {where} has data in several folders ({listed(folders)}); name the files in 'splits'")
    if not matches:
        raise ConfigError(f"{key}: {where} holds no file of a known format ({listed(FORMATS)})")
    return matches


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[index:], pattern[1:]) for index in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def resolve(path: str, key: str) -> Path:
    """Return a configured path with its environment variables filled in.

    Raises:
        ConfigError: naming the key, if a variable is not set or the path does not exist.
    """
    text = os.path.expanduser(os.path.expandvars(path))
    if "$" in text:
        name = re.sub(r"^\$\{?(\w*).*", r"\1", text[text.index("$") :], flags=re.DOTALL)
        raise ConfigError(f"{key}: environment variable '{name}' in '{path}' is not set; export {name}=/some/folder")
    resolved = Path(text)
    problem = text_files.problem(resolved)
    if problem and problem != "is a folder; a file is expected":
        try:
            names = [item.name for item in resolved.parent.iterdir()] if problem == "does not exist" else []
        except OSError:
            names = []
        raise ConfigError(f"{key}: '{text}' {problem}{nearest(resolved.name, names)}")
    return resolved


def entries(folder: Path, key: str) -> list[Path]:
    """Return the paths in a folder, sorted; raises ConfigError if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{key}.path: '{folder}' cannot be read ({error.strerror})") from None


def require_file(path: Path, key: str) -> None:
    """Raise ConfigError unless a path is a regular file: opening a pipe, for example, would wait for ever."""
    if problem := text_files.problem(path):
        raise ConfigError(f"{key}: '{path}' {problem}; remove it, or name the files in 'splits'")


def model_files(folder: Path, key: str) -> dict[str, Path]:
    """Return name -> path of the files of a model in Hugging Face layout.

    Raises:
        ConfigError: if config.json or the weights are missing.
    """
    if not folder.is_dir():
        advice = "the folder that holds config.json and the weights, or a file *.gguf"
        raise ConfigError(f"{key}: '{folder}' is a file; give {advice}")
    try:
        names = model_names([path.name for path in sorted(folder.iterdir())], f"'{folder}'", folder=folder)
    except OSError as error:
        raise ConfigError(f"{key}: '{folder}' cannot be read ({error.strerror}); check its permissions") from None
    except QuantuneError as error:
        raise ConfigError(f"{key}: {error}") from None
    return {name: folder / name for name in names}


def model_config(path: Path, where: str) -> dict[str, Any]:
    """Return the checked content of a model's config.json; `where` names the model in errors.

    Raises:
        QuantuneError: if it is damaged, or describes a model that cannot be used.
    """
    try:
        config = stored.read_json(path)
        config_values.check(config)
    except QuantuneError as error:
        raise QuantuneError(f"{where}: {error}") from None
    return config


def require_whole_model(paths: list[Path], where: str) -> None:
    """Raise QuantuneError if the files of a model are damaged, incomplete, or do not fit each other.

    Only small files and the headers of weights are read, without torch; `quantune.models.inspection` checks the rest.
    Of pickled weights only the container is checked.
    """
    config = model_config(next(path for path in paths if path.name == stored.CONFIG), where)
    try:
        for path in paths:
            stored.require_file(path)
        for path in stored.pickles(paths):
            stored.require_pickle(path)
        if not stored.pickles(paths):
            tensors = stored.tensors(paths)
            config_values.require_layers(config, tensors)
            config_values.require_embeddings(config, tensors)
            config_values.require_float(config, tensors)
            dialects.require_whole(config, tensors)
        for path in (path for path in paths if path.name == stored.GENERATION):
            config_values.check_generation(stored.read_json(path), config)
        stored.require_tokenizer((path.name for path in paths), config["model_type"] in SPEECH)
    except QuantuneError as error:
        raise QuantuneError(f"{where} {error}" if str(error).startswith("has ") else f"{where}: {error}") from None


def copy(path: Path, folder: Path, link: bool = False) -> None:
    """Copy a file to a folder, or link it: a file that was downloaded or made for this job."""
    try:
        if link:
            return os.link(path, folder / path.name)
    except OSError:
        pass  # a file system without links
    shutil.copyfile(path, folder / path.name)


def _files(root: Path) -> Iterator[str]:
    """Yield the paths of the files below a folder."""
    return (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)


def split_files(root: Path, splits: dict, key: str) -> dict[str, list[Path]]:
    """Return split -> files; for shares, all files are under the split "".

    Raises:
        ConfigError: if a pattern matches nothing.
    """
    if root.is_file() or not splits or not are_files(splits):
        if splits and are_files(splits):
            raise ConfigError(f"{key}.path: '{root}' is a file; splits by file name need the folder that holds them")
        files = [root] if root.is_file() else [path for path in entries(root, key) if format_of(path.name)]
        for path in files:
            require_file(path, f"{key}.path")
        if not files:
            raise ConfigError(f"{key}.path: '{root}' holds no file of a known format ({listed(FORMATS)})")
        return {"": files}
    files = {}
    for split, patterns in splits.items():
        files[split] = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            try:
                matches = sorted(path for path in root.glob(pattern) if not path.is_dir())
            except (NotImplementedError, ValueError, OSError) as error:
                wrong = f"'{pattern}' is no pattern of file names below '{root}' ({error})"
                raise ConfigError(f"{key}.splits.{split}: {wrong}; give one such as '*.jsonl'") from None
            for path in matches:
                require_file(path, f"{key}.splits.{split}")
            if not matches:
                names = [os.path.relpath(path, root) for path in islice(_files(root), 1000)]
                raise ConfigError(f"{key}.splits.{split}: no file '{pattern}' in '{root}'{nearest(pattern, names)}")
            files[split] += matches
    return files
