"""Which of the files that lie somewhere make a model, or the splits of a dataset: decided by their names alone."""

import json
import math
import os
import re
import shutil
from fnmatch import fnmatch, fnmatchcase
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
PACKED = ".gz"  # any of them may be compressed with gzip
WEIGHTS = r"model(-\d+-of-\d+)?\.safetensors"  # the names that transformers looks for
CARDS = ("README.md", "dataset_infos.json")  # of a repository: about the data, not data


def model_names(there: list[str], where: str, remedy: str = "convert them to safetensors") -> list[str]:
    """Return which of the files that lie somewhere are those of a model: no pickles, no code.

    Args:
        there: their names.
        where: what holds them, for errors.
        remedy: what to do where all weights are pickled.

    Raises:
        QuantuneError: if there is no config.json or no safetensors weights.
    """
    names = [name for name in there if _any(name, MODEL_FILES)]
    if "config.json" not in names:
        raise QuantuneError(f"{where} has no config.json; needed is a model in Hugging Face layout")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in there if _any(name, PICKLES)]
        hint = (
            f"only pickled weights ({listed(pickled)}), which can run code when loaded; {remedy}"
            if pickled
            else "no *.safetensors"
        )
        raise QuantuneError(f"{where} has {hint}")
    return names


def one_set_of_weights(names: list[str]) -> list[str]:
    """Leave out weights that `from_pretrained` would not read, where those that it reads are there."""
    if not any(re.fullmatch(WEIGHTS, name) for name in names):
        return names
    return [name for name in names if re.fullmatch(WEIGHTS, name) or not name.endswith(".safetensors")]


def format_of(name: str) -> str | None:
    """Return the format of a data file by its ending, or None if it is not known."""
    return FORMATS.get(PurePosixPath(name.removesuffix(PACKED)).suffix)


def by_name(splits: dict) -> bool:
    """Return whether splits are given as names of files, and not as shares."""
    return any(not isinstance(value, float | int) for value in splits.values())


def split_patterns(splits: dict) -> dict[str, list[str]]:
    """Return split -> patterns of file names for `matching`; shares are of all files of data: pattern "", split ""."""
    if not splits or not by_name(splits):
        return {"": [""]}
    return {split: [patterns] if isinstance(patterns, str) else patterns for split, patterns in splits.items()}


def matching(there: list[str], pattern: str, where: str, key: str) -> list[str]:
    """Return which of the files of a repository or a list of URLs a pattern means, as `Path.glob` would in a folder.

    Args:
        there: names with `/` between folders.
        pattern: `*` stands for anything inside a name, `**` for folders; "" for all data, if it is in one folder.
        where: what holds them, for errors.
        key: of the configuration, for errors.

    Raises:
        ConfigError: if there is none, or if "" is not clear.
    """
    if pattern:
        found = [name for name in sorted(there) if _matches(name.split("/"), pattern.split("/"))]
        if not found:
            raise ConfigError(f"{key}.splits: no file '{pattern}' in {where}{nearest(pattern, there)}")
        return found
    found = [name for name in sorted(there) if format_of(name) and name not in CARDS]
    folders = sorted({str(PurePosixPath(name).parent) for name in found})
    if len(folders) > 1:
        raise ConfigError(f"{key}: {where} has data in several folders ({listed(folders)}); name the files in 'splits'")
    if not found:
        raise ConfigError(f"{key}: {where} holds no file of a known format ({listed(FORMATS)})")
    return found


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[index:], pattern[1:]) for index in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


pass


def resolve(path: str, key: str) -> Path:
    """Return a configured path with its environment variables filled in.

    Raises:
        ConfigError: naming the key, if a variable is not set or nothing is there.
    """
    text = os.path.expanduser(os.path.expandvars(path))
    if "$" in text:
        name = re.sub(r"^\$\{?(\w*).*", r"\1", text[text.index("$") :], flags=re.DOTALL)
        raise ConfigError(f"{key}: environment variable '{name}' in '{path}' is not set; export {name}=/some/folder")
    found = Path(text)
    if not found.exists():
        there = [item.name for item in found.parent.iterdir()] if found.parent.is_dir() else []
        raise ConfigError(f"{key}: '{text}' does not exist{nearest(found.name, there)}")
    return found


def model_files(folder: Path, key: str) -> dict[str, Path]:
    """Return name -> path of the files of a model in Hugging Face layout.

    Raises:
        ConfigError: if there is no config.json or no safetensors weights.
    """
    if not folder.is_dir():
        raise ConfigError(f"{key}: '{folder}' is a file; give the folder that holds config.json and *.safetensors")
    try:
        names = model_names([path.name for path in sorted(folder.iterdir())], f"'{folder}'")
    except QuantuneError as error:
        raise ConfigError(f"{key}: {error}") from None
    return {name: folder / name for name in names}


def model_config(path: Path, what: str) -> dict[str, Any]:
    """Return what a model's config.json holds.

    Raises:
        QuantuneError: if it holds no JSON object.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise QuantuneError(f"{what}: config.json is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise QuantuneError(f"{what}: config.json does not hold a JSON object: not a config.json of transformers")
    return found


def copy_model(files: list[Path], folder: Path, ours: bool = False) -> None:
    """Copy a model's files; link them where they are `ours`, downloaded for this alone."""
    for path in files:
        try:
            if ours:
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


def split_files(root: Path, splits: dict, key: str) -> dict[str, list[Path]]:
    """Return split -> files; a dataset that is split by shares has its files under the split "".

    Raises:
        ConfigError: if a pattern matches nothing.
    """
    if root.is_file() or not splits or not by_name(splits):
        if splits and by_name(splits):
            raise ConfigError(f"{key}.path: '{root}' is a file; splits by file name need the folder that holds them")
        files = [root] if root.is_file() else [path for path in sorted(root.iterdir()) if format_of(path.name)]
        if not files:
            raise ConfigError(f"{key}.path: '{root}' holds no file of a known format ({listed(FORMATS)})")
        return {"": files}
    found = {}
    for split, patterns in splits.items():
        found[split] = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = sorted(path for path in root.glob(pattern) if path.is_file())
            if not matches:
                there = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
                raise ConfigError(f"{key}.splits.{split}: no file '{pattern}' in '{root}'{nearest(pattern, there)}")
            found[split] += matches
    return found
