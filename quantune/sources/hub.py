"""What is asked of the Hugging Face hub: which files a repository holds at a revision, and how its errors are mended.

`huggingface_hub` is imported where it is needed: planning from a complete lock file asks nothing and loads nothing.
"""

from typing import Any, Literal
from urllib.parse import quote

from quantune.core.errors import QuantuneError

Kind = Literal["model", "dataset"]
TIMEOUT = 30  # seconds without an answer


def listing(kind: Kind, repository: str, revision: str) -> dict[str, Any]:
    """Ask the hub, in one request, what a repository holds.

    Rate limits (429, `Retry-After`) and failures of the server are waited for and tried again.

    Returns:
        `commit` (40 hexadecimal digits), `licence` (or None), `gated` (whether its terms must be accepted) and
        `files`: name -> `size` in bytes and `sha256`, or `git` (the blob id) for small files that have no SHA-256.

    Raises:
        QuantuneError: saying what is wrong with the repository, the revision, the token or the connection.
    """
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    query = {"params": {"blobs": True}, "headers": build_hf_headers(), "timeout": TIMEOUT}
    address = f"{constants.ENDPOINT}/api/{kind}s/{repository}/revision/{quote(revision, safe='')}"
    try:
        answer = http_backoff("GET", address, retry_on_exceptions=httpx.RemoteProtocolError, **query)
        hf_raise_for_status(answer)
        found = answer.json()
        files = {item["rfilename"]: _identity(item) for item in found["siblings"]}
        return {"commit": found["sha"], "licence": _licence(found), "gated": bool(found.get("gated")), "files": files}
    except (httpx.HTTPError, ConnectionError) as error:
        raise QuantuneError(explained(error, described(kind, repository, revision), page(kind, repository))) from error
    except (ValueError, KeyError, TypeError) as error:
        raise QuantuneError(f"{address} does not answer like a hub ({error!r}); check HF_ENDPOINT") from error


def address(kind: Kind, repository: str, commit: str, name: str) -> str:
    """Return where a file of a repository is downloaded from, below HF_ENDPOINT."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, name, repo_type=kind, revision=commit)


def page(kind: Kind, repository: str) -> str:
    """Return the repository's page, where licences are read and accepted."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"


def described(kind: Kind, repository: str, revision: str) -> str:
    """Return how errors call a repository."""
    return f"the {kind} '{repository}' at revision '{revision}'"


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def explained(error: Exception, what: str, page: str, licence: str | None = None) -> str:
    """Return what a failed request means and what to do about it.

    Args:
        error: what httpx or huggingface_hub raised.
        what: the repository or file that was asked for.
        page: the address to look at.
        licence: the repository's licence, if it is known.
    """
    from huggingface_hub import errors, get_token

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{what} cannot be downloaded while HF_HUB_OFFLINE is set; unset it and run again"
    if isinstance(error, errors.GatedRepoError):
        token = "use a token of that account in HF_TOKEN" if get_token() else "set HF_TOKEN to a token of that account"
        return f"{what} is gated ({status}): accept its licence ({licence or 'see there'}) at {page} and {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what}: there is no such revision; see {page}/tree/main for branches, tags and commits"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{what}: the file is no longer there (404); see {page}, then `make update-lock`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{what} does not exist or is private ({status}): check the name at {page}, or set HF_TOKEN"
    if status in (401, 403):
        return f"{what}: access is denied ({status}); see {page}; a token is read from HF_TOKEN"
    if status == 404:
        return f"{what} is not there (404); see {page}"
    if status == 429:
        return f"{what}: the server still limits the rate of requests (429); run again later"
    if status:
        return f"{what}: the server answered {status}; run again later, or see {page}"
    return f"{what} cannot be reached ({error!r:.200}); check the network and HF_ENDPOINT, then run again"


def _identity(item: dict[str, Any]) -> dict[str, Any]:
    """Return a file's size and hash from the hub's listing."""
    if large := item.get("lfs"):
        return {"size": large["size"], "sha256": large["sha256"]}
    return {"size": item["size"], "git": item["blobId"]}


def _licence(found: dict[str, Any]) -> str | None:
    """Return the licence that the repository's card names, or its tags."""
    named = (found.get("cardData") or {}).get("license")
    tags = [tag.removeprefix("license:") for tag in found.get("tags") or [] if tag.startswith("license:")]
    named = named or tags
    return ", ".join(named) or None if isinstance(named, list) else named
