"""The configuration's errors: one line for each problem, with the key's path, what is wrong and what is allowed."""

import pytest

from quantune.core.errors import ConfigError
from quantune.core.recipe import NAME
from quantune.evaluations.generation import Generation
from quantune.finetunings.lora import LoRA
from quantune.planning import load
from quantune.quantizations.gptq import GPTQ
from quantune.sources.entries import Speech, Text

DROP = object()  # the key is removed
INTERNALS = (
    "pydantic",
    "constrained-",
    "function-",
    "after validation",
    "instance of",
    "extract fields",
    "unable to interpret",
    "tagged",
)
ONLY_ARTEFACT_NAMES = f"is not a name; names are lower-case letters, digits, '.' and '-' ({NAME})"


def change(raw: dict, edits: dict) -> dict:
    """Apply edits such as {"finetunings.lora.rank": 8}."""
    for key, value in edits.items():
        *path, last = key.split(".")
        place = raw
        for part in path:
            place = place[part]
        if value is DROP:
            del place[last]
        else:
            place[last] = value
    return raw


def problems(raw: dict) -> list[str]:
    """Return the lines of the error that a configuration raises, without its name before each."""
    with pytest.raises(ConfigError) as caught:
        load.load(raw, "my.yaml")
    lines = str(caught.value).split("\n")
    assert all(line.startswith("my.yaml: ") for line in lines)
    return [line.removeprefix("my.yaml: ") for line in lines]


def test_a_valid_configuration_loads(raw):
    loaded = load.load(raw)
    listed = ["opt+rtn-w4", "opt+rtn-w8", "opt+nf4+lora", "opt+lora+merge+rtn-w4"]
    assert [str(item) for item in loaded.listed] == listed
    assert [str(item) for item in loaded.evaluated] == [
        "opt",
        "opt+rtn-w4",
        "opt+rtn-w8",
        "opt+nf4",
        "opt+nf4+lora",
        "opt+lora",
        "opt+lora+merge",
        "opt+lora+merge+rtn-w4",
    ]
    assert loaded.track("opt") == "text"


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("quantisations", {}, ["unknown key; did you mean 'quantizations'?; allowed: work, title, seed"]),
        ("models.opt.pth", "x", ["unknown key; did you mean 'path'?; allowed: path, hub, revision"]),
        ("datasets.harbour.colum", "x", ["unknown key; did you mean 'column'?; allowed: path, hub, revision, urls,"]),
        ("quantizations.rtn-w4.groupsize", 32, ["unknown key; did you mean 'group_size'?", "bits, group_size"]),
        ("quantizations.nf4.bits", 4, ["unknown key", "allowed: ", "double_quantization", "compute_dtype"]),
        ("finetunings.lora.learning-rate", 0.1, ["unknown key; did you mean 'learning_rate'?", "alpha, dropout"]),
        ("evaluations.harbour.strid", 8, ["unknown key; did you mean 'stride'?", "allowed: kind, dataset, split"]),
        ("evaluations.prompts.dataset", "news", ["allowed: kind, prompts, chat, max_new_tokens, sampling, dtype"]),
        ("quantizations.rtn-w4.bits", 7, ["7 is not allowed; allowed: 2, 3, 4, 5, 6 or 8"]),
        ("quantizations.rtn-w4.method", "rtm", ["'rtm' is not known; allowed: ", "; did you mean 'rtn'?"]),
        ("quantizations.rtn-w4.method", DROP, ["is missing; allowed: ", "nf4", "rtn"]),
        ("evaluations.harbour.kind", "perplexty", ["'perplexty' is not known", "; did you mean 'perplexity'?"]),
        ("evaluations.harbour.kind", DROP, ["is missing; allowed: ", "generation", "perplexity"]),
        ("finetunings.lora.method", "lorra", ["'lorra' is not", "allowed: ", "lora"]),
        ("finetunings.lora.schedule", "step", ["'step' is not allowed; allowed: 'constant', 'linear' or 'cosine'"]),
        ("datasets.harbour.document", "page", ["'page' is not allowed; allowed: 'file', 'paragraph' or 'line'"]),
        ("datasets.harbour.remove_leaks", True, ["True is not allowed; allowed: 'none', 'exact' or 'near'"]),
        ("finetunings.lora.dataset", "harbor", ["'harbor' is not a dataset", "harbour, news; did you mean 'harbour'?"]),
        ("finetunings.lora.train_split", "trian", ["'trian' is not a split of the dataset 'harbour'", "mean 'train'?"]),
        ("finetunings.lora.validation_split", "xyz", ["'xyz' is not a split", "allowed: train, validation, test"]),
        ("evaluations.news.dataset", "new", ["'new' is not a dataset; allowed: harbour, news; did you mean 'news'?"]),
        ("evaluations.news.split", "tset", ["of the dataset 'news'; allowed: train, test; did you mean 'test'?"]),
        ("finetunings.lora.learning_rate", -0.1, ["greater than 0, found -0.1"]),
        ("finetunings.lora.learning_rate", 0, ["greater than 0, found 0"]),
        ("finetunings.lora.learning_rate", "fast", ["valid number", "found 'fast'"]),
        ("finetunings.lora.rank", 8.5, ["valid integer", "found 8.5"]),
        ("finetunings.lora.dropout", 1, ["less than 1, found 1"]),
        ("finetunings.lora.steps", 0, ["greater than 0, found 0"]),
        ("finetunings.lora.dataset", DROP, ["is missing; Name of the dataset to train on"]),
        ("evaluations.harbour.stride", -1, ["greater than 0, found -1"]),
        ("quantizations.rtn-w4.group_size", 6, ["multiple of 4, found 6"]),
        ("quantizations.rtn-w4.group_size", -4, ["greater than 0, found -4"]),
        ("models.opt.hub", "opt", ["'opt' is not a repository on the hub; give owner/name, such as facebook/opt-125m"]),
        ("models.opt.path", 3, ["valid string, found 3"]),
        ("models.opt.path", "/nowhere/opt", ["'/nowhere/opt' does not exist"]),
        ("models", DROP, ["is missing; Name -> model that chains begin with"]),
        ("variants", DROP, ["is missing; Chains to compare"]),
        ("variants", "opt", ["valid list, found 'opt'"]),
        ("threads", 0, ["greater than 0, found 0"]),
        ("title", 5, ["valid string, found 5"]),
        ("quantizations.RTN", {"method": "int8"}, [f"'RTN' {ONLY_ARTEFACT_NAMES}"]),
        ("models.my_opt", {"path": "x"}, [f"'my_opt' {ONLY_ARTEFACT_NAMES}"]),
        ("evaluations.a+b", {"kind": "generation", "prompts": ["x"]}, [f"'a+b' {ONLY_ARTEFACT_NAMES}"]),
        ("datasets.harbour.splits.Dev", "validation.txt", [f"'Dev' {ONLY_ARTEFACT_NAMES}"]),
        ("quantizations.merge", {"method": "int8"}, ["'merge' is reserved for merging adapters; choose another name"]),
        ("datasets.news.splits", {"train": 0.9, "test": 0.2}, ["the shares add up to 1.1; at most 1 is allowed"]),
    ],
)  # fmt: skip
def test_one_problem_is_one_line_that_begins_with_its_key(raw, key, value, parts):
    (found,) = problems(change(raw, {key: value}))
    assert found.startswith(f"{key}: ")
    assert [part for part in parts if part not in found] == []
    assert [word for word in INTERNALS if word in found] == []


FILE = {"url": "https://x.org/b", "sha256": "0" * 64}
SINGLE = [
    ("datasets.news.splits.test", 1.5, "", ["1.5"]),
    ("finetunings.lora.target_modules", "all", "", ["'all'", "all-linear"]),
    ("models.opt.path", DROP, "models.opt", ["give exactly one of path, hub; found none"]),
    ("models.opt.hub", "a/b", "models.opt", ["give exactly one of path, hub; found path and hub"]),
    ("models.opt.revision", "v1", "models.opt", ["'revision' belongs to 'hub'; leave it out"]),
    ("datasets.news.path", DROP, "datasets.news", ["give exactly one of path, hub, urls, texts; found none"]),
    ("datasets.web", {"urls": {"a/b.txt": FILE}}, "datasets.web.urls.a/b.txt", ["is not a file name; give one"]),
    ("datasets.web", {"urls": {"b.txt": "https://x.org/b"}}, "datasets.web.urls.b.txt", ["keys and values expected"]),
    ("datasets.web", {"urls": {"b.txt": FILE | {"url": "x.org"}}}, "datasets.web.urls.b.txt.url", ["is not a URL"]),
    ("datasets.web", {"urls": {"b.txt": FILE | {"sha256": "0"}}}, "datasets.web.urls.b.txt.sha256", ["is not a SHA"]),
    ("datasets.web", {"urls": {"b.txt": {"url": FILE["url"]}}}, "datasets.web.urls.b.txt.sha256", ["is missing; SHA"]),
    ("datasets.web", {"urls": {"b.txt": FILE | {"sha": "0"}}}, "datasets.web.urls.b.txt.sha", ["allowed: url, sha256"]),
    ("finetunings.lora.epochs", 2, "finetunings.lora", ["either 'steps' or 'epochs'"]),
    ("finetunings.lora.steps", DROP, "finetunings.lora", ["either 'steps' or 'epochs'"]),
    ("evaluations.harbour.stride", 16, "evaluations.harbour", ["16", "below length 16", "null"]),
    ("quantizations.rtn-w4.group_size", 96, "", ["96", "128", "64, 32"]),
    ("finetunings.lora.method", DROP, "", ["is missing; allowed: ", "lora"]),
    ("finetunings.lora.schedule", "cosin", "", ["did you mean 'cosine'?"]),
    ("finetunings.lora.nf4", True, "", ["unknown key"]),
    ("work", "", "", []),
    ("models.opt", "assets/opt", "", []),
    ("quantizations.nf4", None, "", []),
    ("finetunings.lora", "lora", "", []),
    ("models", {}, "", []),
    ("variants", [], "", []),
    ("deterministic", "perhaps", "", ["true", "false"]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "where", "parts"), SINGLE)
def test_one_problem_is_one_line(raw, key, value, where, parts):
    """As above, and no Python object printed."""
    (found,) = problems(change(raw, {key: value}))
    assert found.startswith(where or f"{key}: ")
    assert [part for part in parts if part not in found] == []
    assert [word for word in (*INTERNALS, "{") if word in found] == []


def test_all_problems_of_one_kind_are_listed_at_once(raw):
    edits = {"titel": "x", "models.opt.pth": "x", "quantizations.rtn-w4.bits": 7, "finetunings.lora.rank": 0}
    assert {line.split(":")[0] for line in problems(change(raw, edits))} == set(edits)


def test_wrong_references_are_listed_at_once(raw):
    edits = {
        "finetunings.lora.train_split": "trian",
        "finetunings.lora.validation_split": "valid",
        "evaluations.harbour.dataset": "harbor",
        "evaluations.news.split": "tset",
    }
    assert [line.split(":")[0] for line in problems(change(raw, edits))] == list(edits)


def test_every_wrong_path_and_chain_is_listed_at_once(raw):
    edits = {"models.opt.path": "/nowhere", "datasets.harbour.path": "/nowhere", "datasets.news.path": "/nowhere"}
    assert [line.split(":")[0] for line in problems(change(raw, edits))] == list(edits)
    more = problems(change(raw, {"models.opt.path": "/nowhere", "variants": ["opt+nf5"]}))
    assert any(line.startswith("variants: variant 'opt+nf5': 'nf5' is not a step") for line in more)


def test_every_wrong_chain_is_listed_with_what_to_type(raw):
    found = problems(change(raw, {"variants": ["opt+rtn-w{4,8}", "opt+lora+nf4", "opt+nf{4,5}", "opr"]}))
    assert found[0] == (
        "variants: variant 'opt+lora+nf4': 'nf4' cannot quantize the adapter 'opt+lora'; "
        "merge it first: 'opt+lora+merge+nf4'"
    )
    assert found[1].startswith("variants: variant 'opt+nf5': 'nf5' is not a step; steps: rtn-w4, rtn-w8, nf4, lora, ")
    assert found[1].endswith("; did you mean 'nf4'?")
    assert found[2] == "variants: variant 'opr': 'opr' is not a model; models: opt; did you mean 'opt'?"
    assert len(found) == 3


@pytest.mark.parametrize(
    ("section", "name", "taken"),
    [("finetunings", "rtn-w4", "quantizations"), ("quantizations", "opt", "models"), ("finetunings", "opt", "models")],
)
def test_names_of_models_and_steps_must_differ(raw, section, name, taken):
    entries = raw[section]
    entries[name] = next(iter(entries.values()))
    assert problems(raw)[0] == f"{section}.{name}: the name is taken by {taken}.{name}; names must differ"


def test_names_of_datasets_and_evaluations_may_equal_those_of_steps(raw):
    raw["datasets"]["lora"] = raw["datasets"]["news"]
    raw["evaluations"]["opt"] = raw["evaluations"]["prompts"]
    assert load.load(raw).listed


@pytest.mark.parametrize("section", ["models", "quantizations", "finetunings"])
def test_merge_is_reserved(raw, section):
    entries = raw[section]
    entries["merge"] = next(iter(entries.values()))
    found = problems(raw)
    assert found[0] == f"{section}.merge: 'merge' is reserved for merging adapters; choose another name"


def test_splits_are_all_files_or_all_shares(raw):
    (found,) = problems(change(raw, {"datasets.harbour.splits.test": 0.1}))
    assert found == "datasets.harbour.splits: give all splits as files, or all as shares"


def test_leaks_can_only_be_removed_against_a_training_split(raw):
    splits = {"validation": 0.5, "test": 0.5}
    (found,) = problems(change(raw, {"datasets.news.splits": splits, "datasets.news.remove_leaks": "near"}))
    assert found == "datasets.news.remove_leaks: needs a split named 'train' to compare with"


LAYOUTS = (
    "model.safetensors or pytorch_model.bin, or the files that model.safetensors.index.json or "
    "pytorch_model.bin.index.json names"
)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("model.bin", f"has model.bin; transformers loads only {LAYOUTS}; rename the file, or add the index"),
        ("model.gguf", f"has no weights; allowed: {LAYOUTS}; add them"),
    ],
)
def test_weights_must_be_those_that_transformers_loads(raw, write_model, weights, problem):
    path = write_model("other", {"model_type": "opt"}, weights)
    assert problems(change(raw, {"models.opt.path": path})) == [f"models.opt.path: '{path}' {problem}"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("assets/text", "has no config.json; give a model in Hugging Face layout"),
        ("config.yaml", "is a file; give the folder that holds config.json and the weights, or a file *.gguf"),
        ("assets/models/opt-2n", "does not exist; did you mean 'opt-2m'?"),
    ],
)
def test_a_model_is_a_folder_with_a_config(raw, root, path, problem):
    found = problems(change(raw, {"models.opt.path": f"{root}/{path}"}))
    assert found == [f"models.opt.path: '{root}/{path}' {problem}"]


@pytest.mark.parametrize(
    "path",
    [
        "$QUANTUNE_UNSET/opt",
        "${QUANTUNE_UNSET}/opt",
        "/a/${QUANTUNE_UNSET}-b/c",
        "$QUANTUNE_UNSET.old/opt",
    ],
)
def test_an_unset_environment_variable_is_named(raw, monkeypatch, path):
    monkeypatch.delenv("QUANTUNE_UNSET", raising=False)
    (found,) = problems(change(raw, {"models.opt.path": path}))
    assert found.startswith("models.opt.path: ") and f"in '{path}' is not set" in found
    assert found.endswith("; export QUANTUNE_UNSET=/some/folder")


def test_environment_variables_in_paths_are_filled_in(raw, root, monkeypatch):
    monkeypatch.setenv("QUANTUNE_TEST", str(root / "assets"))
    assert load.load(change(raw, {"models.opt.path": "${QUANTUNE_TEST}/models/opt-2m"})).listed


@pytest.mark.parametrize("content", ['{"model_type": ', "[]"])
def test_a_broken_config_json_is_the_users_error(raw, write_model, content):
    path = write_model("broken", content)
    (found,) = problems(change(raw, {"models.opt.path": path}))
    assert found.startswith("models.opt.path: ") and "config.json" in found


def test_a_group_size_must_divide_both_widths(raw, write_model):
    path = write_model("odd", {"model_type": "opt", "hidden_size": 128, "ffn_dim": 288})
    edits = {"models.opt.path": path, "variants": ["opt+rtn-w4"], "quantizations.rtn-w4.group_size": 64}
    (found,) = problems(change(raw, edits))
    assert "group_size: 64 does not divide the layers' input width 288; the nearest that fits is 32" in found
    assert load.load(change(raw, {"quantizations.rtn-w4.group_size": None})).listed


def test_blocks_of_nf4_that_do_not_fit_name_no_key_that_nf4_lacks(raw, write_model):
    path = write_model("odd", {"model_type": "opt", "hidden_size": 96, "ffn_dim": 384})
    (found,) = problems(change(raw, {"models.opt.path": path, "variants": ["opt+nf4"]}))
    assert "quantizations.nf4: blocks of 64 weights do not fill the layers' input width 96" in found


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        (GPTQ(method="gptq", dataset="d"), {"draw": "windows", "true_sequential": True}),
        (LoRA(method="lora", dataset="d", steps=1), {"bias": "all", "packing": False}),
        (Generation(kind="generation", prompts=["x"]), {"sampling": {}}),
        (Text(path="x"), {"sample": {"train": 3}}),
        (Speech(path="x", layout="common-voice"), {"sample": {"train": 3}}),
    ],
    ids=["gptq", "lora", "generation", "text", "speech"],
)
def test_keys_that_came_later_are_in_the_digest_only_where_they_are_given(entry, change):
    """What was made before a key existed stays current."""
    assert set(change) <= entry.neutral <= set(type(entry).model_fields)
    assert not entry.neutral & set(entry.identity())
    changed = type(entry).model_validate(entry.model_dump(exclude_unset=True) | change)
    assert entry.neutral & set(changed.identity()) == set(change)


def test_sequences_fit_the_models_positions(raw):
    edits = {"evaluations.harbour.length": 2048, "finetunings.lora.length": 1025, "evaluations.news.length": 1024}
    assert problems(change(raw, edits)) == [
        "evaluations.harbour.length: 2048 is too long, the model 'opt' has 1024 positions; allowed: up to 1024",
        "finetunings.lora.length: 1025 is too long, the model 'opt' has 1024 positions; allowed: up to 1024",
    ]


def test_a_text_evaluation_of_a_speech_model(raw, write_model):
    path = write_model("whisper", {"model_type": "whisper", "d_model": 128})
    evaluations = {"prompts": raw["evaluations"]["prompts"]}
    found = problems(change(raw, {"models.opt.path": path, "variants": ["opt"], "evaluations": evaluations}))
    assert found == [
        "evaluations.prompts: 'generation' is a text evaluation, and none of the models is a text model: opt"
    ]


@pytest.mark.parametrize(
    ("shape", "method", "why"),
    [
        ({"model_type": "gpt2"}, "rtn-w4", "'gpt2' models cannot be quantized: their weights are in Conv1D modules"),
        ({"model_type": "falcon"}, "rtn-w4", "'falcon' models cannot be quantized"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "rtn-w4", "its experts are fused into one parameter"),
        ({"model_type": "mamba"}, "awq", "no mappings are known for the architecture 'mamba' (known: "),
    ],
)
def test_an_architecture_that_a_method_cannot_quantize_is_refused_before_any_job(raw, write_model, shape, method, why):
    raw["models"]["other"] = {"path": write_model("other", {"hidden_size": 64, "intermediate_size": 128} | shape)}
    calibrated = {"dataset": "news", "split": "train", "samples": 4, "length": 8, "group_size": 32}
    raw["quantizations"]["awq"] = {"method": "awq"} | calibrated
    raw["variants"] = [f"other+{method}"]
    with pytest.raises(ConfigError) as caught:
        load.load(raw)
    assert f"quantizations.{method}: " in str(caught.value) and why in str(caught.value)
