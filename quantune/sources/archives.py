"""Unpack the archive of a Common Voice release: one locale of it, nothing that leads out of the folder."""

import posixpath
import shutil
import tarfile
from pathlib import Path

from quantune.core.errors import QuantuneError
from quantune.sources.clips import choice


def unpack(archive: Path, folder: Path, locale: str | None) -> None:
    """Unpack one locale's tables and clips of a Common Voice release.

    Raises:
        QuantuneError: if a member would land outside the folder or is neither file nor folder, the archive is cut off,
            or the locale is not in it.
    """
    from tqdm import tqdm

    there = set()
    try:
        with tarfile.open(archive) as opened:
            for member in tqdm(opened, desc=f"unpacking {archive.name}", unit=" members"):
                _require_safe(member, archive)
                found = _locale(member.name)
                there.add(found)
                if member.isfile() and found and locale in (None, found):
                    path = folder / posixpath.normpath(member.name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.extractfile(member) as packed, path.open("wb") as file:
                        shutil.copyfileobj(packed, file)
    except (tarfile.ReadError, EOFError, OSError) as error:
        what = f"'{archive}' cannot be unpacked ({error})"
        raise QuantuneError(f"{what}; it is cut off or no archive: download it again") from None
    if locale and locale not in there:
        raise QuantuneError(f"'{archive}' has no locale '{locale}'{choice(locale, there - {None})}; set 'locale'")


def _require_safe(member: tarfile.TarInfo, archive: Path) -> None:
    """Raise QuantuneError unless a member is a file or folder that lands below where the archive is unpacked."""
    path = posixpath.normpath(member.name)
    leads_out = path.startswith(("/", "../")) or path == ".."
    if leads_out or not (member.isfile() or member.isdir()):
        what = "leads out of it" if leads_out else "is neither a file nor a folder"
        raise QuantuneError(
            f"'{archive}' holds a member that must not be unpacked: '{member.name}' {what}; do not trust this archive"
        )


def _locale(name: str) -> str | None:
    """Return the locale that a member of a release belongs to: the folder of its tables and of its `clips`."""
    *folders, file = name.split("/")
    if folders and folders[-1] == "clips":
        folders.pop()
        return folders[-1] if folders else None
    return folders[-1] if folders and file.endswith(".tsv") else None
