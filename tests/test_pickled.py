"""Pickled weights: converted to safetensors bit by bit, in a process without network, and refused if they hold more."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from quantune.core.errors import ConfigError, QuantuneError
from quantune.models import loading, stored
from quantune.models.foreign import pickled
from quantune.planning import load
from tests.attack.test_model_folders import model_job, run_job  # noqa: F401 (fixture)
from tests.hub import OPT, opt_repository

WEIGHTS = load_file(OPT / "model.safetensors")
EMBEDDING = WEIGHTS["model.decoder.embed_tokens.weight"]
TEXTS = ["The tide rises.", "", "  two </s> wörld\n\n<pad>", "1234 don't — ’s"]


class Code:
    """Runs a program when it is unpickled by Python's own reader."""

    def __init__(self, program: str):
        self.program = program

    def __reduce__(self):
        return os.system, (self.program,)


def logits(folder) -> torch.Tensor:
    with torch.inference_mode():
        return loading.model([folder], "float32")(torch.arange(2, 66)[None]).logits


@pytest.fixture(scope="module")
def original() -> torch.Tensor:
    """The logits of opt-2m, from its safetensors."""
    return logits(OPT)


def edit(folder, change, **options) -> None:
    """Change the content of a pickle."""
    content = torch.load(folder / stored.PICKLE, weights_only=True)
    torch.save(change(content), folder / stored.PICKLE, **options)


OLD = {"_use_new_zipfile_serialization": False}
HEAD_FIRST = {"lm_head.weight": EMBEDDING}
CASES = {
    "as on the hub": ({}, None),
    "no head": ({"head": False}, None),
    "no prefix": ({"prefix": ""}, None),
    "no prefix, no head": ({"prefix": "", "head": False}, None),
    "shards": ({"shards": 3}, None),
    "shards, no prefix": ({"shards": 2, "prefix": "", "head": False}, None),
    "before torch 1.6": ({}, lambda folder: edit(folder, lambda found: found, **OLD)),
    "head first": ({}, lambda folder: edit(folder, lambda found: {"lm_head.weight": found["lm_head.weight"]} | found)),
    "parameters": (
        {"head": False},
        lambda folder: edit(folder, lambda found: {name: torch.nn.Parameter(found[name]) for name in found}),
    ),
}
"""Name -> arguments of `opt_repository`, and a change of the folder."""


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_is_the_original(raw, tmp_path, model_job, original, case):  # noqa: F811
    arguments, change = CASES[case]
    folder = opt_repository(tmp_path / "opt", **arguments)
    if change:
        change(folder)
    made = run_job(model_job, raw, folder, tmp_path)
    shards = arguments.get("shards", 1)
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    assert sorted(path.name for path in made.glob("*.safetensors")) == (names if shards > 1 else [stored.SINGLE])
    assert (made / stored.INDEX).exists() == (shards > 1)
    assert not list(made.glob("*.bin*")) and (made / "merges.txt").exists() and not (made / "tf_model.h5").exists()
    tensors = stored.tensors([*made.glob("*.safetensors"), *made.glob("*.index.json")])
    assert {tensor.dtype for tensor in tensors.values()} == {"F16"}
    assert len(tensors) == len(WEIGHTS) + (shards > 1 and arguments.get("head", True)), "a shared tensor is there once"
    assert torch.equal(logits(made), original)
    tokenizer, expected = loading.tokenizer(made), loading.tokenizer(OPT)
    assert tokenizer(TEXTS)["input_ids"] == expected(TEXTS)["input_ids"] and tokenizer("")["input_ids"] == [2]
    if case == "as on the hub":
        assert (made / stored.SINGLE).read_bytes() == (OPT / stored.SINGLE).read_bytes()
        again = pickled.convert(list(folder.iterdir()), tmp_path / "again")
        assert [path.read_bytes() for path in again] == [(made / stored.SINGLE).read_bytes()]


def test_embeddings_that_are_not_tied_are_both_written(tmp_path):
    folder = opt_repository(tmp_path / "opt")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    (made,) = pickled.convert(list(folder.iterdir()), tmp_path / "made")
    assert torch.equal(load_file(made)["lm_head.weight"], EMBEDDING)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_code_is_never_run(raw, tmp_path, model_job, old):  # noqa: F811
    folder = opt_repository(tmp_path / "opt")
    options = OLD if old else {}
    torch.save(WEIGHTS | {"x": Code(f"touch {tmp_path / 'ran'}")}, folder / stored.PICKLE, **options)
    with pytest.raises(QuantuneError) as caught:
        run_job(model_job, raw, folder, tmp_path)
    (line,) = str(caught.value).splitlines()
    assert line == (
        f"'{folder}': pytorch_model.bin: holds 'posix.system', which is code or an object of Python, and is never "
        "loaded; allowed: tensors alone, by name; give the original model's safetensors, or save `model.state_dict()` "
        "again"
    )
    assert not (tmp_path / "ran").exists() and not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (WEIGHTS | {"epoch": 3}, "the entry 'epoch' is of type int; allowed: tensors alone"),
        ({"state_dict": WEIGHTS}, "the entry 'state_dict' is of type dict; allowed: tensors alone"),
        ({"a": [EMBEDDING]}, "the entry 'a' is of type list"),
        ({3: EMBEDDING}, "the entry 3 has no name of a tensor"),
        ({"a\nb": EMBEDDING}, r"the entry 'a\nb' has no name of a tensor"),
        ({"a": torch.eye(2).to_sparse()}, "the entry 'a' is a tensor of another kind (torch.sparse_coo, float32)"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "of another kind (torch.strided, complex64)"),
        ({"a": torch.zeros(2, device="meta")}, "of another kind"),
        ({"a": torch.zeros(1).expand(10**12)}, "the entry 'a' has the shape [1000000000000], but fewer values"),
        ({}, "holds no tensors"),
        ([EMBEDDING], "holds one list"),
        ({"a": slice(3)}, "holds 'slice', which is code or an object of Python"),
        ({"a": torch.nn.Linear(2, 2)}, "holds 'torch.nn.modules.linear.Linear', which is code or an object of Python"),
        (b"\x80\x02garbage", "holds something else than tensors, or is damaged"),
        (b"\x80", "is damaged, cut off or no weights of torch"),
    ],
)
def test_a_pickle_holds_tensors_alone(tmp_path, content, problem):
    path = tmp_path / stored.PICKLE
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(QuantuneError) as caught:
        pickled._convert(path, tmp_path / "made", tied=True)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"pytorch_model.bin: {problem}") or problem in line
    assert len(line) < 400 and not (tmp_path / "made").exists()


def test_views_of_one_memory_are_written_apart(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    content = {"all": whole, "turned": whole.T, "row": whole[1], "number": torch.tensor(3), "no": torch.zeros(0, 2)}
    torch.save(content, tmp_path / stored.PICKLE)
    pickled._convert(tmp_path / stored.PICKLE, tmp_path / "made", tied=True)
    found = load_file(tmp_path / "made")
    assert found.keys() == content.keys() and all(torch.equal(found[name], content[name]) for name in content)


def planning_error(raw, folder) -> str:
    with pytest.raises(ConfigError) as caught:
        load.load(raw | {"models": {"opt": {"path": str(folder)}}})
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data[: len(data) // 2], "pytorch_model.bin: is damaged or cut off (File is not a zip file)"),
        (lambda data: b"", "pytorch_model.bin: holds no weights that `torch.save` wrote"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "pytorch_model.bin: is a Git LFS pointer"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_before_any_job(raw, tmp_path, change, problem):
    path = opt_repository(tmp_path / "opt") / stored.PICKLE
    path.write_bytes(change(path.read_bytes()))
    assert f"models.opt.path: '{path.parent}': {problem}" in planning_error(raw, path.parent)


def test_a_vocabulary_without_its_merges_is_refused_before_any_job(raw, tmp_path):
    """transformers would read the text byte by byte."""
    folder = opt_repository(tmp_path / "opt")
    (folder / "merges.txt").unlink()
    assert "has no whole tokenizer: vocab.json needs merges.txt; copy the tokenizer's" in planning_error(raw, folder)


def test_shards_are_checked_before_any_job(raw, tmp_path, model_job):  # noqa: F811
    folder = opt_repository(tmp_path / "opt", shards=2)
    index = json.loads((folder / stored.PICKLE_INDEX).read_text())
    index["weight_map"]["other.weight"] = index["weight_map"]["lm_head.weight"]
    (folder / stored.PICKLE_INDEX).write_text(json.dumps(index))
    with pytest.raises(QuantuneError, match=r"names 'other\.weight' in .*00002-of-00002\.bin, which does not"):
        run_job(model_job, raw, folder, tmp_path)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "names pytorch_model-00002-of-00002.bin, which the folder does not hold" in planning_error(raw, folder)
    index["weight_map"]["other.weight"] = "../x.bin"
    (folder / stored.PICKLE_INDEX).write_text(json.dumps(index))
    assert "names the file '../x.bin'; allowed: the name of a *.bin file in the same" in planning_error(raw, folder)


def test_a_reader_that_dies_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "main", pickled._refuse)
    monkeypatch.setattr(pickled._refuse, "__module__", "no.such.module")
    folder = opt_repository(tmp_path / "opt")
    with pytest.raises(QuantuneError, match="the process that reads the pickled weights ended with exit code 1"):
        pickled.convert(list(folder.iterdir()), tmp_path / "made")


def test_the_reader_has_no_network_no_programs_and_no_credentials(tmp_path, monkeypatch):
    """The same walls around a script that tries."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        tries = f"""
import os, socket, subprocess, sys
from quantune.models.foreign import pickled
plain = socket.socket()
plain.settimeout(5)
pickled._leave_network()
inner = socket.socket()
inner.settimeout(5)
print("reached" if inner.connect_ex({address!r}) == 0 else "alone")
sys.addaudithook(pickled._refuse)
for attempt in (socket.socket, lambda: os.system("true"), lambda: subprocess.run(["true"]), os.fork):
    try:
        attempt()
        print("allowed")
    except PermissionError as error:
        print(error)
"""
        done = subprocess.run([sys.executable, "-c", tries], text=True, capture_output=True, check=True).stdout.split(
            "\n"
        )
    assert done[0] == "alone" or subprocess.run(["unshare", "-n", "true"]).returncode
    assert "allowed" not in done and len([line for line in done if "is not allowed while pickled" in line]) == 4
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen = []
    monkeypatch.setattr(pickled.subprocess, "run", lambda *_, env, **__: seen.append(env) or sys.exit())
    folder = opt_repository(tmp_path / "opt")
    with pytest.raises(SystemExit):
        pickled.convert(list(folder.iterdir()), tmp_path / "made")
    assert "PATH" in seen[0] and not any("TOKEN" in name for name in seen[0])
