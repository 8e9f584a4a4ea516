"""A hub on loopback that takes uploads: repositories, branches, commits, and storage of large files on another host.

It speaks as much of the Hugging Face protocol as a commit of huggingface_hub needs.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the hub holds, and the requests it got."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """`owner/name` -> branch -> file name -> content."""
    private: dict[str, bool] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> content of a large file."""
    requests: list[tuple[str, str, str, str | None]] = field(default_factory=list)
    """(method, host, path, Authorization)."""
    port: int = 0

    def head(self, repository: str, branch: str) -> str:
        """Return the commit at the end of a branch: it follows from the content."""
        files = self.repositories[repository][branch]
        digests = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
        return hashlib.sha1(json.dumps(digests, sort_keys=True).encode()).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.port = server.server_port
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None:
        """Print nothing."""

    def _begin(self) -> tuple[str, bytes]:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, self.headers["Host"], path, self.headers.get("Authorization")))
        return path, self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        path, _ = self._begin()
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        if not match or match[2] not in self.hub.repositories.get(match[1], {}):
            return self._answer(404, {})
        files = self.hub.repositories[match[1]][match[2]]
        found = {"id": match[1], "sha": self.hub.head(match[1], match[2]), "tags": []}
        found |= {"private": self.hub.private[match[1]]}
        return self._answer(200, found | {"siblings": [{"rfilename": name} for name in files]})

    def do_PUT(self) -> None:
        path, body = self._begin()
        self.hub.stored[path.removeprefix("/storage/")] = body
        return self._answer(200, {})

    def do_POST(self) -> None:
        hub, (path, body) = self.hub, self._begin()
        if not (self.headers.get("Authorization") or "").startswith("Bearer "):
            return self._answer(401, {})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            url = {"url": f"http://127.0.0.1:{hub.port}/{name}"}
            if name in hub.repositories:
                return self._answer(409, url)
            hub.repositories[name], hub.private[name] = (
                {"main": {".gitattributes": b"*"}},
                asked.get("visibility") == "private",
            )
            return self._answer(200, url)
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = hub.repositories[match[1]]
            if match[2] in branches:
                return self._answer(409, {})
            branches[match[2]] = dict(branches["main"])
            return self._answer(200, {})
        if re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = [
                {"path": item["path"], "uploadMode": mode(item["path"]), "shouldIgnore": False}
                for item in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                item | {"actions": {"upload": {"href": f"http://localhost:{hub.port}/storage/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self._commit(match[1], match[2], body)
        return self._answer(404, {})

    def _commit(self, repository: str, branch: str, body: bytes) -> None:
        files = dict(self.hub.repositories[repository][branch])
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header" and value.get("parentCommit") != self.hub.head(repository, branch):
                return self._answer(412, {})
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        self.hub.repositories[repository][branch] = files
        oid = self.hub.head(repository, branch)
        url = f"http://127.0.0.1:{self.hub.port}/{repository}/commit/{oid}"
        return self._answer(200, {"commitUrl": url, "commitOid": oid, "success": True})

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def mode(name: str) -> str:
    """Return how a file is uploaded: large ones go to the storage."""
    return "lfs" if name.endswith((".safetensors", ".gguf")) else "regular"
