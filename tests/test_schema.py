"""The JSON schema that editors use, and the configurations that come with the repository."""

import glob
import json
import os

import jsonschema
import pytest
import yaml

from quantune import evaluations, finetunings, quantizations
from quantune.evaluations import benchmark
from quantune.planning import config, load

ENTRIES = [
    config.Config,
    config.Model,
    config.Text,
    config.Speech,
    config.Recording,
    benchmark.Benchmark,
    config.Expected,
    *quantizations.methods(),
    *finetunings.methods(),
    *evaluations.kinds(),
]
FIELDS = [(entry, name) for entry in ENTRIES for name in entry.model_fields]
EXPERIMENTS = os.path.join(os.path.dirname(__file__), "..", "experiments")


@pytest.fixture(scope="module")
def validator():
    return jsonschema.Draft202012Validator(load.schema())


def test_the_schema_in_the_repository_is_that_of_the_typed_models(root):
    written = json.loads((root / "schemas/config.schema.json").read_text())
    assert written == json.loads(json.dumps(load.schema())), "run `make schema`"


def test_the_file_is_what_make_schema_writes(root, tmp_path):
    load.write_schema(tmp_path / "new.json")
    assert (tmp_path / "new.json").read_text() == (root / "schemas/config.schema.json").read_text()


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(load.schema())


@pytest.mark.parametrize(("entry", "name"), FIELDS, ids=[f"{entry.__name__}.{name}" for entry, name in FIELDS])
def test_every_key_is_described(entry, name):
    assert len((entry.model_fields[name].description or "").strip()) > 8


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_every_entry_says_what_it_is(entry):
    assert len(entry.__doc__ or "") > 20


def test_the_tables_of_methods_hold_at_least_what_the_spine_has():
    methods = {value.__name__ for value in [*quantizations.methods(), *finetunings.methods(), *evaluations.kinds()]}
    assert {"RoundToNearest", "Int8", "NormalFloat4", "LoRA", "Perplexity", "Generation", "Transcription"} <= methods
    assert "Packed" not in methods and "BitsAndBytes" not in methods


def test_a_valid_configuration_validates(validator, raw):
    assert [error.message for error in validator.iter_errors(raw)] == []


@pytest.mark.parametrize(
    ("section", "name", "entry"),
    [
        ("quantizations", "rtn-w7", {"method": "rtn", "bits": 7}),
        ("quantizations", "other", {"method": "rtm"}),
        ("quantizations", "other", {"bits": 4}),
        ("quantizations", "other", {"method": "int8", "bits": 8}),
        ("finetunings", "other", {"method": "lora"}),
        ("evaluations", "other", {"kind": "generation", "prompts": []}),
        ("datasets", "other", {"path": "x", "splits": {"train": 1.5}}),
        ("models", "other", {}),
        ("quantizations", "RTN_w4", {"method": "rtn"}),
    ],
)
def test_the_schema_refuses_what_the_models_refuse(validator, raw, section, name, entry):
    raw[section][name] = entry
    assert [error.path[0] for error in validator.iter_errors(raw)] == [section]


def test_the_repositorys_own_configuration(root, monkeypatch, validator):
    monkeypatch.chdir(root)
    raw = yaml.safe_load((root / "config.yaml").read_text())
    assert [error.message for error in validator.iter_errors(raw)] == []
    loaded = load.load(raw, "config.yaml")
    assert len(loaded.listed) > 1 and len(loaded.evaluations) > 0
    assert all(variant in loaded.evaluated for variant in loaded.listed)


@pytest.mark.parametrize("name", sorted(glob.glob("**/*.yaml", root_dir=EXPERIMENTS, recursive=True)))
def test_the_ready_experiments(root, tmp_path, monkeypatch, validator, name):
    text = (root / "experiments" / name).read_text()
    raw = yaml.safe_load(text)
    assert [error.message for error in validator.iter_errors(raw)] == []
    shared = os.environ.get("QUANTUNE_DATA") or str(root.parent / "shared")
    if "$QUANTUNE_DATA" in text and not os.path.isdir(shared):
        pytest.skip("needs models and data that are not in the repository: set QUANTUNE_DATA to their folder")
    real = os.environ.get("REAL", "")
    if "$REAL" in text and not os.path.isdir(real):
        pytest.skip("needs real models that are not in the repository: set REAL to their folder")
    monkeypatch.setenv("QUANTUNE_DATA", shared)
    (tmp_path / "release.tar.gz").touch()
    for variable in ("COMMON_VOICE", "TEST_ZH"):
        monkeypatch.setenv(variable, str(tmp_path / "release.tar.gz"))
    monkeypatch.chdir(root)
    loaded = load.load(raw, name)
    assert loaded.variants and loaded.work not in ("work", ""), "an experiment names its own work folder"
