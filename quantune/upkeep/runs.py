"""The results of another run: in another work folder, or of a git revision whose results DVC keeps."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantune.artefacts import record
from quantune.core.errors import ConfigError, QuantuneError

if TYPE_CHECKING:
    from quantune.report.gather import Report

READ = (record.PROVENANCE, record.RUN, "result.json", "items.parquet", "items.jsonl", "curves.csv", "normalizer.json")
"""The files that a comparison reads of an artefact; weights are not among them."""
HOW = "snakemake compare --config 'with=<git revision or folder>'"


def require(given: Any) -> str:
    """Return the run to compare with, as given on the command line; raises ConfigError if there is no such run."""
    if given is None:
        raise ConfigError(f"name the run to compare with: {HOW}, such as 'with=HEAD~1' or 'with=../other/work'")
    if not isinstance(given, str):
        raise ConfigError(f"with: {given!r} is read as a number; put it in quotes: --config 'with=\"{given}\"'")
    if not _folder(given):
        _commit(given)
    return given


def compared(given: str, work: str) -> str:
    """Return the comparison of the work folder with another run, as text.

    Raises:
        QuantuneError: if the other run has no report, or its files are damaged or not in DVC's cache.
    """
    from quantune.report import history, history_text

    now = _read(Path.cwd(), work)
    folder = _folder(given)
    with _linked(folder) if folder else _fetched(given, work) as (root, prefix):
        before = _read(root, prefix)
    return history_text.text(history.compare(before, now), given, work)


def _folder(given: str) -> Path | None:
    """Return the work folder that the user gave: it holds a report, or its subfolder `work` does."""
    for path in (Path(given), Path(given, "work")):
        if (path / "report" / record.PROVENANCE).is_file():
            return path.resolve()
    if Path(given).is_dir():
        raise ConfigError(f"with: '{given}' holds no report; run snakemake there first, or give its work folder")
    return None


def _commit(given: str) -> str:
    """Return the number of the commit of a git revision."""
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{given}^{{commit}}"]
    try:
        done = subprocess.run(command, text=True, capture_output=True)
    except FileNotFoundError:
        raise ConfigError(f"with: '{given}' is no folder, and git is not on the path") from None
    if done.returncode:
        raise ConfigError(f"with: '{given}' is neither a folder nor a git revision; {HOW}")
    return done.stdout.strip()


@contextmanager
def _linked(folder: Path) -> Iterator[tuple[Path, str]]:
    """Give a root in which the paths that a run recorded lead to its work folder, wherever it is now."""
    prefix = _prefix(folder)
    if Path(prefix).is_absolute():
        if Path(prefix).resolve() != folder:
            raise QuantuneError(
                f"'{folder}' was moved from '{prefix}', and its files name that path; put it back there"
            )
        yield Path("/"), prefix
        return
    with tempfile.TemporaryDirectory(prefix="quantune-compare-") as scratch:
        place = Path(scratch, prefix)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder)
        yield Path(scratch), prefix


@contextmanager
def _fetched(revision: str, work: str) -> Iterator[tuple[Path, str]]:
    """Give a root with the small files of the run that DVC keeps for a git revision."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    how = "`dvc fetch --all-commits` gets what a remote has"
    with tempfile.TemporaryDirectory(prefix="quantune-compare-") as scratch:
        try:
            kept = DVCFileSystem(rev=_commit(revision))
            there = kept.exists(f"{work}/report/{record.PROVENANCE}")
            for path in kept.find(work) if there else ():
                if Path(path).name in READ:
                    place = Path(scratch, path.lstrip("/"))
                    place.parent.mkdir(parents=True, exist_ok=True)
                    kept.get_file(path, str(place))
        except (DvcException, OSError) as error:
            raise QuantuneError(f"the results of '{revision}' cannot be read from DVC: {error}; {how}") from None
        if not there:
            keep = "`make commit` keeps those of a run"
            raise QuantuneError(f"with: '{revision}' has no results in DVC below '{work}'; {keep}")
        yield Path(scratch), work.lstrip("/")


def _prefix(work: Path) -> str:
    """Return the path of the work folder as the run recorded it."""
    provenance = record.read_provenance(work / "report")
    if provenance is None:
        raise QuantuneError(f"{work}/report/{record.problem(work / 'report')}; run snakemake there again")
    (first, *_) = provenance["parents"]["checkpoints"]
    return str(Path(first["path"]).parents[1])


def _read(root: Path, work: str) -> Report:
    """Return the report of a run whose paths are relative to a root."""
    from quantune.report import gather

    with chdir(root):
        provenance = record.read_provenance(f"{work}/report")
        if provenance is None:
            raise QuantuneError(f"{work}/report/{record.problem(f'{work}/report')}; run snakemake again")
        order = {key: provenance[key] for key in ("digest", "recipe", "parents")} | {"path": f"{work}/report"}
        for item in (item for made_from in order["parents"].values() for item in made_from):
            made = record.read_provenance(item["path"])
            if made is None or made["digest"] != item["digest"]:
                raise QuantuneError(f"{item['path']} is not the one of the report beside it; run snakemake again")
        return gather.gather(order)
