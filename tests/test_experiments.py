"""The ready experiments on hub models, on stand-ins for the hub's repositories: planned whole, and made in small."""

import gzip
import hashlib
import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from quantune.core import hardware
from quantune.data import text
from tests.hub import BIG, opt_repository, write_tokenizer
from tests.test_memory import opt
from tests.test_sources import zstandard
from tests.voices import WHISPER
from tests.workflow import Folder

SHAPES = {
    "125m": opt(768, 12, 12),
    "350m": opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "1.3b": opt(2048, 24, 32),
    "2.7b": opt(2560, 32, 32),
    "6.7b": opt(4096, 32, 32),
    "13b": opt(5120, 40, 40),
}
REVISIONS = {"main", "refs/pr/3", "refs/convert/parquet"}
ROWS = ["", " = Valley = \n", "", " The mill stands by the river , and the road follows it .\n", " Rain fell .\n"] * 60


@pytest.fixture
def stand_ins(hub, monkeypatch, tmp_path):
    """The hub with every repository that the experiments name: real shapes, names and formats, little content."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    root = tmp_path / "repositories"

    def write(kind: str, name: str, files: dict[str, bytes]) -> None:
        hub.repositories[f"{kind}/{name}"] = root / name
        for path, content in files.items():
            (root / name / path).parent.mkdir(parents=True, exist_ok=True)
            (root / name / path).write_bytes(content)

    for size, shape in SHAPES.items():
        write_tokenizer(root / f"facebook/opt-{size}")
        count = {"6.7b": 2, "13b": 3}.get(size, 1)
        shards = [f"pytorch_model-{number:05}-of-{count:05}.bin" for number in range(1, count + 1)]
        weights = dict.fromkeys(shards, BIG) | {"pytorch_model.bin.index.json": b"{}"}
        files = weights if count > 1 else {"pytorch_model.bin": BIG}
        write("models", f"facebook/opt-{size}", files | {"config.json": json.dumps(shape).encode()})
    stories = b"".join(json.dumps({"text": row * 3, "url": "u"}).encode() + b"\n" for row in ROWS)
    shards = ("c4-validation.00000-of-00008", "c4-train.00000-of-01024")
    write("datasets", "allenai/c4", {f"en/{name}.json.gz": gzip.compress(stories) for name in shards})
    wikitext = {f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet": parquet("text") for split in ("train", "test")}
    write("datasets", "Salesforce/wikitext", wikitext)
    write("datasets", "mit-han-lab/pile-val-backup", {"val.jsonl.zst": zstandard(stories)})
    write("datasets", "ptb-text-only/ptb_text_only", {"penn_treebank/test/0000.parquet": parquet("sentence")})
    quotes = b"".join(json.dumps({"quote": f"Say {number}."}).encode() + b"\n" for number in range(99))
    write("datasets", "Abirate/english_quotes", {"README.md": b"About.", "quotes.jsonl": quotes})
    hub.repositories["models/openai/whisper-large-v2"] = root / "whisper"
    shutil.copytree(WHISPER, root / "whisper")
    hub.branches = REVISIONS
    return hub


def parquet(column: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({column: ROWS}), sink)
    return sink.getvalue().to_pybytes()


def experiment(root, tmp_path, name: str, change) -> Folder:
    """Return a folder with an experiment's configuration, changed by a function."""
    raw = yaml.safe_load((root / "experiments" / name).read_text())
    change(raw)
    folder = Folder(tmp_path / "project", raw | {"work": "work"})
    (folder.path / "assets/text").mkdir(parents=True)
    shutil.copy(root / "assets/text/odd-sentence.txt", folder.path / "assets/text")
    return folder


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("opt-quotes.yaml", ["opt-2.7b+nf4-dq+lora-quotes", "opt-6.7b+gptq-w4-odd", "opt-6.7b+int8+lora-quotes"]),
        ("paper-tables.yaml", ["opt-13b+awq-w3-g128", "opt-125m+gptq-w3", "opt-350m+rtn-w4"]),
    ],
)
def test_an_experiment_on_the_hub_is_planned_whole(stand_ins, root, tmp_path, name, made):
    def from_a_pull_request(raw):
        raw["models"]["opt-125m"]["revision"] = "refs/pr/3"

    folder = experiment(root, tmp_path, name, from_a_pull_request)
    planned = folder.planned()
    assert {f"checkpoints/{variant}" for variant in made} | {"report", "evaluations/opt-350m/ptb"} <= planned
    locked = json.loads((folder.path / "sources.lock.json").read_text())
    assert "pytorch_model.bin" in locked["models"]["facebook/opt-125m@refs/pr/3"]["files"]
    large = locked["models"]["facebook/opt-6.7b@main"]["files"]
    assert [name for name in large if "model" in name] == [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]
    assert locked["datasets"]["ptb-text-only/ptb_text_only@refs/convert/parquet"]["licence"] == "mit"


def test_the_speech_experiment_is_planned_whole(stand_ins, root, tmp_path, monkeypatch):
    """Common Voice's archive comes from elsewhere: the demo's release stands in for it."""
    monkeypatch.setenv("COMMON_VOICE", str(root / "assets/speech/cv-corpus-saltmere-1.0"))
    folder = experiment(
        root, tmp_path, "whisper-large-v2-zh.yaml", lambda raw: raw["datasets"]["zh"].update(locale="en", language="zh")
    )
    wanted = {"checkpoints/whisper-large-v2+int8+lora-r32", "evaluations/whisper-large-v2+gptq-w4+lora-r8/zh", "report"}
    assert wanted <= folder.planned()


@pytest.mark.slow
def test_the_paper_tables_in_small(stand_ins, root, tmp_path, tokenizer):
    """The tiny model of the demo in place of OPT-125M, pickled; short windows, few samples, all else as it is."""
    repository = stand_ins.repositories["models/facebook/opt-125m"] = opt_repository(tmp_path / "opt-125m")
    variants = ["opt-125m+rtn-w4", "opt-125m+gptq-w3"]

    def cut_down(raw):
        raw["variants"] = variants
        raw["models"] = {"opt-125m": raw["models"]["opt-125m"]}
        small = {"length": 128, "max_windows": 2, "dtype": "float32"}
        raw["evaluations"] = {"wikitext-2": raw["evaluations"]["wikitext-2"] | small}
        raw["quantizations"] = {
            name: entry | ({"length": 128, "samples": 4} if "samples" in entry else {})
            for name, entry in raw["quantizations"].items()
        }
        raw["expected"] = raw["expected"][:1]
        values = raw["expected"][0]["values"]
        raw["expected"][0]["values"] = {name: values[name] for name in ("opt-125m", *variants)}

    folder = experiment(root, tmp_path, "paper-tables.yaml", cut_down)
    folder.run("--cores", "2")
    html = (folder.work / "report/report.html").read_text()
    assert "</code> were pickled (pytorch_model.bin); they were converted to safetensors." in html
    facts = json.loads((folder.work / "checkpoints/opt-125m/provenance.json").read_text())["facts"]
    digest = hashlib.sha256((repository / "pytorch_model.bin").read_bytes()).hexdigest()
    assert facts["converted"] == {"files": {"pytorch_model.bin": digest}, "torch": hardware.version("torch")}
    assert facts["source"]["hub"] == "facebook/opt-125m"
    assert "Expected and measured" in html and "27.65" in html and html.count("arXiv:2210.17323") >= 3
    stream = text.stream(folder.work / "prepared/wikitext-2/opt-125m", "test", tokenizer)
    assert stream.ids.tolist() == tokenizer("\n\n".join(ROWS))["input_ids"], "the published protocol, token by token"
    _, starts = text.column(folder.work / "prepared/c4-train/opt-125m", "train", "ids")
    assert len(starts) > len(ROWS) / 3
