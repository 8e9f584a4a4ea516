"""What runs again and what does not: decided by recipe digests, never by dates."""

import json
import os
import random
import re
import shutil

from quantune.artefacts.hashes import file_sha256
from quantune.evaluations.metrics import normalizers
from quantune.planning import load
from quantune.planning.plan import Plan
from tests import records
from tests.voices import RELEASE, WHISPER
from tests.workflow import Folder, weights

RTN_A = {"checkpoints/opt+rtn-a", "evaluations/opt+rtn-a/log", "evaluations/opt+rtn-a/general", "report"}


def test_a_second_run_has_nothing_to_do(project):
    assert "Nothing to be done" in project.run("--cores", "2")


def test_changed_bits_plan_exactly_that_branch_and_the_log_says_why(project):
    project.change(quantizations={"rtn-a": {"bits": 3}})
    assert project.planned() == RTN_A
    printed = project.run("--cores", "2")
    assert "[made again because bits: 8 -> 3]" in printed
    assert "bits: 8 -> 3" in (project.work / "logs/quantize/opt+rtn-a.log").read_text()
    assert project.planned() == set()

    project.change(quantizations={"rtn-a": {"bits": 8}})
    assert project.planned() == RTN_A
    assert "[made again because bits: 3 -> 8]" in project.run("--dry-run")


def test_a_change_reaches_every_descendant(project):
    project.change(finetunings={"lora": {"rank": 4}})
    trained = {"opt+lora", "opt+nf4+lora", "opt+lora+merge", "opt+lora+merge+rtn-b"}
    expected = {f"checkpoints/{name}" for name in trained}
    expected |= {f"evaluations/{name}/{item}" for name in trained for item in ("log", "general")}
    assert project.planned() == expected | {"report"}


def test_settings_that_change_no_result_rerun_no_job_that_computes(project):
    project.change(finetunings={"lora": {"save_every": 5}}, evaluations={"log": {"general": True}})
    assert project.planned() == {"report"}


def test_dates_mean_nothing(project):
    chance = random.Random(0)
    for folder, _, names in os.walk(project.work):
        for path in [folder, *(os.path.join(folder, name) for name in names)]:
            date = chance.randrange(1_000_000_000, 1_700_000_000)
            os.utime(path, (date, date), follow_symlinks=False)
    assert project.planned() == set()


def test_snakemakes_records_mean_nothing(project):
    shutil.rmtree(project.path / ".snakemake")
    shutil.rmtree(project.work / "logs")
    assert project.planned() == set()


def test_a_deleted_weight_file_is_made_again_and_nothing_else(project):
    checkpoint = project.work / "checkpoints/opt+rtn-a"
    before = weights(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    assert project.planned() == {"checkpoints/opt+rtn-a"}
    assert "model.safetensors is missing" in project.run("--cores", "2")
    assert weights(checkpoint) == before
    assert project.planned() == set()


KEPT = ("data", "checkpoints", "measurements", "all")


def test_what_is_deleted_is_made_again_and_nothing_that_rests_on_it(project):
    gone = {"checkpoints/opt", "prepared/general/opt", "evaluations/opt+rtn-b/log"}
    for path in gone:
        shutil.rmtree(project.work / path)
    assert project.planned() == set(), "the report is there"
    assert project.planned(*KEPT) == gone
    project.run(*KEPT, "--cores", "2")
    assert project.planned(*KEPT) == set()
    shutil.rmtree(project.work / "prepared/general")
    forced = project.planned("--forcerun", "work/evaluations/opt+rtn-a/general")
    assert {"prepared/general/opt", "evaluations/opt+rtn-a/general"} <= forced


def test_other_bits_of_a_checkpoint_make_its_numbers_again(project):
    """As made by another machine: its files agree with its provenance, but not with what was evaluated."""
    checkpoint = project.work / "checkpoints/opt+rtn-a"
    (checkpoint / "README.md").write_text("Other bits.")
    more = {"path": "README.md", "size": 11, "sha256": file_sha256(checkpoint / "README.md")}
    records.change(checkpoint / "provenance.json", lambda provenance: provenance["files"].append(more))
    assert project.planned() == RTN_A - {"checkpoints/opt+rtn-a"}
    asked = "work/evaluations/opt+rtn-a/log"
    printed = project.run(asked, "--cores", "2")
    assert "[made again because ancestor rebuilt with different bytes: work/checkpoints/opt+rtn-a]" in printed
    assert project.planned(asked) == set()

    (checkpoint / "model.safetensors").unlink()  # now made here, as at first: the number is of the other bits
    printed = project.run(asked, "--cores", "2", check=False)
    assert re.search(r"opt\+rtn-a was rebuilt with different bytes .* run the same command again", printed)
    assert project.planned(asked) == {"evaluations/opt+rtn-a/log", "evaluations/opt+rtn-a/general"}, (
        "one job makes both"
    )


def test_a_file_of_the_same_size_from_elsewhere_is_noticed(project):
    """As an interrupted checkout leaves it, between two trainings that differ in a number."""
    path = project.work / "checkpoints/opt+lora/adapter_model.safetensors"
    content, date = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(date, date))
    assert project.planned() == {"checkpoints/opt+lora"}


def test_a_truncated_weight_file_is_made_again(project):
    path = project.work / "checkpoints/opt+lora+merge/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert project.planned() == {"checkpoints/opt+lora+merge"}


def test_another_checkout_of_a_checkpoint_reruns_only_it(project, finished):
    """As after `git checkout` of another configuration without its artefacts: the evaluation is current already."""
    for name in ("provenance.json", "run.json"):
        path = project.work / "checkpoints/opt+rtn-a" / name
        records.change(path, lambda record: record.update(digest="0" * 64))
    assert project.planned() == {"checkpoints/opt+rtn-a"}


def test_changed_source_text_reruns_what_was_read_from_it(project, tmp_path):
    copy = tmp_path / "general"
    shutil.copytree(project.config["datasets"]["general"]["path"], copy)
    project.change(datasets={"general": {"path": str(copy)}})
    assert project.planned() == set(), "the same content at another path is the same source"
    with (copy / "test.txt").open("a") as file:
        file.write("\n\nA sentence that was not there before.\n")
    names = {"opt", "opt+rtn-a", "opt+rtn-b", "opt+lora", "opt+lora+merge", "opt+lora+merge+rtn-b", "opt+nf4"}
    expected = {f"evaluations/{name}/general" for name in names | {"opt+nf4+lora"}}
    assert project.planned() == expected | {"sources/general", "prepared/general/opt", "report"}


def test_another_normalizer_makes_the_report_again_and_nothing_else(tmp_path, monkeypatch):
    sections = {
        "models": {"whisper": {"path": str(WHISPER)}},
        "datasets": {"talks": {"layout": "common-voice", "path": str(RELEASE), "splits": {"test": "test"}}},
        "evaluations": {"talks": {"kind": "transcription", "dataset": "talks", "max_clips": 8, "max_new_tokens": 40}},
        "variants": ["whisper"],
    }
    folder, told, rates = Folder(tmp_path / "project", sections), [], []
    for name in ("english", "basic"):
        folder.change(evaluations={"talks": {"normalizer": name}})
        if rates:
            assert folder.planned() == {"report"}
        folder.run("--cores", "1")
        html = (folder.work / "report/report.html").read_text()
        lineage = json.loads(re.search(r'id="lineage">(.*?)</script>', html)[1])
        told.append(lineage["work/evaluations/whisper/talks"]["numbers"]["normalizer"])
        rates.append(json.loads((folder.work / "report/metrics.json").read_text())["whisper"])
    assert told == ["english 1", "basic 2"]
    assert rates[0]["talks.cer"] != rates[1]["talks.cer"] and rates[0]["talks.cer_raw"] == rates[1]["talks.cer_raw"]

    digests = []
    for version in (2, 3):
        monkeypatch.setitem(normalizers.VERSIONS, "basic", version)
        plan = Plan(load.load(folder.config))
        digests.append((plan.evaluation("whisper", "talks").digest, plan.report().digest))
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]
