"""Unpack one locale from the archive of a Common Voice release; refuse members that lead out of the folder."""

import lzma
import posixpath
import shutil
import tarfile
import zlib
from pathlib import Path

from quantune.core.errors import QuantuneError
from quantune.sources.clips import locale_hint
from quantune.sources.text_files import CHUNK


def unpack(archive: Path, folder: Path, locale: str | None) -> None:
    """Unpack the tables and clips of one locale of a Common Voice release; None: of all locales.

    Raises:
        QuantuneError: if a member would land outside the folder or is neither file nor folder, the archive is cut off,
            or the locale is not in it.
    """
    from tqdm import tqdm

    locales = set()
    try:
        with tarfile.open(archive) as opened:
            for member in tqdm(opened, desc=f"unpacking {archive.name}", unit=" members"):
                _require_safe(member, archive)
                member_locale = _locale(member.name)
                locales.add(member_locale)
                if member.isfile() and member_locale and locale in (None, member_locale):
                    path = folder / posixpath.normpath(member.name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.extractfile(member) as packed, path.open("wb") as file:
                        shutil.copyfileobj(packed, file)
            while opened.fileobj.read(CHUNK):
                pass  # the checksum comes after the last member
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError) as error:
        problem = f"'{archive}' cannot be unpacked ({' '.join(str(error).split()):.300})"
        raise QuantuneError(f"{problem}; it is damaged, cut off or no archive: download it again") from None
    if locale and locale not in locales:
        hint = locale_hint(locale, locales - {None})
        raise QuantuneError(f"'{archive}' has no locale '{locale}'{hint}; set 'locale'")


def _require_safe(member: tarfile.TarInfo, archive: Path) -> None:
    """Raise QuantuneError unless a member is a file or folder that lands in the folder of unpacking."""
    path = posixpath.normpath(member.name)
    leads_out = path.startswith(("/", "../")) or path == ".."
    if leads_out or not (member.isfile() or member.isdir()):
        reason = "leads out of it" if leads_out else "is neither a file nor a folder"
        raise QuantuneError(
            f"'{archive}' holds a member that must not be unpacked: '{member.name}' {reason}; do not trust this archive"
        )


def _locale(name: str) -> str | None:
    """Return the locale of a member of a release: the folder that holds the tables and `clips`; None if it has none."""
    *folders, file = name.split("/")
    if folders and folders[-1] == "clips":
        folders.pop()
        return folders[-1] if folders else None
    return folders[-1] if folders and file.endswith(".tsv") else None
