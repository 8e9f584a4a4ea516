"""Checks of dvc.yaml against the configuration, and of the files in DVC's cache.

In DVC 3's cache, the name of a file is the MD5 of its content, and a folder is a JSON list of such files.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NotRequired

import yaml
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from quantune.core.errors import ConfigError, QuantuneError
from quantune.planning import costs
from quantune.planning.plan import Plan

PIPELINE = "dvc.yaml"


class Out(TypedDict):
    """A file or folder in dvc.lock."""

    md5: str
    path: str


class Stage(TypedDict):
    """A stage in dvc.lock."""

    outs: NotRequired[list[Out]]


class Locked(TypedDict):
    """The part of dvc.lock that is read."""

    stages: dict[str, Stage]


class Listed(TypedDict):
    """A file of a folder in DVC's cache."""

    md5: str
    relpath: str


LOCKED, LISTED = TypeAdapter(Locked), TypeAdapter(list[Listed])


def require_watched(plan: Plan, root: str | Path = ".") -> None:
    """Raise ConfigError if `dvc repro` would miss a change of an input, or would not keep the results.

    Args:
        plan: the plan of the configuration.
        root: the folder of dvc.yaml; its paths are relative to this folder.
    """
    stages = yaml.safe_load(Path(root, PIPELINE).read_text())["stages"]
    kept = next(os.path.dirname(path) for out in stages["report"]["outs"] for path in out)
    if plan.work != kept:
        raise ConfigError(f"work: DVC keeps '{kept}', not '{plan.work}': write 'work: {kept}', or change {PIPELINE}")
    models = [item for item in costs.with_ancestors(plan.report()) if item.stage == "model"]
    for stage, artefacts in (("data", plan.all_datasets()), ("checkpoints", models)):
        watched = [os.path.realpath(Path(root, path)) for path in stages[stage]["deps"]]
        for path in (path for item in artefacts for path in item.outside or [plan.config.lock]):
            if not any(os.path.commonpath([os.path.realpath(path), folder]) == folder for folder in watched):
                raise ConfigError(
                    f"'{path}' is read, but `dvc repro` does not check whether it changed: add it, or its folder, to"
                    f" the 'deps' of the stage '{stage}' in {PIPELINE}"
                )


def cache_folder(root: Path) -> Path | None:
    """Return the folder of DVC's cache; None without one. Raises QuantuneError if dvc is missing or fails."""
    if not (root / ".dvc").is_dir():
        return None
    try:
        finished = subprocess.run(["dvc", "cache", "dir"], cwd=root, text=True, capture_output=True, check=True)
    except FileNotFoundError:
        raise QuantuneError("dvc is not on the path; `source .venv/bin/activate`") from None
    except subprocess.CalledProcessError as error:
        raise QuantuneError(f"`dvc cache dir` failed: {error.stderr.strip()}") from None
    return folder if (folder := Path(finished.stdout.strip())).is_dir() else None


def corrupted(root: Path) -> Iterator[str]:
    """Yield a message for each file of DVC's cache whose content does not match its name, with the file's path."""
    folder, names = cache_folder(root), None
    for path in sorted(path for path in folder.glob("files/md5/??/[!.]*") if path.is_file()) if folder else ():
        digest = path.parent.name + path.name
        with path.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != digest.removesuffix(".dir"):
                names = tracked_paths(root, folder) if names is None else names
                yield f"{path} is not what DVC put there; it stands for {names.get(digest, 'an earlier version')}"


def tracked_paths(root: Path, folder: Path) -> dict[str, str]:
    """Return MD5 -> path of the files and folders that dvc.lock names; MD5 of folders end in `.dir`.

    A damaged dvc.lock, or a damaged folder in the cache, names none.
    """
    try:
        outs = LOCKED.validate_python(yaml.safe_load((root / "dvc.lock").read_text()))["stages"].values()
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    paths = {}
    for out in (out for stage in outs for out in stage.get("outs", [])):
        paths[out["md5"]] = out["path"]
        try:
            listed = LISTED.validate_json((folder / "files/md5" / out["md5"][:2] / out["md5"][2:]).read_bytes())
        except (OSError, ValueError):
            continue
        paths |= {item["md5"]: f"{out['path']}/{item['relpath']}" for item in listed}
    return paths
