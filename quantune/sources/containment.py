"""Files that a table names: held below the folder of their dataset, as the members of an archive are."""

import os
import stat
from functools import lru_cache
from pathlib import Path

from quantune.core.errors import QuantuneError


def below(folder: Path, name: str, root: Path, where: str) -> Path | None:
    """Return the path of a file that a table names; None if it names none.

    Raises:
        QuantuneError: if it leads out of the root, by itself or through a link.
    """
    if not name.strip() or "\0" in name:
        return None
    path, allowed = folder / name, _real(str(root))
    above, last = os.path.split(path)
    inside = os.path.join(_real(above), last)
    if last == ".." or os.path.islink(inside):
        inside = os.path.realpath(inside)
    if not inside.startswith(allowed.rstrip("/") + "/"):
        linked = f", which is '{inside}'," if inside != os.path.normpath(path) else ""
        raise QuantuneError(
            f"{where}: '{name}'{linked} leads out of the folder '{root}'; do not trust a downloaded table that does so;"
            " for a table of your own, set 'absolute_paths: true'"
        )
    return path


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    """Return the path of a folder without links and `..`."""
    return os.path.realpath(folder)


def regular_or_missing(path: Path) -> bool:
    """Return whether a path is a regular file or nothing; hashing a pipe would wait for ever."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return True
