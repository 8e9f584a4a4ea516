"""What DVC is told to watch and keep, and whether its cache still holds what it was given.

Follows DVC 3's layout: a file of the cache is named by the MD5 of its content, a folder is a JSON list of such files.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from quantune.core.errors import ConfigError, QuantuneError
from quantune.planning import costs
from quantune.planning.plan import Plan

PIPELINE = "dvc.yaml"


def require_watched(plan: Plan, root: str | Path = ".") -> None:
    """Raise ConfigError if `dvc repro` would not see an input change, or would not keep what is made.

    Args:
        plan: of the configuration.
        root: the folder of dvc.yaml, which paths are relative to.
    """
    stages = yaml.safe_load(Path(root, PIPELINE).read_text())["stages"]
    kept = next(os.path.dirname(path) for out in stages["report"]["outs"] for path in out)
    if plan.work != kept:
        raise ConfigError(f"work: DVC keeps '{kept}', not '{plan.work}': write 'work: {kept}', or change {PIPELINE}")
    models = [item for item in costs.needed(plan.report()) if item.stage == "model"]
    for stage, artefacts in (("data", plan.all_datasets()), ("checkpoints", models)):
        watched = [os.path.realpath(Path(root, path)) for path in stages[stage]["deps"]]
        for path in (path for item in artefacts for path in item.outside or [plan.config.lock]):
            if not any(os.path.commonpath([os.path.realpath(path), folder]) == folder for folder in watched):
                raise ConfigError(
                    f"'{path}' is read, but `dvc repro` does not look whether it changed: add it, or its folder, to the"
                    f" 'deps' of the stage '{stage}' in {PIPELINE}"
                )


def cache(root: Path) -> Path | None:
    """Return the folder of DVC's cache; None where there is none."""
    if not (root / ".dvc").is_dir():
        return None
    try:
        told = subprocess.run(["dvc", "cache", "dir"], cwd=root, text=True, capture_output=True, check=True)
    except FileNotFoundError:
        raise QuantuneError("dvc is not on the path; `source .venv/bin/activate`") from None
    except subprocess.CalledProcessError as error:
        raise QuantuneError(f"`dvc cache dir` failed: {error.stderr.strip()}") from None
    return folder if (folder := Path(told.stdout.strip())).is_dir() else None


def corrupted(root: Path) -> Iterator[str]:
    """Yield, in words, each file of DVC's cache whose content is not that of its name, and what it stands for."""
    folder, names = cache(root), None
    for path in sorted(path for path in folder.glob("files/md5/??/[!.]*") if path.is_file()) if folder else ():
        digest = path.parent.name + path.name
        with path.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != digest.removesuffix(".dir"):
                names = cached(root, folder) if names is None else names
                yield f"{path} is not what DVC put there; it stands for {names.get(digest, 'an earlier version')}"


def cached(root: Path, folder: Path) -> dict[str, str]:
    """Return MD5 -> path of what the current dvc.lock keeps; folders end in `.dir`."""
    try:
        stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"].values()
    except OSError:
        return {}
    found = {}
    for out in (out for stage in stages for out in stage.get("outs", [])):
        found[out["md5"]] = out["path"]
        try:
            listed = json.loads((folder / "files/md5" / out["md5"][:2] / out["md5"][2:]).read_text())
        except (OSError, ValueError):
            continue
        found |= {item["md5"]: f"{out['path']}/{item['relpath']}" for item in listed}
    return found
