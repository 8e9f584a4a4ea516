"""Downloads that go on where they were cut off, and that are used only once their size and hash have been checked."""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from quantune.artefacts.hashes import file_sha256
from quantune.core.errors import QuantuneError
from quantune.sources import hub

CHUNK = 2**18  # bytes that a cut connection loses at most
RETRIES = 5  # cut connections in a row without a byte received
SMALL = 2**20  # bytes from which on a progress bar is shown
GIT = "git:"  # before a hash that is a git blob id and not a SHA-256


@dataclass(frozen=True)
class Remote:
    """A file to download."""

    name: str
    """Where it goes, relative to the folder for downloads."""
    url: str
    digest: str
    """SHA-256, or git blob id after `git:`."""
    size: int | None = None
    """In bytes, if it is known."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of the request, such as the hub's token; httpx does not send that to another host that it is redirected to."""
    page: str | None = None
    """Of the repository on the hub."""
    licence: str | None = None
    what: str | None = None
    """How errors call it, if not by its URL."""

    def __str__(self) -> str:
        return self.what or f"'{self.url}'"


def identity(file: dict[str, Any]) -> str:
    """Return the hash of a locked file as digests hold it: SHA-256, or the git blob id after `git:`."""
    return file.get("sha256") or GIT + file["git"]


def fetched(order: dict[str, Any], scratch: Path) -> Path:
    """Download the files that an order names, into its scratch folder.

    Args:
        order: `sources` (name -> hash), and in the options `download`: either `hub`, `kind`, `revision`, `commit`,
            `licence` and `sizes` of a repository, or `urls`. Without `download` nothing is done.
        scratch: kept until the job is done, so that a killed job goes on.

    Returns:
        The folder that the order's relative paths are meant from.

    Raises:
        QuantuneError: if a file cannot be had or is not the one asked for.
    """
    source = order["options"].get("download")
    if source is None:
        return Path()
    if "hub" in source:
        commit, licence = source["commit"], source["licence"] or "none named"
        print(f"{hub.page(source['kind'], source['hub'])} at commit {commit}; licence: {licence}")
    for remote in _remotes(source, order["sources"]):
        file(remote, scratch)
    return scratch


def facts(order: dict[str, Any]) -> dict[str, Any]:
    """Return what the provenance says about where the files came from."""
    source = order["options"].get("download")
    return {"source": {key: value for key, value in source.items() if key != "sizes"}} if source else {}


def _remotes(source: dict[str, Any], digests: dict[str, str]) -> Iterator[Remote]:
    """Yield the files of a source."""
    for name, digest in digests.items():
        if "urls" in source:
            yield Remote(name, source["urls"][name], digest)
        else:
            file = {"size": source["sizes"][name], "digest": digest}
            yield of_hub(source["kind"], source["hub"], source["commit"], name, licence=source["licence"], **file)


def of_hub(kind: hub.Kind, repository: str, commit: str, name: str, **more) -> Remote:
    """Return a file of a repository; `more` are the fields `digest`, `size` and `licence`."""
    from huggingface_hub.utils import build_hf_headers

    url, page = hub.address(kind, repository, commit, name), hub.page(kind, repository)
    what = f"'{name}' of {hub.described(kind, repository, commit)}"
    return Remote(name, url, page=page, what=what, headers=build_hf_headers(), **more)


def file(remote: Remote, folder: Path) -> None:
    """Download one file, or the rest of it, into a folder, and check it. What has arrived lies beside it as `.partial`.

    Raises:
        QuantuneError: if the server refuses, cannot be reached, or serves something else than expected.
    """
    import httpx

    path = folder / remote.name
    if PurePosixPath(remote.name).is_absolute() or ".." in PurePosixPath(remote.name).parts:
        raise QuantuneError(f"{remote}: its name leads out of the folder for downloads")
    if path.exists():
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    resumed = partial.exists()
    try:
        _receive(remote, partial)
        if resumed and _difference(remote, partial):  # what had arrived before was of another file
            partial.unlink()
            _receive(remote, partial)
    except (httpx.HTTPError, ConnectionError) as error:
        raise QuantuneError(hub.explained(error, str(remote), remote.page or remote.url, remote.licence)) from error
    if difference := _difference(remote, partial):
        partial.unlink()
        remedy = "`make update-lock` takes what is there now" if remote.page else "if it is meant, change 'sha256'"
        raise QuantuneError(f"{remote} is not the file that was asked for: {difference}; {remedy}")
    os.replace(partial, path)


def _receive(remote: Remote, path: Path) -> None:
    """Append to a file what is missing of it, trying again while the connection gives at least some bytes."""
    import httpx
    from tqdm import tqdm

    with path.open("ab") as target:
        begin, failures = target.tell(), 0
        if begin:
            print(f"{remote.name}: going on from byte {begin:,}")
        hidden = remote.size is not None and remote.size < SMALL
        with tqdm(desc=remote.name, total=remote.size, initial=begin, unit="B", unit_scale=True, disable=hidden) as bar:
            while True:
                try:
                    return _stream(remote, target, bar)
                except httpx.TransportError as error:
                    failures = 1 if target.tell() > begin else failures + 1
                    begin = target.tell()
                    if failures > RETRIES:
                        raise
                    print(f"{remote.name}: the connection broke at byte {begin:,} ({error}); going on", flush=True)
                    time.sleep(failures)


def _stream(remote: Remote, target: BinaryIO, bar: Any) -> None:
    """Append one answer to the open file; from its beginning where the server does not know ranges.

    Too many requests (429, with `Retry-After`) and failures of the server are waited for and tried again.
    """
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

    begin = target.tell()
    headers = {**remote.headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    options = {"headers": headers, "timeout": hub.TIMEOUT, "retry_on_exceptions": ()}
    with http_stream_backoff("GET", remote.url, **options) as answer:
        if begin and answer.status_code == 416:  # nothing is missing
            return
        hf_raise_for_status(answer)
        if begin and answer.status_code != 206:
            target.truncate(0)
            bar.reset()
        for chunk in answer.iter_bytes(CHUNK):
            target.write(chunk)
            bar.update(len(chunk))


def _difference(remote: Remote, path: Path) -> str | None:
    """Return in words how a file differs from what is expected, or None."""
    size = path.stat().st_size
    digest = GIT + _git_blob(path) if remote.digest.startswith(GIT) else file_sha256(path)
    if digest == remote.digest and remote.size in (None, size):
        return None
    expected = f", {remote.size:,} bytes" if remote.size is not None else ""
    return f"expected {_named(remote.digest)}{expected}, found {_named(digest)}, {size:,} bytes"


def _named(digest: str) -> str:
    return f"git blob {digest.removeprefix(GIT)}" if digest.startswith(GIT) else f"SHA-256 {digest}"


def _git_blob(path: Path) -> str:
    """Return the id that git gives to a file's content."""
    content = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as opened:
        for chunk in iter(lambda: opened.read(CHUNK), b""):
            content.update(chunk)
    return content.hexdigest()
