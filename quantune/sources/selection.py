"""Select the files of a model, or of the splits of a dataset, by their names alone."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch, fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from quantune.core.errors import ConfigError, QuantuneError, listed, nearest

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
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
GZIP = ".gz"  # a file of any format may be compressed with gzip
WEIGHTS = r"model(-\d+-of-\d+)?\.safetensors"  # the names that transformers looks for
CARDS = ("README.md", "dataset_infos.json")  # files of a repository that describe the data


def model_names(files: list[str], where: str, remedy: str = "convert them to safetensors") -> list[str]:
    """Return the names of the files that belong to a model: no pickles, no code.

    Args:
        files: the names of all files in one folder or repository.
        where: that folder or repository, for errors.
        remedy: the advice for errors if all weights are pickled.

    Raises:
        QuantuneError: if config.json or safetensors weights are missing.
    """
    names = [name for name in files if _any(name, MODEL_FILES)]
    if "config.json" not in names:
        raise QuantuneError(f"{where} has no config.json; give a model in Hugging Face layout")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in files if _any(name, PICKLES)]
        hint = (
            f"only pickled weights ({listed(pickled)}), which can run code when loaded; {remedy}"
            if pickled
            else "no *.safetensors"
        )
        raise QuantuneError(f"{where} has {hint}")
    return names


def one_set_of_weights(names: list[str]) -> list[str]:
    """Return the names without weights that `from_pretrained` ignores, if weights that it reads are among them."""
    if not any(re.fullmatch(WEIGHTS, name) for name in names):
        return names
    return [name for name in names if re.fullmatch(WEIGHTS, name) or not name.endswith(".safetensors")]


def format_of(name: str) -> str | None:
    """Return the format of a data file by its ending, or None if it is not known."""
    return FORMATS.get(PurePosixPath(name.removesuffix(GZIP)).suffix)


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
    if not os.path.exists(text):
        names = [item.name for item in resolved.parent.iterdir()] if resolved.parent.is_dir() else []
        raise ConfigError(f"{key}: '{text}' does not exist{nearest(resolved.name, names)}")
    return resolved


def model_files(folder: Path, key: str) -> dict[str, Path]:
    """Return name -> path of the files of a model in Hugging Face layout.

    Raises:
        ConfigError: if config.json or safetensors weights are missing.
    """
    if not folder.is_dir():
        raise ConfigError(f"{key}: '{folder}' is a file; give the folder that holds config.json and *.safetensors")
    try:
        names = model_names([path.name for path in sorted(folder.iterdir())], f"'{folder}'")
    except QuantuneError as error:
        raise ConfigError(f"{key}: {error}") from None
    return {name: folder / name for name in names}


def model_config(path: Path, where: str) -> dict[str, Any]:
    """Return the content of a model's config.json; `where` names the model in errors.

    Raises:
        QuantuneError: if it holds no JSON object.
    """
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise QuantuneError(f"{where}: config.json is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise QuantuneError(f"{where}: config.json does not hold a JSON object: not a config.json of transformers")
    return config


def copy_model(files: list[Path], folder: Path, downloaded: bool = False) -> None:
    """Copy a model's files to a folder; link them if they were downloaded for this job."""
    for path in files:
        try:
            if downloaded:
                os.link(path, folder / path.name)
                continue
        except OSError:
            pass  # a file system without links
        shutil.copyfile(path, folder / path.name)


def parameters(folder: Path) -> int:
    """Return the number of values in a folder's safetensors files, read from their headers."""
    from safetensors import safe_open

    files = [safe_open(path, "numpy") for path in folder.glob("*.safetensors")]
    return sum(math.prod(file.get_slice(name).get_shape()) for file in files for name in file.keys())  # noqa: SIM118


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
        files = [root] if root.is_file() else [path for path in sorted(root.iterdir()) if format_of(path.name)]
        if not files:
            raise ConfigError(f"{key}.path: '{root}' holds no file of a known format ({listed(FORMATS)})")
        return {"": files}
    files = {}
    for split, patterns in splits.items():
        files[split] = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = sorted(path for path in root.glob(pattern) if path.is_file())
            if not matches:
                names = [os.path.relpath(path, root) for path in islice(_files(root), 1000)]
                raise ConfigError(f"{key}.splits.{split}: no file '{pattern}' in '{root}'{nearest(pattern, names)}")
            files[split] += matches
    return files
