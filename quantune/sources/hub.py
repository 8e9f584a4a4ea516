"""Requests to the Hugging Face hub: the files of a repository at a revision, and texts for its errors.

`huggingface_hub` is imported inside functions: planning from a complete lock file neither requests nor loads anything.
"""

import json
from typing import Any, Literal
from urllib.parse import quote

from quantune.core.errors import QuantuneError

Kind = Literal["model", "dataset"]
TIMEOUT = 30  # seconds without an answer
LARGEST = 2**26  # bytes of a listing


def listing(kind: Kind, repository: str, revision: str) -> dict[str, Any]:
    """Return the content of a repository, from one request to the hub.

    After a rate limit (429, `Retry-After`) or a failure of the server, it waits and tries again.

    Returns:
        `commit` (40 hexadecimal digits), `licence` (or None), `gated` (whether its terms must be accepted) and
        `files`: name -> `size` in bytes and `sha256`, or `git` (the blob id) for small files that have no SHA-256.

    Raises:
        QuantuneError: naming the problem of the repository, the revision, the token or the connection.
    """
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    query = {"params": {"blobs": True}, "headers": build_hf_headers(), "timeout": TIMEOUT}
    address = f"{constants.ENDPOINT}/api/{kind}s/{repository}/revision/{quote(revision, safe='')}"
    try:
        with http_stream_backoff("GET", address, retry_on_exceptions=httpx.RemoteProtocolError, **query) as answer:
            hf_raise_for_status(answer)
            text = b""
            for part in answer.iter_bytes(2**20):
                text += part
                if len(text) > LARGEST:
                    raise ValueError(f"more than {LARGEST:,} bytes")
        content = json.loads(text)
        files = {item["rfilename"]: _identity(item) for item in content["siblings"]}
        gated = bool(content.get("gated"))
        return {"commit": content["sha"], "licence": _licence(content), "gated": gated, "files": files}
    except (httpx.HTTPError, ConnectionError) as error:
        raise QuantuneError(explain(error, describe(kind, repository, revision), page(kind, repository))) from error
    except (ValueError, KeyError, TypeError) as error:
        raise QuantuneError(f"{address} does not answer like a hub ({error!r}); check HF_ENDPOINT") from error


def address(kind: Kind, repository: str, commit: str, name: str) -> str:
    """Return the URL of a file of a repository, below HF_ENDPOINT."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, name, repo_type=kind, revision=commit)


def page(kind: Kind, repository: str) -> str:
    """Return the URL of the repository's page, on which licences are read and accepted."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"


def describe(kind: Kind, repository: str, revision: str) -> str:
    """Return the name of a repository in errors."""
    return f"the {kind} '{repository}' at revision '{revision}'"


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def explain(error: Exception, subject: str, page: str, licence: str | None = None) -> str:
    """Return the meaning of a failed request, and its remedy, for errors.

    Args:
        error: the exception of httpx or huggingface_hub.
        subject: the requested repository or file, in words.
        page: the address that the text refers to.
        licence: the repository's licence, if it is known.
    """
    from huggingface_hub import errors, get_token

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{subject} cannot be downloaded while HF_HUB_OFFLINE is set; unset it and run again"
    if isinstance(error, errors.GatedRepoError):
        token = "use a token of that account in HF_TOKEN" if get_token() else "set HF_TOKEN to a token of that account"
        return f"{subject} is gated ({status}): accept its licence ({licence or 'see the page'}) at {page} and {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{subject}: this revision does not exist; see {page}/tree/main for branches, tags and commits"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{subject}: the file no longer exists (404); see {page}, then `make update-lock`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{subject} does not exist or is private ({status}): check the name at {page}, or set HF_TOKEN"
    if status in (401, 403):
        return f"{subject}: access is denied ({status}); see {page}; a token is read from HF_TOKEN"
    if status == 404:
        return f"{subject} does not exist (404); see {page}"
    if status == 429:
        return f"{subject}: the server still limits the rate of requests (429); run again later"
    if status:
        return f"{subject}: the server answered {status}; run again later, or see {page}"
    return f"{subject} cannot be reached ({error!r:.200}); check the network and HF_ENDPOINT, then run again"


def _identity(item: dict[str, Any]) -> dict[str, Any]:
    """Return a file's size and hash from the hub's listing; raises ValueError if the size is none."""
    large = item.get("lfs")
    size = (large or item)["size"]
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"size {size!r:.40} of '{item['rfilename']}'")
    return {"size": size, "sha256": large["sha256"]} if large else {"size": size, "git": item["blobId"]}


def _licence(content: dict[str, Any]) -> str | None:
    """Return the licence in the repository's card, or in its tags; None if neither names one."""
    named = (content.get("cardData") or {}).get("license")
    tags = [tag.removeprefix("license:") for tag in content.get("tags") or [] if tag.startswith("license:")]
    named = named or tags
    return ", ".join(named) or None if isinstance(named, list) else named
