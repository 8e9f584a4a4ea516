"""Model folders from outside, each broken in one way: one line names file, key, allowed values and a remedy."""

import hashlib
import json
import os
import runpy
import shutil
import struct
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from quantune.core.errors import ConfigError, QuantuneError
from quantune.planning import load
from tests.workflow import CONFIG, Folder

ROOT = Path(__file__).parents[2]
OPT, WHISPER = ROOT / "assets/models/opt-2m", ROOT / "assets/models/whisper-3m"
LAYER = "model.decoder.layers.1.fc1.weight"
EMBEDDING = "model.decoder.embed_tokens.weight"
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
CT_WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
CT = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": {"weights": CT_WEIGHTS}}}


def copy_of(source: Path, folder: Path) -> Path:
    """Copy a model's folder; the weights are linked, until an edit replaces them."""
    folder.mkdir()
    for path in source.iterdir():
        place = os.link if path.suffix == ".safetensors" else shutil.copyfile
        try:
            place(path, folder / path.name)
        except OSError:
            shutil.copyfile(path, folder / path.name)
    return folder


def keys(file: str = "config.json", drop: tuple = (), **values):
    """Return an edit of the keys of a JSON file."""

    def edit(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        content = {key: value for key, value in content.items() if key not in drop} | values
        path.write_text(json.dumps(content))

    return edit


def text(file: str, content: str | bytes):
    """Return an edit that replaces a file."""

    def edit(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return edit


def without(*names: str):
    """Return an edit that removes files."""
    return lambda folder: [(folder / name).unlink() for name in names]


def data(change):
    """Return an edit of the bytes of the weights."""
    return lambda folder: text("model.safetensors", change((folder / "model.safetensors").read_bytes()))(folder)


def header(change):
    """Return an edit of the header of the weights."""

    def edit(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        found = json.loads(content[8 : 8 + length])
        changed = json.dumps(change(found) or found).encode()
        return struct.pack("<Q", len(changed)) + changed + content[8 + length :]

    return data(edit)


def tensors(change):
    """Return an edit of the tensors of the weights, name -> array."""

    def edit(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        found = change(found) or found
        (folder / "model.safetensors").unlink()
        save_file({name: value.copy() for name, value in found.items()}, folder / "model.safetensors", {"format": "pt"})

    return edit


def both(*edits):
    """Return several edits as one."""
    return lambda folder: [edit(folder) for edit in edits]


def sharded(change=lambda index: None, second: str = "model-00002-of-00002.safetensors"):
    """Return an edit that splits the weights into two files with an index, which is changed."""

    def edit(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(found)
        files = {"model-00001-of-00002.safetensors": names[::2], second: names[1::2]}
        for file, part in files.items():
            save_file({name: found[name] for name in part}, folder / file, {"format": "pt"})
        table = {name: file for file, part in files.items() for name in part}
        index = {"metadata": {}, "weight_map": table}
        change(index)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return edit


def renamed(old: str, new: str):
    return lambda found: {name.replace(old, new): value for name, value in found.items()}


def set_value(name: str, value: float):
    def change(found):
        found[name] = found[name].copy()
        found[name].reshape(-1)[7] = value

    return change


def added_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": 12288, "content": "<|note|>", "special": True, **flags})
    path.write_text(json.dumps(content))


def entry(name: str, **values):
    return header(lambda found: found[name].update(values))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"
SPLIT = "model-00001-of-00002.safetensors"
PLANNED = {
    # config.json
    "config-missing": (without("config.json"), "has no config.json; give a model in Hugging Face layout"),
    "config-cut": (text("config.json", '{"model_type": "opt", '), "config.json is not JSON"),
    "config-list": (text("config.json", "[]"), "config.json does not hold a JSON object"),
    "config-binary": (text("config.json", b"\xff\xfe\x00\x01"), "config.json is not JSON"),
    "config-deep": (text("config.json", "[" * 100_000), "config.json is not JSON"),
    "config-pointer": (
        text("config.json", POINTER),
        "config.json: is a Git LFS pointer, not the file; run `git lfs pull`",
    ),
    "config-nan": (text("config.json", '{"model_type": "opt", "vocab_size": NaN}'), "NaN is not a number"),
    "no-type": (keys(drop=("model_type",)), "config.json: 'model_type' is missing; allowed: the name of an arch"),
    "type-number": (keys(model_type=3), "config.json: 'model_type' is 3; allowed: a text, such as llama"),
    "layers-million": (
        keys(num_hidden_layers=1_000_000),
        "'num_hidden_layers' is 1000000; allowed: a whole number from 1",
    ),
    "layers-many": (
        keys(num_hidden_layers=9999),
        "'num_hidden_layers' is 9999; allowed: up to 68, the number of tensors",
    ),
    "layers-zero": (keys(num_hidden_layers=0), "'num_hidden_layers' is 0; allowed: a whole number from 1"),
    "layers-true": (keys(num_hidden_layers=True), "'num_hidden_layers' is true; allowed: a whole number"),
    "width-negative": (keys(hidden_size=-128), "'hidden_size' is -128; allowed: a whole number from 1 to 1,000,000"),
    "width-text": (keys(ffn_dim="512"), "'ffn_dim' is '512'; allowed: a whole number from 1"),
    "width-float": (keys(hidden_size=128.0), "'hidden_size' is 128.0; allowed: a whole number"),
    "heads-null": (keys(num_attention_heads=None), "'num_attention_heads' is null; allowed: a whole number"),
    "heads-list": (keys(num_attention_heads=[4]), "'num_attention_heads' is [4]; allowed: a whole number"),
    "positions-huge": (keys(max_position_embeddings=10**30), "'max_position_embeddings' is 1000"),
    "positions-null": (
        keys(max_position_embeddings=None),
        "'max_position_embeddings' is null; allowed: a whole number",
    ),
    "key-heads": (keys(model_type="llama", num_key_value_heads=3), "'num_key_value_heads' is 3; allowed: a divisor"),
    "eps-null": (keys(model_type="llama", rms_norm_eps=0), "'rms_norm_eps' is 0; allowed: a number above 0"),
    "dropout": (keys(attention_dropout=2), "'attention_dropout' is 2; allowed: a number from 0 to 1"),
    "tied-text": (keys(tie_word_embeddings="yes"), "'tie_word_embeddings' is 'yes'; allowed: true or false"),
    "activation-null": (keys(activation_function=None), "'activation_function' is null; allowed: a text"),
    "dtype": (keys(dtype="float8_e4m3fn"), "'dtype' is 'float8_e4m3fn'; allowed: float32, float16, bfloat16"),
    "eos-beyond": (keys(eos_token_id=99_999), "'eos_token_id' is 99999; allowed: the id of a token, from 0 to 12,287"),
    "bos-text": (keys(bos_token_id="</s>"), "'bos_token_id' is '</s>'; allowed: the id of a token"),
    "weights-elsewhere": (
        keys(transformers_weights="../x.safetensors"),
        "'transformers_weights' is '../x.safetensors'",
    ),
    "kernels": (
        keys(attn_implementation="kernels-community/evil"),
        "'attn_implementation' is 'kernels-community/evil'",
    ),
    "vocabulary": (
        keys(vocab_size=12_000, eos_token_id=2),
        f"'vocab_size' is 12000; allowed: 12288, as '{EMBEDDING}' has",
    ),
    "width": (
        keys(hidden_size=256, word_embed_proj_dim=256),
        f"'word_embed_proj_dim' is 256; allowed: 128, as '{EMBEDDING}'",
    ),
    # kinds of models
    "t5": (keys(model_type="t5", is_encoder_decoder=True), "'t5' is an encoder-decoder model of text"),
    "masked": (keys(model_type="bert", architectures=["BertForMaskedLM"]), "'bert' is no language model"),
    "classifier": (keys(architectures=["OPTForSequenceClassification"]), "'opt' is no language model"),
    "gptq": (
        keys(quantization_config={"quant_method": "gptq", "bits": 4}),
        "'quantization_config' says gptq, and the weights hold no tensor '*.qweight'",
    ),
    "no-method": (
        keys(quantization_config={"bits": 4}),
        "quant_method null); allowed: bitsandbytes, compressed-tensors, gptq, awq",
    ),
    "config-text": (
        keys(quantization_config="4bit"),
        "quant_method null); allowed: bitsandbytes, compressed-tensors, gptq, awq",
    ),
    "fp8": (
        keys(quantization_config=CT | {"format": "float-quantized"}),
        "has codes of another kind in 'g'; allowed: format pa",
    ),
    "w8a8": (
        keys(
            quantization_config=CT
            | {"config_groups": {"g": {"weights": CT_WEIGHTS, "input_activations": {"num_bits": 8}}}}
        ),
        "quantizes activations in 'g'",
    ),
    "adapter-alone": (
        both(without("config.json"), keys("adapter_config.json", r=8)),
        "holds an adapter (adapter_config",
    ),
    "adapter-beside": (
        keys("adapter_config.json", r=8),
        "holds an adapter (adapter_config.json) beside a model; give a wh",
    ),
    # files of weights
    "no-weights": (without("model.safetensors"), "has no weights; allowed: model.safetensors or pytorch_model.bin, or"),
    "pickled": (
        both(without("model.safetensors"), text("pytorch_model.bin", "x")),
        "pytorch_model.bin: holds no weights that `torch.save` wrote; download the file again",
    ),
    "other-name": (lambda folder: (folder / "model.safetensors").rename(folder / "consolidated.safetensors"), "rename"),
    "pointer": (text("model.safetensors", POINTER), "model.safetensors: is a Git LFS pointer"),
    "empty": (text("model.safetensors", ""), "model.safetensors: is damaged or cut off: it has 0 bytes"),
    "header-cut": (data(lambda content: content[:1000]), "model.safetensors: is damaged or cut off: its header has "),
    "header-huge": (
        data(lambda content: struct.pack("<Q", 2**40) + content[8:]),
        "its header has 1,099,511,627,776 bytes",
    ),
    "header-no-json": (data(lambda content: content[:8] + b"x" + content[9:]), "its header is not JSON"),
    "header-list": (header(lambda found: [1]), "its header is not a JSON object"),
    "cut": (
        data(lambda content: content[: len(content) // 2]),
        "model.safetensors: is cut off: its header describes 5,002,5",
    ),
    "too-long": (data(lambda content: content + b"more"), "model.safetensors: is too long"),
    "no-tensors": (text("model.safetensors", struct.pack("<Q", 2) + b"{}"), "model.safetensors: holds no tensors"),
    "shape-wrong": (entry(LAYER, shape=[512, 129]), f"the header's entry of '{LAYER}' is damaged"),
    "shape-negative": (entry(LAYER, shape=[-512, -128]), f"the header's entry of '{LAYER}' is damaged"),
    "shape-text": (entry(LAYER, shape="512"), f"the header's entry of '{LAYER}' is damaged"),
    "type-unknown": (entry(LAYER, dtype="F4"), f"'{LAYER}' is stored as F4; allowed: "),
    "metadata": (header(lambda found: found | {"__metadata__": []}), "'__metadata__' in its header is damaged"),
    "name-control": (header(lambda found: {"a\nb": found.pop(LAYER)} | found), "has control characters ('a\\nb')"),
    "overlap": (
        header(lambda found: {"a": found[LAYER], "b": found[LAYER]}),
        "the bytes of 'a' overlap others or leave a gap",
    ),
    "integers": (
        tensors(lambda found: found | {LAYER: found[LAYER].astype(numpy.int8)}),
        f"'{LAYER}' is stored as I8, and co",
    ),
    "qweight": (
        tensors(renamed("fc1.weight", "fc1.qweight")),
        "fc1.qweight' is a tensor of a quantized layer, and config",
    ),
    "folder": (
        both(without("tokenizer.json"), lambda folder: (folder / "tokenizer.json").mkdir()),
        "tokenizer.json: is a fold",
    ),
    "dangling": (
        both(without("model.safetensors"), lambda folder: (folder / "model.safetensors").symlink_to("nowhere")),
        "model.safetensors: is a link to nothing",
    ),
    "fifo": (
        both(without("generation_config.json"), lambda folder: os.mkfifo(folder / "generation_config.json")),
        "generation_config.json: is no regular file",
    ),
    # the index of shards
    "shard-missing": (
        both(sharded(), without(SPLIT)),
        f"names {SPLIT}, which the folder does not hold; download it again",
    ),
    "shard-outside": (
        sharded(lambda index: index["weight_map"].update(x="../x.safetensors")),
        "names the file '../x.safetens",
    ),
    "shard-absolute": (
        sharded(lambda index: index["weight_map"].update(x="/x.safetensors")),
        "names the file '/x.safetensors",
    ),
    "shard-number": (
        sharded(lambda index: index["weight_map"].update(x=3)),
        "names the file '3'; allowed: the name of",
    ),
    "index-empty": (sharded(lambda index: index.update(weight_map={})), "'weight_map' is missing or empty"),
    "index-list": (sharded(lambda index: index.update(weight_map=[1])), "'weight_map' is missing or empty"),
    "index-wrong": (
        sharded(lambda index: index["weight_map"].update({"x.weight": SPLIT})),
        "names 'x.weight' in model-00001",
    ),
    "no-index": (both(sharded(), without("model.safetensors.index.json")), "rename the file, or add the index"),
    # tokenizer and settings
    "no-tokenizer": (without("tokenizer.json"), "has no tokenizer; allowed: one of tokenizer.json, tokenizer.model"),
    "tokenizer-pointer": (text("tokenizer.json", POINTER), "tokenizer.json: is a Git LFS pointer"),
    "generation-list": (text("generation_config.json", "[]"), "generation_config.json does not hold a JSON object"),
    "beams": (
        keys("generation_config.json", num_beams=0),
        "generation_config.json: 'num_beams' is 0; allowed: a whole",
    ),
    "temperature": (keys("generation_config.json", temperature="hot"), "'temperature' is 'hot'; allowed: a number"),
    "generation-eos": (
        keys("generation_config.json", eos_token_id=[2, 77_777]),
        "'eos_token_id' is 77777; allowed: the id",
    ),
}
"""Name -> edit of a copy of opt-2m, and a part of the error before any job."""
IN_THE_JOB = {
    "unknown": (keys(model_type="nonesuch"), "config.json: transformers cannot use it: "),
    "code": (
        keys(model_type="nonesuch", auto_map={"AutoConfig": "x.C"}),
        "config.json: needs code of its own ('auto_map')",
    ),
    "bert": (
        keys(model_type="bert", architectures=["BertModel"]),
        "'model_type' is bert, no decoder-only language model",
    ),
    "vit": (keys(model_type="vit", architectures=["ViTModel"]), "'model_type' is vit, no decoder-only language model"),
    "activation": (keys(activation_function="banana"), "config.json: transformers cannot build the model: "),
    "heads": (keys(num_attention_heads=3), "config.json: transformers cannot build the model: "),
    "three-layers": (keys(num_hidden_layers=3), "16 are unexpected (first 'model.decoder.layers.3.fc1.bias')"),
    "five-layers": (keys(num_hidden_layers=5), "16 are missing (first 'model.decoder.layers.4.fc1.bias')"),
    "feed-forward": (
        keys(ffn_dim=256),
        "have another shape (first 'model.decoder.layers.0.fc1.bias' [512] instead of [256])",
    ),
    "positions": (keys(max_position_embeddings=2048), "embed_positions.weight' [1026, 128] instead of [2050, 128]"),
    "other-type": (
        keys(model_type="gpt_neox"),
        "the weights are not those of the model in config.json (model_type gpt_neox)",
    ),
    "dropped": (
        tensors(lambda found: {name: found[name] for name in found if name != LAYER}),
        f"1 are missing (first '{LAYER}",
    ),
    "renamed": (
        tensors(renamed("layers.1.fc1.weight", "layers.1.fcl.weight")),
        "1 are unexpected (first 'model.decoder.la",
    ),
    "nan": (tensors(set_value(LAYER, numpy.nan)), f"model.safetensors: '{LAYER}' holds NaN or infinity"),
    "infinite": (
        tensors(set_value("model.decoder.layers.0.fc2.bias", -numpy.inf)),
        "layers.0.fc2.bias' holds NaN or infin",
    ),
    "token-beyond": (
        added_token,
        "1 of 12,289 tokens have no embedding, the first is '<|note|>' with id 12,288; allowed: ids",
    ),
    "tokenizer-cut": (text("tokenizer.json", '{"version": "1.0", '), "tokenizer files: transformers cannot use them: "),
    "tokenizer-empty": (text("tokenizer.json", "{}"), "tokenizer files: "),
    "tokenizer-class": (
        both(text("tokenizer.json", "[]"), keys("tokenizer_config.json", tokenizer_class="X")),
        "tokenizer fil",
    ),
    "cache": (
        keys("generation_config.json", cache_implementation="banana"),
        "generation_config.json: transformers cannot use",
    ),
}
"""Name -> edit of a copy of opt-2m, and a part of the error of the job that copies the model."""
SPEECH_PLANNED = {
    "no-tokenizer": (without("tokenizer.json"), "has no tokenizer; allowed: one of "),
    "no-features": (
        without("preprocessor_config.json"),
        "has no settings of the feature extractor; allowed: one of prepro",
    ),
    "mels": (keys(num_mel_bins="80"), "'num_mel_bins' is '80'; allowed: a whole number"),
    "start": (
        keys(decoder_start_token_id=99_999),
        "'decoder_start_token_id' is 99999; allowed: the id of a token, from 0",
    ),
}
SPEECH_IN_THE_JOB = {
    "features": (
        keys("preprocessor_config.json", feature_size=128),
        "'feature_size' is 128; allowed: 80, from 'num_mel_bins'",
    ),
    "window": (
        keys("preprocessor_config.json", chunk_length=30, nb_max_frames=3000),
        "'nb_max_frames' is 3000; allowed: 400,",
    ),
    "text-tokenizer": (
        lambda folder: [
            shutil.copyfile(OPT / name, folder / name) for name in ("tokenizer.json", "tokenizer_config.json")
        ],
        "tokens have no embedding",
    ),
    "encoder": (
        tensors(lambda found: {name: found[name] for name in found if "conv1.bias" not in name}),
        "are missing (first",
    ),
}


GOOD = {
    "shards": (sharded(), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
    "odd-shards": (sharded(second="rest.safetensors"), ["model-00001-of-00002.safetensors", "rest.safetensors"]),
    "shards-beside": (
        both(
            lambda folder: shutil.copyfile(OPT / "model.safetensors", folder / "all"),
            sharded(),
            lambda folder: (folder / "all").rename(folder / "model.safetensors"),
        ),
        ["model.safetensors"],
    ),
    "other-copies": (
        lambda folder: [
            (folder / name).write_text("x")
            for name in ("consolidated.safetensors", "pytorch_model.bin", "model.onnx", "flax_model.msgpack", "m.gguf")
        ],
        ["model.safetensors"],
    ),
    "auto-map": (keys(auto_map={"AutoModelForCausalLM": "modeling_opt.X"}), ["model.safetensors"]),
    "temperature": (keys("generation_config.json", temperature=0.7, do_sample=False), ["model.safetensors"]),
    "settings-in-config": (keys(temperature=0.7, num_beams=4, max_length=20), ["model.safetensors"]),
    "padded-with": (keys(pad_token_id=-1), ["model.safetensors"]),
    "without-prefix": (tensors(renamed("model.decoder.", "decoder.")), ["model.safetensors"]),
    "old-constants": (
        tensors(lambda found: found | {"model.decoder.position_ids": numpy.arange(8)}),
        ["model.safetensors"],
    ),
    "head-beside": (tensors(lambda found: found | {"lm_head.weight": found[EMBEDDING]}), ["model.safetensors"]),
}
"""Name -> edit of a copy of opt-2m that stays usable, and the names of the weights that are copied."""


def state(folder: Path) -> dict[str, str]:
    """Return name -> hash of the regular files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def planning_error(raw: dict, folder: Path, tmp_path: Path) -> str:
    """Return the error of a configuration whose model is in a folder."""
    if (folder / "preprocessor_config.json").exists() or "whisper" in folder.name:
        raw = raw | {"evaluations": {}, "quantizations": {}, "finetunings": {}, "variants": ["opt"]}
    raw["models"] = {"opt": {"path": str(folder)}}
    before = state(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load.load(raw)
    assert state(tmp_path) == before, "a check changes nothing"
    return str(caught.value)


@pytest.fixture(scope="module")
def model_job():
    """The function of the stage `model`, without the frame of a job."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        patched.setattr("quantune.artefacts.job.run", lambda snakemake, body, imports=True: None)
        yield runpy.run_path(str(ROOT / "scripts/model.py"), init_globals={"snakemake": None})["model"]


def run_job(model_job, raw: dict, folder: Path, tmp_path: Path) -> Path:
    """Plan a model in a folder, and run its job; return the copy."""
    from quantune.planning.plan import Plan

    raw = raw | {"evaluations": {}, "quantizations": {}, "finetunings": {}, "variants": ["opt"]}
    order = Plan(load.load(raw | {"models": {"opt": {"path": str(folder)}}})).checkpoint("opt").order()
    made, scratch = tmp_path / "made", tmp_path / "scratch"
    made.mkdir()
    scratch.mkdir()
    model_job(order, {}, made, scratch)
    return made


@pytest.mark.parametrize("case", PLANNED)
def test_a_broken_model_is_refused_before_any_job(raw, tmp_path, case):
    edit, message = PLANNED[case]
    folder = copy_of(OPT, tmp_path / "broken")
    edit(folder)
    (line,) = planning_error(raw, folder, tmp_path).splitlines()
    assert line.startswith("config: models.opt.path: ") and f"'{folder}'" in line and message in line
    assert len(line) < 700


@pytest.mark.parametrize("case", SPEECH_PLANNED)
def test_a_broken_speech_model_is_refused_before_any_job(raw, tmp_path, case):
    edit, message = SPEECH_PLANNED[case]
    folder = copy_of(WHISPER, tmp_path / "whisper")
    edit(folder)
    (line,) = planning_error(raw, folder, tmp_path).splitlines()
    assert line.startswith("config: models.opt.path: ") and message in line


@pytest.mark.parametrize("case", [*IN_THE_JOB, *(f"speech-{name}" for name in SPEECH_IN_THE_JOB)])
def test_a_broken_model_is_refused_when_it_is_copied(raw, tmp_path, model_job, case):
    edit, message = (SPEECH_IN_THE_JOB | IN_THE_JOB)[case.removeprefix("speech-")]
    folder = copy_of(WHISPER if case.startswith("speech-") else OPT, tmp_path / "broken")
    edit(folder)
    before = state(folder)
    with pytest.raises(QuantuneError) as caught:
        run_job(model_job, raw, folder, tmp_path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"'{folder}': ") and message in line and len(line) < 700
    assert state(folder) == before
    assert not list((tmp_path / "made").glob("*.safetensors")), "no weights were copied"


@pytest.mark.parametrize("case", GOOD)
def test_an_unusual_model_is_copied_with_one_set_of_weights(raw, tmp_path, model_job, case):
    edit, weights = GOOD[case]
    folder = copy_of(OPT, tmp_path / "unusual")
    edit(folder)
    made = run_job(model_job, raw, folder, tmp_path)
    assert sorted(path.name for path in made.glob("*.safetensors")) == weights
    before, after = state(folder), state(made)
    assert after == {name: before[name] for name in after} and "config.json" in after
    assert not {"pytorch_model.bin", "m.gguf"} & set(after)


def test_weights_that_do_not_fit_are_never_drawn_at_random(tmp_path):
    from quantune.models import loading

    folder = copy_of(OPT, tmp_path / "cut")
    tensors(lambda found: {name: found[name] for name in found if name != LAYER})(folder)
    with pytest.raises(QuantuneError, match=rf"cut': the weights are not those .* 1 are missing \(first '{LAYER}'\)"):
        loading.model([folder], "float32")
    tensors(renamed("final_layer_norm", "last_norm"))(folder)
    with pytest.raises(QuantuneError, match="are unexpected"):
        loading.model([folder], "float32")


def test_a_checkpoint_without_tokenizer_is_never_read_as_empty(tmp_path):
    from quantune.models import loading

    text_model, speech_model = copy_of(OPT, tmp_path / "text"), copy_of(WHISPER, tmp_path / "speech")
    without("tokenizer.json", "tokenizer_config.json")(text_model)
    without("tokenizer.json", "tokenizer_config.json")(speech_model)
    with pytest.raises(QuantuneError, match="text': has no tokenizer; allowed: one of"):
        loading.tokenizer(text_model)
    with pytest.raises(QuantuneError, match="speech': has no tokenizer; allowed: one of"):
        loading.processor(speech_model)


def test_generation_settings_that_transformers_refuses_are_copied(tmp_path):
    from quantune.models import checkpoints, loading

    folder, made = copy_of(OPT, tmp_path / "model"), tmp_path / "made"
    keys("generation_config.json", temperature=0.7, top_p=0.5, do_sample=False)(folder)
    keys(temperature=0.7, num_beams=4)(folder)
    made.mkdir()
    checkpoints.save_model(loading.model([folder], "float32"), folder, made)
    assert (made / "generation_config.json").read_bytes() == (folder / "generation_config.json").read_bytes()
    without("generation_config.json")(folder)
    made.joinpath("again").mkdir()
    checkpoints.save_model(loading.model([folder], "float32"), folder, made / "again")
    assert not (made / "again/generation_config.json").exists()


@pytest.mark.parametrize(
    ("variant", "step"),
    [("opt+rtn-w4", "rtn-w4"), ("opt+nf4", "nf4"), ("opt+lora+merge", "merge"), ("opt+lora+merge+rtn-w4", "merge")],
)
@pytest.mark.parametrize("settings", [BNB, CT], ids=["bitsandbytes", "compressed-tensors"])
def test_a_model_that_comes_quantized_is_not_quantized_or_merged_into(raw, tmp_path, variant, step, settings):
    folder = copy_of(OPT, tmp_path / "quantized")
    keys(quantization_config=settings)(folder)
    raw["models"]["opt"]["path"] = str(folder)
    raw["variants"] = [variant]
    with pytest.raises(ConfigError) as caught:
        load.load(raw)
    method = settings["quant_method"]
    assert str(caught.value) == (
        f"config: variant '{variant}': 'opt' is already quantized ({method}, in its config.json), and "
        f"'{step}' needs full-precision weights; allowed: 'opt' alone or with an adapter on top; for '{step}' give "
        "the original model"
    )
    raw["variants"] = ["opt+lora"]
    assert [str(variant) for variant in load.load(raw).listed] == ["opt+lora"]


@pytest.fixture(scope="module")
def merge_job():
    """The function of the stage `merge`, without the frame of a job."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("quantune.artefacts.job.run", lambda snakemake, body, imports=True: None)
        yield runpy.run_path(str(ROOT / "scripts/merge.py"), init_globals={"snakemake": None})["merge"]


@pytest.fixture
def adapter(tmp_path):
    """Return a function that saves an adapter of opt-2m with random weights, on layers with these names."""
    import torch

    from quantune.finetunings.lora import LoRA
    from quantune.models import loading

    def save(*layers: str) -> Path:
        recipe = LoRA(method="lora", dataset="any", steps=1, target_modules=list(layers))
        model = recipe.prepare(loading.model([OPT], "float32"), 0)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name:
                    value.add_(0.05 * torch.randn_like(value))
        folder = tmp_path / "adapter"
        folder.mkdir()
        recipe.save(model, OPT, folder)
        return folder

    return save


def merge(merge_job, tmp_path: Path, folder: Path) -> tuple[Path, float]:
    """Merge an adapter into opt-2m; return the folder, and the distance of the logits from the unmerged adapter's."""
    made = tmp_path / "made"
    made.mkdir()
    facts = merge_job({}, {"base": [OPT], "parent": [OPT], "adapter": [folder]}, made, tmp_path)
    return made, facts["relative_distance_from_unmerged"]


@pytest.mark.parametrize(
    ("layers", "apart"),
    [(["q_proj"], False), (["q_proj", "lm_head"], True)],
)
def test_a_merged_adapter_on_tied_embeddings_stays_the_same_function(tmp_path, adapter, merge_job, layers, apart):
    made, distance = merge(merge_job, tmp_path, adapter(*layers))
    assert distance < 1e-3  # of weights in float16
    assert ("lm_head.weight" in load_file(made / "model.safetensors")) == apart
    assert json.loads((made / "config.json").read_text())["tie_word_embeddings"] != apart


def test_an_adapter_of_nan_is_not_merged(tmp_path, adapter, merge_job):
    folder = adapter("q_proj")
    found = load_file(folder / "adapter_model.safetensors")
    save_file(found | {min(found): numpy.full_like(found[min(found)], numpy.nan)}, folder / "adapter_model.safetensors")
    with pytest.raises(
        QuantuneError, match=r"the adapter 'adapter' has logits that are NaN .*; lower its 'learning_rate'"
    ):
        merge(merge_job, tmp_path, folder)


def test_an_adapter_is_never_completed_with_random_weights(adapter):
    from quantune.models import loading

    folder = adapter("q_proj")
    found = load_file(folder / "adapter_model.safetensors")
    save_file({name: found[name] for name in sorted(found)[1:]}, folder / "adapter_model.safetensors")
    with pytest.raises(QuantuneError, match=f"the adapter misses '{min(found)}'"):
        loading.model([OPT, folder], "float32")


def test_a_run_of_snakemake_shows_one_line(tmp_path):
    folder = copy_of(OPT, tmp_path / "broken")
    tensors(set_value(LAYER, numpy.nan))(folder)
    before = state(folder)
    project = Folder(tmp_path / "project", CONFIG | {"models": {"opt": {"path": str(folder)}}})
    printed = project.run("work/checkpoints/opt", "--cores", "1", check=False)
    assert f"Error: '{folder}': model.safetensors: '{LAYER}' holds NaN or infinity; allowed: finite weights" in printed
    assert "Traceback" not in printed and state(folder) == before
    assert not (project.work / "checkpoints/opt").exists()


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A copy of opt-2m that is packed by compressed-tensors."""
    from quantune.quantizations.rtn import RoundToNearest

    folder = tmp_path_factory.mktemp("packed")
    RoundToNearest(method="rtn", bits=4, group_size=32).quantize(OPT, folder)
    return folder


def test_a_model_that_comes_packed_is_copied(raw, tmp_path, model_job, packed):
    made = run_job(model_job, raw, packed, tmp_path)
    assert state(made) == state(packed)


@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        ("fp8", {}),
        ("int8-dynamic", {}),
    ],
)
def test_each_format_that_is_saved_here_can_be_a_source(raw, tmp_path, model_job, method, recipe):
    from quantune.models import loading, probes
    from quantune.quantizations import methods

    (kind,) = [item for item in methods() if item.model_fields["method"].annotation.__args__[0] == method]
    folder = tmp_path / "quantized"
    folder.mkdir()
    kind(method=method, **recipe).quantize(OPT, folder)
    made = run_job(model_job, raw, folder, tmp_path)
    assert state(made) == state(folder)
    tokens = probes.probe_tokens(12288)
    assert loading.model([made], "float32")(tokens).logits.equal(loading.model([folder], "float32")(tokens).logits)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            tensors(lambda found: {name: found[name] for name in found if "0.fc1.weight_scale" not in name}),
            "1 are missing",
        ),
        (
            keys(quantization_config=CT | {"config_groups": {"g": {"weights": CT_WEIGHTS, "targets": []}}}),
            "are missing",
        ),
        (keys(quantization_config=CT | {"ignore": 3}), "config.json: transformers cannot use 'quantization_config': "),
    ],
)
def test_a_broken_packed_model_is_refused_when_it_is_copied(raw, tmp_path, model_job, packed, edit, message):
    folder = copy_of(packed, tmp_path / "broken")
    edit(folder)
    with pytest.raises(QuantuneError) as caught:
        run_job(model_job, raw, folder, tmp_path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"'{folder}': ") and message in line


@pytest.mark.parametrize(
    ("more", "config", "message"),
    [
        ((), {"model_type": "t5", "is_encoder_decoder": True}, "'t5' is an encoder-decoder model of text"),
        (
            (),
            {"model_type": "opt", "num_hidden_layers": 10**6},
            "'num_hidden_layers' is 1000000; allowed: a whole number",
        ),
        (("consolidated.safetensors", "model-00001-of-00002.safetensors"), {"model_type": "opt"}, None),
    ],
)
def test_a_locked_model_is_checked_and_has_one_set_of_weights(tmp_path, more, config, message):
    from quantune.sources.lock import Lock

    files = {name: {"size": 1, "git": "ab"} for name in ("config.json", "model.safetensors", *more)}
    entry = {"commit": "c", "licence": None, "gated": False, "files": files, "config": config}
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({"models": {"a/b@main": entry}, "datasets": {}}))
    if message is None:
        assert list(Lock(path).model("a/b", "main", "models.x.hub")["files"]) == ["config.json", "model.safetensors"]
        return
    with pytest.raises(ConfigError) as caught:
        Lock(path).model("a/b", "main", "models.x.hub")
    assert str(caught.value).startswith("models.x.hub: 'a/b' at 'main': config.json: ") and message in str(caught.value)
