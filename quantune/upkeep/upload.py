"""Upload an export to a hub, as a commit of huggingface_hub (`make push-hub`).

The commit holds the recorded files of the export and its provenance, and no others. Facts of the machine (`run.json`)
stay here. huggingface_hub sends the token to HF_ENDPOINT alone, not to the storage that the hub names for large files.
"""

import re
from pathlib import Path

from quantune.artefacts import hashes, record
from quantune.core.errors import ConfigError, QuantuneError, reported
from quantune.sources import hub
from quantune.sources.entries import OWNED, REVISION

MAIN = "main"
OF_THE_HUB = (".gitattributes",)
"""Files that a hub writes into a new repository."""


def push(export: str, repository: str, revision: str = "", public: str = "") -> None:
    """Upload an export; print the address of the commit.

    Args:
        export: the folder, such as `work/exports/opt-2m+lora+merge/safetensors`.
        repository: `owner/name` on the hub of HF_ENDPOINT. A repository that does not exist is made, private.
        revision: branch to commit to; it is made if it does not exist. Empty: `main`, which must hold no files yet.
        public: `1` makes a new repository public.
    """
    with reported():
        if not re.fullmatch(OWNED, repository):
            raise ConfigError(f"TO='{repository}' is not a repository on the hub; give owner/name, such as TO=me/opt")
        if revision and not re.fullmatch(REVISION, revision):
            raise ConfigError(f"REVISION='{revision}' is not a branch; give a name such as REVISION=v2")
        if public not in ("", "1"):
            raise ConfigError(f"PUBLIC={public} is not allowed: write PUBLIC=1 for a public repository, or omit it")
        files = files_of(Path(export), public=bool(public))
        print(f"uploaded: {_commit(Path(export), files, repository, revision, private=not public)}")


def files_of(export: Path, public: bool) -> list[str]:
    """Return the names of the files to upload; raises QuantuneError if the export is damaged, or not to be published.

    Every file is read and compared with its SHA-256.
    """
    provenance = record.read_provenance(export)
    if provenance is None or not provenance["stage"].startswith("export/"):
        raise ConfigError(f"EXPORT='{export}' is no export; make one first: snakemake work/exports/VARIANT/FORMAT")
    if broken := record.problem(export):
        raise QuantuneError(f"{export}/{broken}; run the same snakemake command again")
    for file in provenance["files"]:
        path = export / file["path"]
        if not path.is_file() or hashes.file_sha256(path) != file["sha256"]:
            raise QuantuneError(f"{path} is not the file that was made; run the same snakemake command again")
    if absolute := [
        item["path"] for group in provenance["parents"].values() for item in group if item["path"][:1] == "/"
    ]:
        raise ConfigError(
            f"provenance.json names the folder '{Path(absolute[0]).parents[1]}' of this machine; give 'work' as a "
            "relative path, then export again"
        )
    unknown = [key for key, licence in provenance["recipe"]["licences"].items() if licence is None]
    if public and unknown:
        raise ConfigError(f"the licence of the model is not known; write '{unknown[0]}.licence', then export again")
    return [*(file["path"] for file in provenance["files"]), record.PROVENANCE]


def _commit(export: Path, files: list[str], repository: str, revision: str, private: bool) -> str:
    """Commit the files to a branch of a repository; return the address of the commit."""
    import httpx
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if hub.offline():
        raise QuantuneError("nothing can be uploaded while HF_HUB_OFFLINE is set; unset it and run again")
    if not get_token():
        raise QuantuneError(
            "an upload needs a token of your account; set HF_TOKEN (see the hub's page 'settings/tokens')"
        )
    api, branch, subject = HfApi(), revision or MAIN, f"the model '{repository}'"
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if branch != MAIN:
            api.create_branch(repository, branch=branch, exist_ok=True)
        head = api.model_info(repository, revision=branch)
        if not head.private:
            files_of(export, public=True)
        there = {item.rfilename for item in head.siblings} - set(OF_THE_HUB)
        if there and not revision:
            raise ConfigError(
                f"'{repository}' already holds {len(there)} files; give REVISION=name to commit to a branch of that "
                f"name, or REVISION={MAIN} to replace them"
            )
        operations = [CommitOperationAdd(name, str(export / name)) for name in files]
        operations += [CommitOperationDelete(name) for name in sorted(there - set(files))]
        message = f"{export.parent.name} as {export.name}, made by quantune"
        done = api.create_commit(
            repository, operations, commit_message=message, revision=branch, parent_commit=head.sha
        )
        return done.commit_url
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise QuantuneError(
            hub.explain(error, f"{subject} at branch '{branch}'", hub.page("model", repository))
        ) from error
