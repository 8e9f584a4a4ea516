"""Downloads that resume after an interruption; a file is used only after its size and hash are checked."""

import hashlib
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

from quantune.artefacts.hashes import file_sha256
from quantune.core import credentials
from quantune.core.errors import QuantuneError
from quantune.sources import hub

CHUNK = 2**18  # bytes that a cut connection loses at most
RETRIES = 5  # cut connections in a row without a byte received
SMALL = 2**20  # bytes from which on a progress bar is shown
GIT = "git:"  # before a hash that is a git blob id and not a SHA-256


class _TooLargeError(Exception):
    """A server sends more bytes than the file has."""


@dataclass(frozen=True)
class Remote:
    """A file to download."""

    name: str
    """Its path relative to the folder for downloads."""
    url: str
    """May name environment variables, `${NAME}`, in the places of credentials."""
    digest: str
    """SHA-256, or git blob id after `git:`."""
    size: int | None = None
    """In bytes; None if not known."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of the request, such as the hub's token; httpx does not send the token to another host on a redirect."""
    page: str | None = None
    """The repository's page on the hub."""
    licence: str | None = None
    label: str | None = None
    """Its name in errors; None: its URL."""

    def __str__(self) -> str:
        return self.label or f"'{self.url}'"


def identity(file: dict[str, Any]) -> str:
    """Return the hash of a locked file as digests hold it: SHA-256, or the git blob id after `git:`."""
    return file.get("sha256") or GIT + file["git"]


def fetch_sources(order: dict[str, Any], scratch: Path) -> Path:
    """Download the files that an order names, into its scratch folder.

    Args:
        order: `sources` (name -> hash), and in the options `download`: either `hub`, `kind`, `revision`, `commit`,
            `licence` and `sizes` of a repository, or `urls`. Without `download` nothing is done.
        scratch: a folder that is kept until the job is done, so that a killed job can resume.

    Returns:
        The folder to which the order's paths are relative.

    Raises:
        QuantuneError: if a file cannot be downloaded or does not have the expected hash.
    """
    source = order["options"].get("download")
    if source is None:
        return Path()
    if "hub" in source:
        commit, licence = source["commit"], source["licence"] or "none named"
        print(f"{hub.page(source['kind'], source['hub'])} at commit {commit}; licence: {licence}")
    for remote in _remotes(source, order["sources"]):
        fetch(remote, scratch)
    return scratch


def facts(order: dict[str, Any]) -> dict[str, Any]:
    """Return the facts for the provenance about the origin of the files; empty for local files."""
    source = order["options"].get("download")
    return {"source": {key: value for key, value in source.items() if key != "sizes"}} if source else {}


def _remotes(source: dict[str, Any], digests: dict[str, str]) -> Iterator[Remote]:
    """Yield the files of a source."""
    for name, digest in digests.items():
        if "urls" in source:
            yield Remote(name, source["urls"][name], digest)
        else:
            file = {"size": source["sizes"][name], "digest": digest}
            yield hub_file(source["kind"], source["hub"], source["commit"], name, licence=source["licence"], **file)


def hub_file(kind: hub.Kind, repository: str, commit: str, name: str, **more) -> Remote:
    """Return a file of a repository; `more` are the fields `digest`, `size` and `licence`."""
    from huggingface_hub.utils import build_hf_headers

    url, page = hub.address(kind, repository, commit, name), hub.page(kind, repository)
    label = f"'{name}' of {hub.describe(kind, repository, commit)}"
    return Remote(name, url, page=page, label=label, headers=build_hf_headers(), **more)


def fetch(remote: Remote, folder: Path) -> None:
    """Download one file, or the rest of it, into a folder, and check it. Received bytes lie beside it as `.partial`.

    Raises:
        QuantuneError: if the server refuses, cannot be reached, or serves other bytes than expected.
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
    remedy = "`make update-lock` locks the new file" if remote.page else "if this file is right, change 'sha256'"
    try:
        try:
            _receive(remote, partial)
        except _TooLargeError:
            if not resumed:
                raise
        if resumed and _difference(remote, partial):  # the earlier bytes belonged to another file
            partial.unlink()
            _receive(remote, partial)
    except _TooLargeError:
        partial.unlink()
        expected = f"expected {_named(remote.digest)}, {remote.size:,} bytes, and the server sends more"
        raise QuantuneError(f"{remote} is not the expected file: {expected}; {remedy}") from None
    except (httpx.HTTPError, ConnectionError) as error:
        raise QuantuneError(hub.explain(error, str(remote), remote.page or remote.url, remote.licence)) from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise QuantuneError(f"{remote} is not a URL that can be requested: {error}") from None
    if difference := _difference(remote, partial):
        partial.unlink()
        raise QuantuneError(f"{remote} is not the expected file: {difference}; {remedy}")
    os.replace(partial, path)


def beginning(remote: Remote, count: int) -> bytes:
    """Return the first bytes of a file; raises QuantuneError if the server refuses or cannot be reached."""
    import httpx
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

    headers = {**remote.headers, "Accept-Encoding": "identity", "Range": f"bytes=0-{count - 1}"}
    options = {"headers": headers, "timeout": hub.TIMEOUT, "retry_on_exceptions": httpx.RemoteProtocolError}
    content = bytearray()
    try:
        with http_stream_backoff("GET", filled(remote.url), **options) as answer:
            hf_raise_for_status(answer)
            for chunk in answer.iter_bytes(CHUNK):
                content += chunk
                if len(content) >= count:
                    break
    except (httpx.HTTPError, ConnectionError) as error:
        raise QuantuneError(hub.explain(error, str(remote), remote.page or remote.url, remote.licence)) from error
    return bytes(content[:count])


def filled(url: str) -> str:
    """Return a URL with the values of the environment variables that it names; a password is percent-encoded.

    From now on, the values are taken out of everything that this process prints and of its errors.

    Raises:
        QuantuneError: if a variable is not set, or the result does not begin with https:// or http://.
    """
    user = credentials.USER.search(url)

    def value(match: re.Match) -> str:
        secret = os.environ.get(match[1])
        if not secret:
            raise QuantuneError(f"environment variable '{match[1]}' in '{url}' is not set; export {match[1]}=...")
        credentials.remember(secret)
        return quote(secret, safe=":") if user and match.end() <= user.end() else secret

    text = re.sub(credentials.VARIABLE, value, url)
    if not re.match(r"https?://[^/\s]", text):
        raise QuantuneError(f"'{url}' with its environment variables is no URL; it must begin with https:// or http://")
    return text


def _receive(remote: Remote, path: Path) -> None:
    """Append the missing bytes to a file; try again while each new connection brings at least some bytes."""
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
    """Append one answer to the open file; start the file anew if the server does not support ranges.

    After too many requests (429, with `Retry-After`) or a failure of the server, it waits and tries again.
    """
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

    begin = target.tell()
    headers = {**remote.headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    options = {"headers": headers, "timeout": hub.TIMEOUT, "retry_on_exceptions": ()}
    with http_stream_backoff("GET", filled(remote.url), **options) as answer:
        if begin and answer.status_code == 416:  # nothing is missing
            return
        hf_raise_for_status(answer)
        if begin and answer.status_code != 206:
            target.truncate(0)
            bar.reset()
        room = math.inf if remote.size is None else remote.size - (begin if answer.status_code == 206 else 0)
        for chunk in answer.iter_bytes(CHUNK):
            room -= len(chunk)
            if room < 0:
                raise _TooLargeError
            target.write(chunk)
            bar.update(len(chunk))


def _difference(remote: Remote, path: Path) -> str | None:
    """Return, in words, the difference of size and hash from the expected ones, or None."""
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
