"""Credentials of URLs: they come from the environment, and stand in no error, log, order, provenance or report."""

import base64
import hashlib
import io
import json
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from quantune.artefacts import job
from quantune.core import credentials
from quantune.core.errors import ConfigError, QuantuneError
from quantune.planning import load
from quantune.planning.plan import Plan
from quantune.sources import download
from tests.workflow import Folder

PASSWORD, SIGNATURE = "p@ss/w:0rd?#%41", "5f4dcc3b%2Faa"
CONTENT = b"First story.\n\nSecond story.\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SECRETS = (PASSWORD, SIGNATURE, "5f4dcc3b", "p%40ss", base64.b64encode(f"reader:{PASSWORD}".encode()).decode())


class Handler(BaseHTTPRequestHandler):
    """Serves `/private` to a user with a password, `/signed` with a signature, `/moved` from another host."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts, given = urlsplit(self.path), self.headers.get("Authorization")
        self.server.requests.append((self.headers["Host"], parts.path, given))
        wanted = "Basic " + base64.b64encode(f"reader:{PASSWORD}".encode()).decode()
        signed = parse_qs(parts.query).get("X-Amz-Signature") == ["5f4dcc3b/aa"]
        allowed = {"/private": given == wanted, "/signed": signed, "/moved": given == wanted, "/open": True}
        if parts.path == "/broken":
            return self._answer(500)
        if not allowed.get(parts.path):
            return self._answer(403)
        if parts.path == "/moved":
            return self._answer(302, {"Location": f"http://localhost:{self.server.server_port}/open"})
        return self._answer(200, body=CONTENT)

    def _answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    """A server on loopback; the environment holds the credentials that it wants."""
    monkeypatch.setattr(credentials, "_values", set())
    monkeypatch.setenv("READER_PASSWORD", PASSWORD)
    monkeypatch.setenv("READER_SIGNATURE", SIGNATURE)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.requests = []
    Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def address(server, kind: str) -> str:
    """Return a URL of the server as a configuration holds it."""
    host = f"127.0.0.1:{server.server_port}"
    return {
        "password": f"http://reader:${{READER_PASSWORD}}@{host}/private",
        "signature": f"http://{host}/signed?X-Amz-Signature=${{READER_SIGNATURE}}",
        "redirect": f"http://reader:${{READER_PASSWORD}}@{host}/moved",
        "refused": f"http://reader:${{READER_PASSWORD}}@{host}/signed",
        "absent": f"http://{host}/none?token=${{READER_SIGNATURE}}",
        "broken": f"http://reader:${{READER_PASSWORD}}@{host}/broken",
        "unreachable": "http://reader:${READER_PASSWORD}@127.0.0.1:1/x?sig=${READER_SIGNATURE}",
        "no host": "http://reader:${READER_PASSWORD}@[::bad/x",
    }[kind]


def order(url: str) -> dict:
    return {"sources": {"a.txt": SHA256}, "options": {"download": {"urls": {"a.txt": url}}}}


def is_clean(text: str) -> bool:
    return not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize("kind", ["password", "signature", "redirect"])
def test_a_credential_of_the_environment_opens_the_file(server, tmp_path, capfd, kind):
    wanted = order(address(server, kind))
    download.fetch_sources(wanted, tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == CONTENT
    assert is_clean(json.dumps([wanted, download.facts(wanted)]) + "".join(capfd.readouterr()))
    strangers = [given for host, _, given in server.requests if host.startswith("localhost")]
    assert strangers == ([None] if kind == "redirect" else []), "a password stays with its host"


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("refused", "access is denied (403)"),
        ("absent", "access is denied (403)"),
        ("broken", "the server answered 500"),
        ("unreachable", "cannot be reached"),
        ("no host", "is not a URL"),
    ],
)
def test_a_failed_request_names_the_url_without_its_credentials(server, tmp_path, capfd, kind, problem):
    with pytest.raises(QuantuneError) as caught:
        download.fetch_sources(order(address(server, kind)), tmp_path)
    assert problem in str(caught.value) and "${READER_" in str(caught.value) and "\n" not in str(caught.value)
    assert is_clean(str(caught.value) + "".join(capfd.readouterr()))


def test_a_variable_that_is_not_set_is_named(server, tmp_path, monkeypatch):
    monkeypatch.delenv("READER_PASSWORD")
    with pytest.raises(
        QuantuneError, match=r"environment variable 'READER_PASSWORD' in 'http.* is not set; export REA"
    ):
        download.fetch_sources(order(address(server, "password")), tmp_path)


def test_a_variable_may_hold_the_whole_url(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SIGNED_URL", address(server, "signature").replace("${READER_SIGNATURE}", SIGNATURE))
    download.fetch_sources(order("${SIGNED_URL}"), tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == CONTENT
    monkeypatch.setenv("SIGNED_URL", "ftp://127.0.0.1/x")
    with pytest.raises(QuantuneError, match=r"'\$\{SIGNED_URL\}' with its environment variables is no URL"):
        download.fetch_sources(order("${SIGNED_URL}"), tmp_path / "other")


REDACTED = [
    ("https://user:pw@h.org/x", "https://***@h.org/x"),
    ("https://ghp_token@h.org/x", "https://***@h.org/x"),
    ("see 'http://a:b@c@h.org:80/x'.", "see 'http://***@h.org:80/x'."),
    ("s3://KEY:pw@bucket/x", "s3://***@bucket/x"),
    ("https://h/x?X-Amz-Signature=ab12&y=1", "https://h/x?X-Amz-Signature=***&y=1"),
    ("https://h/x?y=1&token=ab12", "https://h/x?y=1&token=***"),
    ("https://h/x?sv=1&sig=ab%2F12&se=2", "https://h/x?sv=1&sig=***&se=2"),
    ("https://h/x?Signature=a&Key-Pair-Id=b&Policy=c", "https://h/x?Signature=***&Key-Pair-Id=***&Policy=***"),
    (
        "https://h/x?api_key=a&private_token=b#access_token=c",
        "https://h/x?api_key=***&private_token=***#access_token=***",
    ),
    ("https://h/x?AWSAccessKeyId=a&password=b", "https://h/x?AWSAccessKeyId=***&password=***"),
    ("https://user:${PW}@h/x?sig=${SIG}", "https://user:${PW}@h/x?sig=${SIG}"),
    ("https://h/x?author=b&tokens=3&monkey=4&download=1", "https://h/x?author=b&tokens=3&monkey=4&download=1"),
    ("mail reader@h.org, 3 @ 4", "mail reader@h.org, 3 @ 4"),
]


@pytest.mark.parametrize(("text", "expected"), REDACTED)
def test_credentials_are_taken_out_of_texts(text, expected):
    assert credentials.redacted(text) == expected
    assert str(QuantuneError(text)) == expected and str(ConfigError(text)) == expected


@pytest.mark.parametrize(("text", "expected"), [item for item in REDACTED if item[0] != item[1]])
def test_credentials_are_taken_out_of_streams_and_of_the_command(text, expected, monkeypatch):
    stream = io.StringIO()
    try:
        raise ValueError(text)
    except ValueError:
        traceback.print_exc(file=credentials.RedactedStream(stream))
    assert expected in stream.getvalue() and text not in stream.getvalue()
    for name in ("QUANTUNE_COMMAND", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("QUANTUNE_COMMAND")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    job.announce("/", ["snakemake", "--config", f"title={text}"])
    assert text not in job.os.environ["QUANTUNE_COMMAND"] and "***" in job.os.environ["QUANTUNE_COMMAND"]


def test_a_traceback_of_a_request_shows_no_credential(server):
    url, stream = download.filled(address(server, "signature")), io.StringIO()
    try:
        httpx.get(url.replace("/signed", "/none")).raise_for_status()
    except httpx.HTTPError:
        traceback.print_exc(file=credentials.RedactedStream(stream))
    assert "403" in stream.getvalue() and is_clean(stream.getvalue())


WHERE = {
    "datasets.web.urls.a.txt.url": lambda raw, url: raw["datasets"]["web"]["urls"]["a.txt"].update(url=url),
    "title": lambda raw, url: raw.update(title=f"Results of {url}"),
    "models.opt.path": lambda raw, url: raw["models"]["opt"].update(path=url),
    "evaluations.prompts.prompts.0": lambda raw, url: raw["evaluations"]["prompts"].update(prompts=[url]),
    "variants.0": lambda raw, url: raw.update(variants=[url]),
}


@pytest.mark.parametrize("key", WHERE)
@pytest.mark.parametrize("url", ["https://user:hunter2@h.org/a.txt", "https://h.org/a.txt?X-Amz-Signature=hunter2"])
def test_a_configuration_with_a_credential_is_refused_without_printing_it(raw, key, url):
    raw["datasets"]["web"] = {"urls": {"a.txt": {"url": "https://h.org/a.txt", "sha256": SHA256}}}
    WHERE[key](raw, url)
    with pytest.raises(ConfigError) as caught:
        load.load(raw, "my.yaml")
    (line,) = str(caught.value).split("\n")
    assert line.startswith(f"my.yaml: {key}: '") and "hunter2" not in line
    assert line.endswith("; in a URL write ${NAME} in its place and export NAME=...")


def test_the_digest_does_not_depend_on_where_the_credential_comes_from(raw):
    raw["evaluations"]["news"]["dataset"] = "web"
    digests = set()
    for url in ("https://h.org/a", "https://user:${A}@h.org/a", "${B}"):
        entry = {"urls": {"a.txt": {"url": url, "sha256": SHA256}}, "splits": {"train": 0.5, "test": 0.5}}
        raw["datasets"]["web"] = entry
        digests.add(Plan(load.load(raw)).dataset("web").digest)
    assert len(digests) == 1


def test_no_file_of_a_run_holds_a_credential(server, tmp_path, root):
    """One file needs a password, one a signature; a third one is refused. All files of the project are searched."""
    urls = {"a.txt": address(server, "password"), "b.txt": address(server, "signature")}
    config = {
        "models": {"opt": {"path": str(root / "assets/models/opt-2m")}},
        "datasets": {
            "web": {"urls": {name: {"url": url, "sha256": SHA256} for name, url in urls.items()}},
            "refused": {"urls": {"c.txt": {"url": address(server, "refused"), "sha256": SHA256}}},
        },
        "variants": ["opt"],
    }
    folder = Folder(tmp_path / "project", config)
    printed = folder.run("work/sources/web", "work/sources/refused", "--cores", "1", "--keep-going", check=False)
    assert (folder.work / "sources/web/train.parquet").exists()
    log = (folder.work / "logs/dataset/refused.log").read_text()
    assert "access is denied (403)" in log and "${READER_PASSWORD}" in log and "Traceback" not in log + printed
    facts = json.loads((folder.work / "sources/web/provenance.json").read_text())["facts"]
    assert facts["source"]["urls"] == urls
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) > 5 and is_clean(printed)
    assert [path for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS)] == []
