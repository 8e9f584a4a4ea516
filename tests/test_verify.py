"""`make check`, `make verify` and `make clean-stale`: what they find, what they say, what they leave alone."""

import shutil

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from quantune.artefacts import likeness
from quantune.artefacts.hashes import file_sha256
from tests import records
from tests.workflow import Folder, processes, wait_for, weights

BRANCH = ("checkpoints/opt+rtn-a", "evaluations/opt+rtn-a/log", "evaluations/opt+rtn-a/general")


def record(folder, change) -> None:
    """Change an artefact's provenance, and its list of files to what is there."""

    def edit(found):
        change(found)
        for file in found["files"]:
            file |= {"size": (folder / file["path"]).stat().st_size, "sha256": file_sha256(folder / file["path"])}

    records.change(folder / "provenance.json", edit)


def test_what_is_made_again_is_the_same_to_the_bit(pulled):
    printed = pulled.make("verify", "ONLY=opt+rtn-a work/prepared/log/opt")
    assert printed.count("bit-equal  ") == 4 and "4 of 4 bit-equal, 0 different" in printed
    assert not any((pulled.work / "tmp").iterdir())
    assert pulled.planned() == set() and pulled.clean()


def test_a_terminated_verification_ends_its_jobs(pulled):
    verifying = pulled.begin("python", "-c", "from quantune.upkeep.verify import verify; verify()")
    wait_for(lambda: any(pulled.work.glob("tmp/verify-*/work/tmp/*.lock")))
    (scratch,) = (path for path in pulled.work.glob("tmp/verify-*") if path.is_dir())
    verifying.terminate()
    assert verifying.wait(120) == 128 + 15
    assert processes(".", scratch) == []


def test_other_bits_are_told_by_how_much(pulled):
    """An evaluation off by rounding and a checkpoint of other weights, as another machine may make them."""
    checkpoint = pulled.work / "checkpoints/opt+rtn-a"
    tensors = load_file(checkpoint / "model.safetensors")
    name = max((name for name in tensors if tensors[name].dtype == numpy.float16), key=lambda name: tensors[name].size)
    tensors[name] = tensors[name] * numpy.float16(1.5)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    record(checkpoint, lambda found: found["packages"].update(torch="1.0"))
    printed = pulled.make("verify", "ONLY=work/checkpoints/opt+rtn-a", check=False)
    assert "different         work/checkpoints/opt+rtn-a" in printed and "0 of 1 bit-equal, 1 different" in printed
    assert f"model.safetensors: relative distance 0.33, {name}" in printed
    assert "made with torch 1.0, now " in printed
    kept = printed.split("are kept in ")[1].splitlines()[0]
    assert (pulled.path / kept / "work/checkpoints/opt+rtn-a/model.safetensors").exists()


def test_only_what_is_there_and_asked_for_can_be_verified(pulled):
    assert "'opt+rtn-c' is not in the configuration's report; variants: opt, opt+rtn-a" in pulled.make(
        "verify", "ONLY=opt+rtn-c", check=False
    )
    shutil.rmtree(pulled.work / "checkpoints/opt")
    assert "work/checkpoints/opt is missing; run `snakemake` first" in pulled.make(
        "verify", "ONLY=opt+rtn-a", check=False
    )


def test_a_changed_byte_is_found(pulled):
    path = pulled.work / "evaluations/opt+rtn-a/log/items.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    printed = pulled.make("check", check=False)
    assert "work/evaluations/opt+rtn-a/log/items.parquet is not what was made" in printed
    assert "1 damaged" in printed


@pytest.mark.parametrize(
    ("name", "first", "second", "tolerable"),
    [
        ("a.json", '{"loss": 1.0}', '{"loss": 1.000001}', True),
        ("a.json", '{"loss": 1.0}', '{"loss": 1.1}', False),
        ("a.json", '{"loss": 1.0, "more": 2}', '{"loss": 1.0}', False),
        ("a.json", '{"loss": 1.0}', '{"loss":1.0}', True),
        ("a.csv", "step,loss\n1,2.0\n2,3.0\n", "step,loss\n1,2.0\n2,3.00001\n", True),
        ("a.csv", "step,loss\n1,2.0\n", "step,loss\n1,2.0\n2,3.0\n", False),
        ("a.jsonl", '{"text": "one"}\n', '{"text": "two"}\n', False),
        ("a.txt", "one", "two", False),
        ("a.json", '{"count": 1559033600}', '{"count": 1559033601}', False),
        ("a.json", '{"a": [1.0, Infinity]}', '{"a": [1.0, NaN]}', False),
        ("a.json", '{"a": [Infinity]}', '{"a": [-Infinity]}', False),
        ("a.json", '{"a": null}', "{}", False),
    ],
)
def test_likeness_is_of_the_numbers(tmp_path, name, first, second, tolerable):
    for folder, content in (("first", first), ("second", second)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    assert likeness.differences(tmp_path / "first", tmp_path / "first") == []
    (found,) = likeness.differences(tmp_path / "first", tmp_path / "second")
    assert found.file == name and found.tolerable is tolerable


def test_a_file_without_a_counterpart_is_different(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    (tmp_path / "second/more.txt").write_text("more")
    (found,) = likeness.differences(tmp_path / "first", tmp_path / "second")
    assert not found.tolerable and found.where == "is not in the first"


def test_packed_weights_are_equal_or_not(tmp_path):
    """One bit of each word: next to nothing as a number, another code as a weight."""
    words = numpy.random.default_rng(0).integers(-(2**31), 2**31, (8, 8)).astype(numpy.int32)
    for folder, tensor in (("first", words), ("second", words ^ 1)):
        (tmp_path / folder).mkdir()
        save_file({"weight_packed": tensor}, tmp_path / folder / "model.safetensors")
    (found,) = likeness.differences(tmp_path / "first", tmp_path / "second")
    assert not found.tolerable and "100.00% of 64 whole numbers differ" in found.where


def test_half_an_artefact_and_a_changed_recipe_are_found(pulled):
    (pulled.work / "checkpoints/opt+rtn-a/provenance.json").unlink()
    path = pulled.work / "evaluations/opt+rtn-b/log/provenance.json"
    records.change(path, lambda found: found["recipe"].update(length=64))
    printed = pulled.make("check", check=False)
    assert "work/checkpoints/opt+rtn-a has no provenance.json" in printed
    assert "work/evaluations/opt+rtn-b/log/provenance.json was changed" in printed and "2 damaged" in printed


def test_nothing_is_removed_while_a_job_runs(pulled):
    """Here a chain that the configuration does not name, and what it is made from."""
    pulled.config["variants"] = ["opt+rtn-a"]
    pulled.write(pulled.config)
    running = pulled.begin("snakemake", "--cores", "1", "work/checkpoints/opt+rtn-b+lora@3")
    wait_for(lambda: any(pulled.work.glob("tmp/*.lock")))
    assert "jobs are running here" in pulled.make("clean-stale", "YES=1", check=False)
    assert running.wait(120) == 0
    assert (pulled.work / "checkpoints/opt+rtn-b+lora@3/adapter_model.safetensors").exists()
    assert "removed" in pulled.make("clean-stale", "YES=1")
    assert not (pulled.work / "checkpoints/opt+rtn-b+lora@3").exists()


def test_a_configuration_without_data_is_current_once_it_is_made(tmp_path, finished):
    folder = Folder(tmp_path / "project", {"models": finished.config["models"], "variants": ["opt"]})
    folder.run("--cores", "1")
    assert folder.planned() == set()


def test_what_the_configuration_does_not_ask_for_is_listed_then_removed(pulled):
    before = weights(pulled.work / "checkpoints/opt+rtn-b")
    assert "Nothing is stale" in pulled.make("clean-stale")
    pulled.config["variants"] = ["opt+rtn-b", "opt+nf4+lora"]
    pulled.change(quantizations={"nf4": {"double_quantization": False}})
    (pulled.work / "tmp/0123456789abcdef.opt+old").mkdir(parents=True)
    listed = pulled.make("clean-stale")
    assert "work/checkpoints/opt+rtn-a  (in no chain of the configuration)" in listed
    assert "work/checkpoints/opt+nf4  (double_quantization: true -> false)" in listed
    assert "work/tmp/0123456789abcdef.opt+old  (left by a job that is not needed)" in listed
    assert "Nothing was removed; `make clean-stale YES=1`" in listed
    assert "YES=no is not allowed: write YES=1" in pulled.make("clean-stale", "YES=no", check=False)
    assert all((pulled.work / path).exists() for path in BRANCH), "it was only listed"

    planned = pulled.planned()
    pulled.make("clean-stale", "YES=1")
    assert not any((pulled.work / path).exists() for path in BRANCH) and not any((pulled.work / "tmp").iterdir())
    assert not (pulled.work / "evaluations/opt+rtn-a").exists()
    assert weights(pulled.work / "checkpoints/opt+rtn-b") == before
    assert pulled.planned() == planned, "nothing is made that would not have been made anyway"
    assert "Nothing is stale" in pulled.make("clean-stale")
    pulled.tell("git", "checkout", "--quiet", "config.yaml")
    pulled.tell("dvc", "checkout")
    assert pulled.planned() == set() and pulled.clean()
