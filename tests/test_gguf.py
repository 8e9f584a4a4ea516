"""GGUF files as models: every type of ggml, Llama and Qwen, tokenizers; and files broken in one way, in one line."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantune.core.errors import ConfigError, QuantuneError
from quantune.models import loading, stored
from quantune.models.foreign import gguf_config, gguf_files
from quantune.planning import load
from quantune.planning.plan import Plan
from quantune.sources import lock
from tests.attack.test_model_folders import model_job  # noqa: F401 (fixture)

gguf = pytest.importorskip("gguf")
from gguf.quants import dequantize  # noqa: E402

from tests import gguf_model  # noqa: E402

OPT = Path(__file__).parent.parent / "assets/models/opt-2m"
TEXTS = ["The tide rises.", "", "  two </s> wörld\n\n<pad>", "1234 don't — ’s"]
FAMILIES = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": False, "vocab_size": 12289},  # transformers adds a token to Qwen2's tokenizers
    "qwen3": {"num_key_value_heads": 4},
}
MIXED = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "token_embd": "Q8_0", "ffn_gate": "Q5_0", "ffn_up": "Q3_K"}


def entry(raw: dict, path: Path, **more) -> dict:
    """Return a configuration of one model."""
    model = {"path": str(path), **more}
    return raw | {
        "models": {"opt": model},
        "evaluations": {},
        "quantizations": {},
        "finetunings": {},
        "variants": ["opt"],
    }


def run_job(model_job, raw: dict, path: Path, tmp_path: Path, **more) -> tuple[Path, dict]:  # noqa: F811
    """Plan a model and run its job; return the checkpoint and its facts."""
    order = Plan(load.load(entry(raw, path, **more))).checkpoint("opt").order()
    made, scratch = tmp_path / "made", tmp_path / "scratch"
    made.mkdir()
    scratch.mkdir()
    return made, model_job(order, {}, made, scratch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Return family -> a small random model."""
    root = tmp_path_factory.mktemp("models")
    return {family: gguf_model.model(root / family, OPT, family, **values) for family, values in FAMILIES.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_float16_is_the_original(raw, tmp_path, model_job, folders, family):  # noqa: F811
    source = folders[family]
    gguf_model.write(source, tmp_path / "model.gguf", pre="qwen2" if family == "qwen2" else "gpt-2")
    made, facts = run_job(model_job, raw, tmp_path / "model.gguf", tmp_path)
    tokens = torch.arange(2, 66)[None]
    with torch.no_grad():
        expected, found = (loading.model([folder], "float32")(tokens).logits for folder in (source, made))
    assert torch.equal(found, expected)
    original, tokenizer = loading.tokenizer(source), loading.tokenizer(made)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == original(text, add_special_tokens=False)["input_ids"] and tokenizer.decode(ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == (original.bos_token, original.eos_token)
    weights = load_file(source / "model.safetensors")
    assert facts["dequantized"]["types"] == {
        "F16": sum(value.dim() > 1 for value in weights.values()),
        "F32": sum(value.dim() == 1 for value in weights.values()),
    }
    assert facts["parameters"] == sum(value.numel() for value in weights.values())
    expected, found = (json.loads((folder / "config.json").read_text()) for folder in (source, made))
    assert {key: found[key] for key in expected if key in found and "token" not in key} == {
        key: expected[key] for key in expected if key in found and "token" not in key
    }


def test_each_type_of_ggml_is_dequantized_as_llama_cpp_does(raw, tmp_path, model_job, folders):  # noqa: F811
    def kind(name: str) -> str:
        return next((kind for part, kind in MIXED.items() if part in name), "Q4_K")

    path = tmp_path / "model.gguf"
    gguf_model.write(folders["llama"], path, kind)
    made, facts = run_job(model_job, raw, tmp_path, tmp_path, gguf_file="model.gguf")
    assert set(facts["dequantized"]["types"]) == {"F32", "Q3_K", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    weights = load_file(made / "model.safetensors")
    config = json.loads((made / "config.json").read_text())
    for tensor in gguf.GGUFReader(path).tensors:
        stem, _, end = tensor.name.rpartition(".")
        layer, _, part = stem.removeprefix("blk.").rpartition(".")
        name = next(name for name, short in gguf_model.NAMES.items() if short == part)
        found = weights[f"model.layers.{layer}.{name}.{end}" if layer else f"{name}.{end}"].numpy()
        if part in ("attn_q", "attn_k"):
            found = gguf_model.apart(found, config[f"num_{'attention' if part == 'attn_q' else 'key_value'}_heads"])
        expected = dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(found, expected if found.ndim == 1 else expected.astype(np.float16)), tensor.name
    assert loading.model([made], "float16").config.dtype == torch.float16


def test_the_table_of_types_is_that_of_the_library():
    for number, (name, values, width) in gguf_files.TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (name, values, width)
        dense = dequantize(np.zeros((2, width), np.uint8), kind)
        assert dense.shape == (2, values) and np.isfinite(dense).all(), name


def test_a_dense_model_of_a_file_is_planned_like_any_other(raw, tmp_path, folders):
    gguf_model.write(folders["llama"], tmp_path / "model.gguf", lambda name: "Q8_0")
    raw["models"] = {"opt": {"path": str(tmp_path / "model.gguf")}}
    raw["variants"] = ["opt+rtn-w4", "opt+lora+merge"]
    plan = Plan(load.load(raw))
    parameters = sum(value.numel() for value in load_file(folders["llama"] / "model.safetensors").values())
    assert plan.model_sizes("opt") == {stored.SINGLE: 2 * parameters}
    assert plan.config.positions("opt") == 512 and plan.config.track("opt") == "text"
    before = plan.checkpoint("opt").digest
    raw["models"]["opt"] = {"path": str(tmp_path), "gguf_file": "model.gguf"}
    assert Plan(load.load(raw)).checkpoint("opt").digest == before


def test_a_file_on_the_hub_is_locked_by_its_header_alone(hub, asked, folders, model_job, tmp_path, monkeypatch):  # noqa: F811
    gguf_model.write(folders["llama"], hub.repositories["models/a/opt"] / "small.gguf", lambda name: "Q8_0")
    gguf_model.write(folders["llama"], hub.repositories["models/a/opt"] / "other.gguf")
    monkeypatch.setattr(lock, "HEADER", 2**14)
    whole = entry(asked, tmp_path) | {"models": {"opt": {"hub": "a/opt", "gguf_file": "small.gguf"}}}
    order = Plan(load.load(whole)).checkpoint("opt").order()
    ranges = [item[2] for item in hub.asked("small.gguf")]
    assert set(ranges) == {f"bytes=0-{size - 1}" for size in (2**14, 2**16, 2**18, 2**20)}, ranges
    locked = json.loads(Path("sources.lock.json").read_text())["models"]
    assert list(locked) == ["a/opt@main#small.gguf"] and list(order["sources"]) == ["small.gguf"]
    assert locked["a/opt@main#small.gguf"]["config"]["hidden_size"] == 256
    hub.requests.clear()
    assert Plan(load.load(whole)).checkpoint("opt").order() == order and not hub.requests
    (line,) = lock.Lock("sources.lock.json").update()
    assert line.startswith("models a/opt@main#small.gguf: unchanged at ")
    made, scratch = tmp_path / "made", tmp_path / "scratch"
    made.mkdir()
    scratch.mkdir()
    facts = model_job(order, {}, made, scratch)
    assert facts["source"]["hub"] == "a/opt" and loading.model([made], "float32").config.num_hidden_layers == 2
    whole["models"]["opt"]["gguf_file"] = "smal.gguf"
    with pytest.raises(ConfigError, match=r"models.opt.hub: .* has no file 'smal.gguf'; did you mean 'small.gguf'"):
        Plan(load.load(whole)).checkpoint("opt")


def test_a_tokenizer_of_sentence_piece_is_the_original(tmp_path):
    """Llama's: blanks become letters, and characters without a token become bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    from quantune.models.foreign import gguf_tokenizer

    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    pieces = ["▁t", "▁ti", "de", "▁tide", "ri", "ris", "es", "▁rises", "s."]
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyz.T"))
    names = ["<unk>", "<s>", "</s>", *bytes_, *pieces, *letters]
    scores = [0.0] * 259 + [-float(number) for number in range(len(pieces) + len(letters))]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(pieces) + len(letters)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ messages }}",
    }
    gguf_tokenizer.write(gguf_files.Header("m.gguf", metadata), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    made = loading.tokenizer(tmp_path)
    merges = [("▁", "t"), ("▁t", "i"), ("d", "e"), ("▁ti", "de"), ("r", "i"), ("ri", "s"), ("e", "s"), ("s", ".")]
    ids = {name: number for number, name in enumerate(names)}
    plain = Tokenizer(models.BPE(ids, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for text in ("the tide rises.", "wörld tide"):
        assert made(text)["input_ids"] == [1, *plain.encode(text).ids]
        assert made.decode(made(text)["input_ids"], skip_special_tokens=True) == text
    assert (made.bos_token, made.eos_token, made.unk_token) == ("<s>", "</s>", "<unk>")
    assert made.chat_template == "{{ messages }}"


def llama3(head: int, base: float, stretch: float) -> list[float]:
    """Return the factors of Llama 3.1, from the frequencies, as llama.cpp's conversion computes them."""
    found = []
    for number in range(head // 2):
        wave = 2 * np.pi * base ** (2 * number / head)
        smooth = (8192 / wave - 1) / 3
        found.append(1 if wave < 8192 / 4 else stretch if wave > 8192 else 1 / ((1 - smooth) / stretch + smooth))
    return found


def test_the_rotary_embeddings_of_llama_3_are_those_of_the_file():
    metadata = {
        "general.architecture": "llama",
        **{f"llama.{key}": 64 for key in ("embedding_length", "feed_forward_length", "block_count", "context_length")},
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.rope.freq_base": 500000.0,
    }
    tensors = {
        "token_embd.weight": gguf_files.Tensor("F16", (10, 64), 0, 0),
        "rope_freqs.weight": gguf_files.Tensor("F32", (32,), 0, 0),
    }
    header = gguf_files.Header("m.gguf", metadata, tensors)
    made = gguf_config.config(header, struct.pack("<32f", *llama3(64, 500000.0, 32.0)))
    assert made["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert made["rms_norm_eps"] == 1e-5 and made["head_dim"] == 64 and made["num_key_value_heads"] == 1
    with pytest.raises(
        QuantuneError, match=r"'rope_freqs.weight' is '2 at 0'; allowed: 1, as in Llama 3.1; give the or"
    ):
        gguf_config.config(header, struct.pack("<32f", *[2.0] * 31, 32.0))
    tensors.pop("rope_freqs.weight")
    for key in ("rope.scale_linear", "rope.scaling.factor"):  # files of 2023 have the first
        stretched = gguf_files.Header("m.gguf", metadata | {f"llama.{key}": 4.0}, tensors)
        assert gguf_config.config(stretched, None)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}, key


def metadata(change):
    """Return an edit that writes the model again with other metadata."""
    return lambda folder, path: gguf_model.write(folder, path, change=change)


def data(change):
    return lambda folder, path: path.write_bytes(change(path.read_bytes()))


PLANNED = {
    "magic": (
        data(lambda raw: b"GGML" + raw[4:]),
        "is no GGUF file (its first bytes are b'GGML'); download the file again",
    ),
    "empty": (data(lambda raw: b""), "has 0 bytes, which is no GGUF file"),
    "version": (data(lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:]), "is GGUF of version 1; allowed: 2, 3"),
    "counts": (data(lambda raw: raw[:8] + struct.pack("<Q", 2**60) + raw[16:]), "tensors and "),
    "cut-header": (
        data(lambda raw: raw[:5000]),
        "is damaged or cut off: its header does not end; download the file again",
    ),
    "cut-data": (data(lambda raw: raw[:-100_000]), "is cut off: '"),
    "pointer": (data(lambda raw: b"version https://git-lfs.github.com/spec/v1\n" * 3), "is a Git LFS pointer"),
    "long-text": (
        data(lambda raw: raw[:24] + struct.pack("<Q", 2**62) + raw[32:]),
        "is damaged or cut off: its header",
    ),
    "architecture": (
        data(
            lambda raw: raw.replace(
                b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00mamba", 1
            )
        ),
        "'general.architecture' is 'mamba'; allowed: llama, qwen2, qwen3; give the original model in Hugging Face",
    ),
    "experts": (
        metadata(lambda writer: writer.add_expert_count(8)),
        "'llama.expert_count' is 8; allowed: 0: no mixture",
    ),
    "rope": (
        metadata(lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)),
        "'llama.rope.scaling.type' is 'longrope'; allowed: none, linear, yarn",
    ),
    "yarn": (
        metadata(lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)),
        "'llama.rope.scaling.factor' is missing; allowed: a number above 0",
    ),
    "turned": (
        metadata(lambda writer: writer.add_rope_dimension_count(32)),
        "'llama.rope.dimension_count' is 32; allowed: 64, all values of a head",
    ),
    "split": (metadata(lambda writer: writer.add_uint16("split.count", 3)), "is one of 3 parts; allowed: a whole file"),
}


@pytest.mark.parametrize("case", PLANNED)
def test_a_broken_file_is_refused_before_any_job(raw, tmp_path, folders, case):
    edit, message = PLANNED[case]
    path = tmp_path / "model.gguf"
    gguf_model.write(folders["llama"], path)
    edit(folders["llama"], path)
    with pytest.raises(ConfigError) as caught:
        load.load(entry(raw, path))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"config: models.opt.path: '{tmp_path}': model.gguf: ") and message in line, line
    assert len(line) < 700


COPIED = {
    "tensor": (
        data(lambda raw: raw.replace(b"blk.0.ffn_up.", b"blk.0.ffn_up2")),
        "holds 'blk.0.ffn_up2weight', which no model",
    ),
    "pre": (
        data(
            lambda raw: raw.replace(b"\x05\x00\x00\x00\x00\x00\x00\x00gpt-2", b"\x05\x00\x00\x00\x00\x00\x00\x00other")
        ),
        "'tokenizer.ggml.pre' is 'other', a way to split texts that is not known; allowed: gpt-2, smollm, qwen2, llama",
    ),
    "model": (
        data(lambda raw: raw.replace(b"\x04\x00\x00\x00\x00\x00\x00\x00gpt2", b"\x04\x00\x00\x00\x00\x00\x00\x00bert")),
        "'tokenizer.ggml.model' is 'bert'; allowed: gpt2 (byte-level pairs), llama (SentencePiece)",
    ),
}


@pytest.mark.parametrize("case", COPIED)
def test_a_broken_file_is_refused_when_it_is_converted(raw, tmp_path, model_job, folders, case):  # noqa: F811
    edit, message = COPIED[case]
    path = tmp_path / "model.gguf"
    gguf_model.write(folders["llama"], path)
    edit(folders["llama"], path)
    with pytest.raises(QuantuneError) as caught:
        run_job(model_job, raw, path, tmp_path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"'{tmp_path}': ") and message in line and len(line) < 700, line


def test_a_file_is_named_as_the_configuration_expects(raw, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"has no config.json; give 'gguf_file' with one of a.gguf, or a model in"):
        load.load(entry(raw, tmp_path))
    with pytest.raises(ConfigError, match=r"models.opt.gguf_file: no file 'b.gguf' in '.*'; did you mean 'a.gguf'"):
        load.load(entry(raw, tmp_path, gguf_file="b.gguf"))
    with pytest.raises(ConfigError, match=r"models.opt.gguf_file: 'model.bin' is no GGUF file; give one such as"):
        load.load(entry(raw, tmp_path, gguf_file="model.bin"))
    with pytest.raises(
        ConfigError, match=r"models.opt.gguf_file: '.*a.gguf' is no folder; give the folder of the file"
    ):
        load.load(entry(raw, tmp_path / "a.gguf", gguf_file="a.gguf"))
