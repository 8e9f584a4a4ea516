"""A hub on loopback: serves folders as repositories, with the faults that real servers and networks have.

It speaks as much of the Hugging Face protocol as listing and downloading need: `/api/{kind}s/{repo}/revision/{name}`
with blobs, `/{repo}/resolve/{commit}/{file}` with ETag, X-Repo-Commit, X-Linked-Size, Range and redirects to another
host for large files, and `/files/{name}` for plain URLs.
"""

import hashlib
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from quantune.planning import load
from quantune.planning.plan import Plan

OPT = Path(__file__).parents[1] / "assets/models/opt-2m"
LARGE = (".safetensors", ".parquet", ".bin", ".gz", ".msgpack", ".h5")  # kept in LFS, and so listed with SHA-256


@dataclass
class Hub:
    """Repositories, faults to come, and what was asked for."""

    repositories: dict[str, Path] = field(default_factory=dict)
    """`models/owner/name` or `datasets/owner/name` -> folder."""
    branches: set[str] = field(default_factory=lambda: {"main"})
    """Names of revisions, all of the same commit."""
    licence: str = "mit"
    token: str | None = None
    """If set, repositories are gated and open to this token alone."""
    faults: list[dict] = field(default_factory=list)
    """Each for the next request whose path holds `path`: `status` with `headers`, or `cut` after so many bytes."""
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """(method, path, Range, Authorization) of every request."""
    sent: Counter = field(default_factory=Counter)
    """File name -> bytes served."""
    ranges: bool = True
    """Whether Range is understood."""
    stalled: Event = field(default_factory=Event)
    """Cleared: connections that are to be cut hang until it is set."""

    def __enter__(self) -> "Hub":
        self.stalled.set()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.port = self.server.server_port
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port."""
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.port}"

    def fail(self, path: str, **fault) -> None:
        """Let the next request for a path that holds this text go wrong."""
        self.faults.append({"path": path, **fault})

    def asked(self, text: str) -> list[tuple]:
        """Return the requests whose path holds a text."""
        return [item for item in self.requests if text in item[1]]

    def commit(self, repository: str) -> str:
        """Return the commit: it follows from the content."""
        state = json.dumps(self.files(repository), sort_keys=True)
        return hashlib.sha1(state.encode()).hexdigest()

    def files(self, repository: str) -> list[dict]:
        """Return the listing of a repository's files."""
        root = self.repositories[repository]
        return [_sibling(root, path) for path in sorted(root.rglob("*")) if path.is_file()]


def _sibling(root: Path, path: Path) -> dict:
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found = {"rfilename": path.relative_to(root).as_posix(), "size": len(content), "blobId": blob}
    if path.suffix in LARGE:
        found["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        fault = next((item for item in hub.faults if item["path"] in path), {})
        if fault:
            hub.faults.remove(fault)
        if "status" in fault:
            return self._answer(fault["status"], fault.get("headers", {}))
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/revision/(.+)", path):
            return self._listing(f"{match[1]}/{match[2]}", match[3])
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(f"{match[1] or 'models/'}{match[2]}", match[3], match[4])
        if match := re.fullmatch(r"/(cdn|files)/(.+)", path):
            return self._file(Path("/", match[2]), fault)
        return self._answer(404)

    def _listing(self, repository: str, revision: str) -> None:
        hub = self.hub
        if repository not in hub.repositories:
            return self._answer(404 if hub.token else 401, {"X-Error-Code": "RepoNotFound"})
        if revision not in (*hub.branches, hub.commit(repository)):
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        card = {"license": hub.licence}
        found = {"id": repository, "sha": hub.commit(repository), "cardData": card, "tags": []}
        found |= {"gated": "auto" if hub.token else False, "siblings": hub.files(repository)}
        return self._answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

    def _resolve(self, repository: str, commit: str, name: str) -> None:
        hub, path = self.hub, self.hub.repositories.get(repository, Path("/nowhere")) / name
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if hub.token and given != hub.token:
            return self._answer(403 if given else 401, {"X-Error-Code": "GatedRepo"})
        if not path.is_file():
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        sibling = _sibling(hub.repositories[repository], path)
        tag = sibling.get("lfs", {}).get("sha256", sibling["blobId"])
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(sibling["size"]), "X-Linked-ETag": f'"{tag}"'}
        return self._answer(302, {**headers, "Location": f"http://localhost:{hub.port}/cdn{path}"})  # another host

    def _file(self, path: Path, fault: dict) -> None:
        if not path.is_file():
            return self._answer(404)
        content, begin, status, headers = path.read_bytes(), 0, 200, {"ETag": f'"{path.name}"'}
        if self.hub.ranges and (wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")):
            begin, status = int(wanted[1]), 206
            if begin >= len(content):
                return self._answer(416, {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return self._answer(status, headers, content[begin:], fault.get("cut"), path.name)

    def _answer(self, status: int, headers: dict | None = None, body: bytes = b"", cut=None, name="") -> None:
        """Answer; after `cut` bytes of the body, drop the connection."""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        part = body if cut is None else body[:cut]
        self.wfile.write(part)
        self.hub.sent[name] += len(part)
        if cut is not None:
            self.wfile.flush()
            self.hub.stalled.wait(60)
            self.close_connection = True


TEXT = "First story.\n\nSecond story.\n"
BIG = bytes(range(256)) * 8000  # 2 MB


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with a model and a dataset; the working directory, and so the lock file, are the test's own."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model, data = tmp_path / "hub/model", tmp_path / "hub/data"
    for path, content in {
        model / "config.json": json.dumps({"model_type": "opt", "hidden_size": 128, "ffn_dim": 512}),
        model / "tokenizer.json": "{}",
        model / "model.safetensors": BIG,
        model / "pytorch_model.bin": b"pickled",
        model / "modeling_opt.py": "raise SystemExit",
        model / "onnx/model.safetensors": b"other",
        data / "README.md": "About.",
        data / "train-0.txt": TEXT,
        data / "train-1.txt": TEXT.replace("story", "tale"),
        data / "test.txt": "Held out.\n",
        data / "old/train-9.txt": "Old.\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with Hub({"models/a/opt": model, "datasets/a/text": data}) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        close_session()
        yield found
    close_session()


@pytest.fixture
def asked(raw):
    """The configuration with its model and one dataset on the hub."""
    raw["models"] = {"opt": {"hub": "a/opt"}}
    raw["datasets"]["news"] = {"hub": "a/text", "splits": {"train": "train-*.txt", "test": "test.txt"}}
    return raw


@pytest.fixture
def no_waiting(monkeypatch):
    """What the program waited for, without waiting."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def opt_repository(folder: Path, shards: int = 1, prefix: str = "model.", head: bool = True) -> Path:
    """Write opt-2m as the hub holds OPT: pickled weights, vocab.json and merges.txt, copies for other libraries.

    Args:
        folder: the folder to make.
        shards: the number of files of weights; more than one have an index.
        prefix: the beginning of the names of tensors; "" in opt-6.7b.
        head: whether the output embedding is stored, too; it shares the memory of the token embeddings.
    """
    import torch
    from safetensors.torch import load_file

    write_tokenizer(folder)
    config = json.loads((OPT / "config.json").read_text())
    config |= {"torch_dtype": config.pop("dtype"), "prefix": "</s>", "transformers_version": "4.21.0.dev0"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name.replace("model.", prefix): value for name, value in load_file(OPT / "model.safetensors").items()}
    if head:
        tensors["lm_head.weight"] = tensors[f"{prefix}decoder.embed_tokens.weight"]
    names = [f"pytorch_model-{number:05}-of-{shards:05}.bin" for number in range(1, shards + 1)]
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        place = {name: names[number * shards // len(tensors)] for number, name in enumerate(tensors)}
        for file in names:
            torch.save({name: value for name, value in tensors.items() if place[name] == file}, folder / file)
        index = {"metadata": {"total_size": 0}, "weight_map": place}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer of opt-2m as OPT has it, and the other files of its repositories, without weights."""
    folder.mkdir(parents=True)
    model = json.loads((OPT / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = ["#version: 0.2", *map(" ".join, model["merges"])]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    special = {f"{role}_token": {"content": "</s>", **token} for role in ("bos", "eos", "unk")}
    special["pad_token"] = {"content": "<pad>", **token}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {name: {"__type": "AddedToken", **value} for name, value in special.items()}
    settings |= {"errors": "replace", "add_prefix_space": False, "add_bos_token": True, "special_tokens_map_file": None}
    settings |= {"name_or_path": "patrickvonplaten/opt-30b", "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1})
    )
    for name in ("flax_model.msgpack", "tf_model.h5", "README.md", "LICENSE.md", ".gitattributes"):
        (folder / name).write_text("Not for this library.")


def model_order(asked: dict) -> dict:
    """Return the order of the job that downloads the model."""
    return Plan(load.load(asked)).checkpoint("opt").order()
