"""Exports of variants: each format opens in its own reader as the model it was made from; unsuitable ones are refused
before any job; a model card; uploads.
"""

import json
import shutil

import gguf
import numpy
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import close_session
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from quantune import exports
from quantune.artefacts.hashes import file_sha256
from quantune.core.errors import ConfigError, QuantuneError
from quantune.exports.ggml import modelfile, vocabulary, weights
from quantune.models import loading, probes
from quantune.models.eight_bit_linear import EightBitLinear
from quantune.models.foreign import gguf_conversion
from quantune.models.packed_linear import PackedLinear
from quantune.planning import load
from quantune.planning.plan import Plan
from quantune.quantizations.eight_bits import FP8
from quantune.quantizations.rtn import RoundToNearest
from quantune.upkeep import upload
from tests import records, uploads
from tests.conftest import OPT

CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}<s>system\nBe brief.</s>\n{% endif %}"
    "<s>{{ message.role }}\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
IN_USER = (
    "{% for message in messages %}{% if message.role == 'system' %}[INST] <<SYS>>{{ message.content }}<</SYS>>"
    "{% elif message.role == 'user' %}{% if loop.first %}[INST] {% endif %}{{ message.content }} [/INST]"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)
SHAPE = {
    "vocab_size": 610,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
TEXTS = ("Hello  wörld, it's 2024!\n\n\tdon't", "日本語 🙂  \r\n x", " leading", "</s>end<s>")


def made(folder, kind, template=CHATML, **shape):
    """Save a small model with random weights in float16, and the tokenizer of opt-2m."""
    torch.manual_seed(0)
    config = kind(**SHAPE | shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    for name, value in model.named_parameters():  # norms and biases begin as ones and zeros, which hide mistakes
        if value.dim() == 1:
            value.data = (torch.rand_like(value) + 0.5).to(value.dtype)
        assert value.isfinite().all(), name
    model.save_pretrained(folder)
    state = json.loads((OPT / "tokenizer.json").read_text())
    vocab = {text: number for text, number in state["model"]["vocab"].items() if number < 600}
    merges = [[*pair] for pair in state["model"]["merges"] if {*pair, "".join(pair)} <= vocab.keys()]
    state["model"] |= {"vocab": vocab, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    shutil.copyfile(OPT / "tokenizer_config.json", folder / "tokenizer_config.json")
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama whose values of tied embeddings, grouped queries and head size are unusual."""
    return made(tmp_path_factory.mktemp("llama") / "llama", LlamaConfig, tie_word_embeddings=True)


def written(checkpoint, folder, form="gguf-f16"):
    """Export a checkpoint; return the folder, and the facts of the provenance."""
    folder.mkdir()
    return folder, exports.by_name()[form].write(checkpoint, folder, "tiny+step")


KINDS = {
    "mistral": (MistralConfig, {"sliding_window": None, "tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, {"head_dim": 16}),
    "qwen3": (Qwen3Config, {"head_dim": 128}),
}
"""Kinds beside Llama; transformers reads other head sizes of Qwen from no GGUF file."""


@pytest.fixture(scope="module")
def checkpoints(llama, tmp_path_factory):
    """Return kind -> checkpoint of a model."""
    folder = tmp_path_factory.mktemp("kinds")
    return {"llama": llama} | {name: made(folder / name, kind, **shape) for name, (kind, shape) in KINDS.items()}


@pytest.mark.parametrize("kind", ["llama", *KINDS])
def test_transformers_reads_the_same_model_from_gguf(checkpoints, tmp_path, kind):
    folder, facts = written(checkpoints[kind], tmp_path / "export")
    (file,) = folder.glob("*.gguf")
    assert file.name == "tiny-step-F16.gguf"
    assert facts["relative_weight_error"] == 0
    expected = AutoModelForCausalLM.from_pretrained(checkpoints[kind], dtype=torch.float32).eval()
    opened = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()
    assert torch.equal(probes.probe_logits(opened), probes.probe_logits(expected))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_quantune_reads_the_same_model_and_tokenizer_from_its_own_file(checkpoints, tmp_path, kind):
    folder, _ = written(checkpoints[kind], tmp_path / "export")
    (file,) = folder.glob("*.gguf")
    (tmp_path / "read").mkdir()
    gguf_conversion.convert(file, tmp_path / "read")
    pair = [checkpoints[kind], tmp_path / "read"]
    logits = [probes.probe_logits(loading.whole(path, torch.device("cpu"), dtype=torch.float32)) for path in pair]
    assert torch.equal(*logits)
    first, second = map(loading.tokenizer, pair)
    assert [first(text).input_ids for text in TEXTS] == [second(text).input_ids for text in TEXTS]
    assert first.chat_template == second.chat_template


def test_biases_of_llama_are_interleaved_like_their_rows(tmp_path):
    checkpoint = made(tmp_path / "model", LlamaConfig, attention_bias=True)
    config = loading.config(checkpoint)
    value = torch.arange(128.0)
    rows = weights.reordered("model.layers.0.self_attn.q_proj.bias", value, config)
    assert rows[:6].tolist() == [0, 16, 1, 17, 2, 18]  # of the first head, which has 32 values
    assert rows[32:34].tolist() == [32, 48]
    assert weights.reordered("model.layers.0.self_attn.v_proj.bias", value, config) is value


def test_the_rotary_factors_of_llama_3_are_those_of_its_paper():
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(**SHAPE | {"rope_parameters": rope})
    factors = weights.rope_factors(config)
    lengths = 2 * torch.pi * 500000.0 ** (torch.arange(0, 32, 2) / 32)  # of the waves, in tokens
    assert torch.allclose(factors[lengths < 64 / 4], torch.ones(1))
    assert torch.allclose(factors[lengths > 64], torch.tensor(8.0))
    assert ((factors > 0.999) & (factors < 8.001)).all()
    assert weights.rope_factors(LlamaConfig(**SHAPE)) is None


def test_q8_0_rounds_to_its_grid(llama, tmp_path):
    folder, facts = written(llama, tmp_path / "export", "gguf-q8-0")
    reader = gguf.GGUFReader(folder / "tiny-step-Q8_0.gguf")
    stored = {item.name: item for item in reader.tensors}
    assert 1e-4 < facts["relative_weight_error"] < 0.01
    assert "output.weight" not in stored  # the token embeddings are the output embedding, too
    assert stored["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    item = stored["blk.1.ffn_down.weight"]
    assert item.tensor_type == gguf.GGMLQuantizationType.Q8_0
    expected = loading.whole(llama, torch.device("cpu"), dtype=torch.float32).model.layers[1].mlp.down_proj.weight
    blocks = expected.detach().numpy().reshape(64, 3, 32)
    found = gguf.quants.dequantize(item.data, item.tensor_type).reshape(64, 3, 32)
    step = numpy.abs(blocks).max(-1, keepdims=True) / 127
    assert (numpy.abs(found - blocks) <= 0.57 * step).all()  # the scale is rounded to float16
    assert int(reader.fields["general.file_type"].contents()) == gguf.LlamaFileType.MOSTLY_Q8_0


def test_values_beyond_float16_are_refused_and_fit_into_bfloat16(tmp_path):
    checkpoint = made(tmp_path / "model", LlamaConfig)
    model = loading.whole(checkpoint, torch.device("cpu"), dtype=torch.float32)
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] = 1e6
    model.save_pretrained(checkpoint)
    with pytest.raises(QuantuneError, match=r"layers\.0\.mlp\.up_proj\.weight' has values .* export 'gguf-bf16'"):
        written(checkpoint, tmp_path / "f16")
    _, facts = written(checkpoint, tmp_path / "bf16", "gguf-bf16")
    assert facts["relative_weight_error"] < 0.01


def test_a_tensor_without_a_name_in_llama_cpp_is_refused(tmp_path, llama):
    from safetensors.torch import load_file, save_file

    shutil.copytree(llama, tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    save_file(load_file(path) | {"model.layers.0.gate": torch.ones(3)}, path)
    with pytest.raises(QuantuneError, match=r"no tensor for 'model\.layers\.0\.gate'"):
        written(tmp_path / "model", tmp_path / "export")


def test_a_file_that_lost_a_value_is_found(llama, tmp_path):
    folder, _ = written(llama, tmp_path / "export")
    (path,) = folder.glob("*.gguf")
    stored = {item.name: item for item in gguf.GGUFReader(path, "r+").tensors}
    stored["blk.0.attn_q.weight"].data[:] = stored["blk.0.attn_q.weight"].data[::-1].copy()
    known = weights.Weights(llama, loading.config(llama), gguf.GGMLQuantizationType.F16)
    with pytest.raises(QuantuneError, match=r"blk\.0\.attn_q\.weight"):
        weights.relative_error(path, known)


def test_the_vocabulary_has_special_tokens_types_and_unused_rows(llama, tmp_path):
    folder, _ = written(llama, tmp_path / "export")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(folder / "tiny-step-F16.gguf").fields.items()}
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert len(fields["tokenizer.ggml.tokens"]) == 610
    assert fields["tokenizer.ggml.tokens"][605] == "[PAD605]"
    kinds = [gguf.TokenType(kind) for kind in fields["tokenizer.ggml.token_type"]]
    assert [kinds[2], kinds[300], kinds[605]] == [
        gguf.TokenType.CONTROL,
        gguf.TokenType.NORMAL,
        gguf.TokenType.UNUSED,
    ]
    assert fields["tokenizer.ggml.bos_token_id"] == 2
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False
    assert fields["tokenizer.chat_template"] == CHATML


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
MERGED = {"type": "BPE", "ignore_merges": False, "byte_fallback": False}


def split(pattern):
    """Return the steps of a tokenizer that splits by a pattern and then into bytes."""
    steps = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}]
    return {"type": "Sequence", "pretokenizers": [*steps, BYTES | {"use_regex": False}]}


@pytest.mark.parametrize(
    ("steps", "changes", "rule"),
    [
        (BYTES, {}, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}, {}, "smollm"),
        (split(vocabulary.QWEN_2), {}, "qwen2"),
        (split(vocabulary.LLAMA_3), {"ignore_merges": True}, "llama-bpe"),
        (None, {"byte_fallback": True}, "default"),
        (BYTES | {"add_prefix_space": True}, {}, None),
        (split(vocabulary.LLAMA_3), {}, None),
        (split(r"\p{N}{1,2}|."), {}, None),
        ({"type": "Whitespace"}, {}, None),
    ],
)
def test_the_rule_of_splitting_has_llama_cpps_name_or_is_refused(steps, changes, rule):
    normalizer = {"type": "Replace"} if rule == "default" else None
    state = {"model": MERGED | changes, "pre_tokenizer": steps, "normalizer": normalizer}
    if rule:
        assert vocabulary.split_rule(state) == rule
    else:
        with pytest.raises(QuantuneError, match="has no rule that splits"):
            vocabulary.split_rule(state)


def in_pieces(state, lines):
    """Return a tokenizer like that of Llama 2, trained on lines of text, with the tokens that another adds."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Prepend(vocabulary.SPACE), normalizers.Replace(" ", vocabulary.SPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    reserved = ["<s>", "<pad>", "</s>", "<unk>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=reserved, show_progress=False)
    tokenizer.train_from_iterator([word for line in lines for word in line.split()], trainer)
    made_of = json.loads(tokenizer.to_str())
    made_of["added_tokens"] = made_of["added_tokens"][:4]
    return made_of | {"post_processor": state["post_processor"]}


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "qwen2", "llama-bpe", "default"])
def test_llama_cpp_splits_texts_as_the_tokenizer_does(tmp_path, rule):
    llama_cpp = pytest.importorskip("llama_cpp")
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}
    steps = {
        "gpt-2": BYTES,
        "smollm": digits,
        "qwen2": split(vocabulary.QWEN_2),
        "llama-bpe": split(vocabulary.LLAMA_3),
    }
    lines = (OPT.parents[1] / "text/general/test.txt").read_text().split("\n")[:60]
    checkpoint = made(tmp_path / "model", LlamaConfig)
    path = checkpoint / "tokenizer.json"
    state = json.loads(path.read_text())
    if rule == "default":
        state = in_pieces(state, lines)
    else:
        state["pre_tokenizer"] = steps[rule]
        state["model"]["ignore_merges"] = rule == "llama-bpe"
    path.write_text(json.dumps(state))
    folder, _ = written(checkpoint, tmp_path / "export")
    (file,) = folder.glob("*.gguf")
    client, tokenizer = llama_cpp.Llama(str(file), vocab_only=True, verbose=False), loading.tokenizer(checkpoint)
    for text in (*TEXTS, "one 1234567 two", "  x\n\n\n  y", "can't I'LL WE'RE", " ", "tab\tx  ", "naïve ÀÉ", *lines):
        assert client.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text).input_ids, text
    client.close()


def test_scores_order_pieces_as_the_merges_do():
    tokens = ["a", "b", "c", "ab", "abc", "bc"]
    assert vocabulary.scores(tokens, [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]]) == [-4, -4, -4, -1, -2, 0]


def test_the_modelfile_repeats_the_chat_template(llama, tmp_path):
    folder, _ = written(llama, tmp_path / "export")
    text = (folder / "Modelfile").read_text()
    assert text.startswith("FROM ./tiny-step-F16.gguf\nTEMPLATE ")
    assert 'SYSTEM """Be brief."""' in text
    assert 'PARAMETER stop "</s>"' in text
    chat = modelfile.read(loading.tokenizer(llama))
    assert chat.before == {"system": "<s>system\n", "user": "<s>user\n", "assistant": "<s>assistant\n"}
    assert set(chat.after.values()) == {"</s>\n"}
    assert chat.answer == "<s>assistant\n"
    go = modelfile.go_template(chat)
    assert go.count("{{") == go.count("}}")
    assert "{{ if not $last }}</s>\n{{ end }}" in go


def test_a_chat_template_that_ollama_cannot_repeat_is_left_out(tmp_path):
    checkpoint = made(tmp_path / "model", LlamaConfig, template=IN_USER)
    assert modelfile.read(loading.tokenizer(checkpoint)) is None
    assert "TEMPLATE" not in modelfile.modelfile("x.gguf", checkpoint)


@pytest.mark.parametrize("kind", ["llama", *KINDS])
def test_llama_cpp_generates_and_scores_as_transformers(tmp_path, checkpoints, kind):
    """The client of the optional package: `make setup-llama`."""
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[kind])
    prompt = tokenizer("The wind blew over the harbour, and").input_ids
    tokens = torch.tensor([tokenizer((OPT.parents[1] / "text/general/test.txt").read_text()).input_ids[:200]])
    for form, tolerance in (("gguf-f16", 2e-3), ("gguf-q8-0", 2e-2)):
        folder, _ = written(checkpoints[kind], tmp_path / form, form)
        (file,) = folder.glob("*.gguf")
        source = (checkpoints[kind], {}) if form == "gguf-f16" else (folder, {"gguf_file": file.name})
        ours = AutoModelForCausalLM.from_pretrained(source[0], dtype=torch.float32, **source[1]).eval()
        client = llama_cpp.Llama(
            str(file), n_ctx=256, n_batch=256, n_threads=1, logits_all=True, verbose=False, flash_attn=False
        )
        for text in TEXTS:
            assert client.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text).input_ids
        client.eval(tokens[0].tolist())
        theirs = torch.tensor(client.scores[: tokens.shape[1]].copy())
        losses = [
            torch.nn.functional.cross_entropy(logits[:-1].double(), tokens[0, 1:])
            for logits in (theirs, ours(tokens).logits[0].detach())
        ]
        assert losses[0].exp().item() == pytest.approx(losses[1].exp().item(), rel=tolerance)
        if form == "gguf-f16":
            client.reset()
            stream = client.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
            generated = [token for token, _ in zip(stream, range(20), strict=False)]
            answer = ours.generate(torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False)
            assert generated == answer[0, len(prompt) :].tolist()
        client.close()


@pytest.mark.parametrize("method", [FP8(method="fp8"), RoundToNearest(method="rtn", bits=4, symmetric=False)])
def test_compressed_tensors_loader_reads_the_same_weights(tmp_path, method, monkeypatch):
    (tmp_path / "packed").mkdir()
    method.quantize(OPT, tmp_path / "packed")
    _, facts = written(tmp_path / "packed", tmp_path / "export", "compressed-tensors")
    assert facts["relative_weight_distance"] < 1e-6
    monkeypatch.setattr(PackedLinear, "dense", lambda layer, dtype: torch.zeros(layer.out_features, layer.in_features))
    monkeypatch.setattr(EightBitLinear, "dense", PackedLinear.dense)
    with pytest.raises(QuantuneError, match=r"reads other weights of 'model\.decoder\.layers\.0"):
        written(tmp_path / "packed", tmp_path / "other", "compressed-tensors")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("opt+lora/safetensors", "'opt+lora' is an adapter, and whole models are exported; export 'opt+lora+merge/saf"),
        (
            "opt/gguf-f16",
            "it is a 'opt' model; GGUF files are made of llama, mistral, qwen2, qwen3; export 'safetensors'",
        ),
        ("opt/compressed-tensors", "it is not quantized; export 'safetensors', which vLLM serves too"),
        ("opt+nf4/compressed-tensors", "its layers are not packed by compressed-tensors; export 'safetensors'"),
        ("opt+rtn-w4/gguf-q8-0", "it is quantized, and a GGUF file begins with full precision; export its parent"),
        ("opt+w3/compressed-tensors", "vLLM serves 4, 8 bits, not 3; export 'safetensors'"),
        ("opt+g16/compressed-tensors", "vLLM serves groups of 32, 64, 128, null, not 16; export 'safetensors'"),
        ("opt+auto/compressed-tensors", None),
        ("opt+fp8/compressed-tensors", None),
        ("opt+some5/compressed-tensors", "vLLM serves 4, 8 bits, not 5; export 'safetensors'"),
        ("opt+kept/compressed-tensors", "other programs leave out its channels in 16 bits; export an 'rtn' variant"),
        ("opt+kept/safetensors", "other programs leave out its channels in 16 bits; export an 'rtn' variant"),
        ("opt/gguf-q4", "'gguf-q4' is not a format of exports; allowed: compressed-tensors, gguf-bf16, gguf-f16"),
        ("opt", "exports: 'opt' is not a variant and a format; write 'opt/safetensors'"),
        ("op/safetensors", "'op' is not a model"),
    ],
)
def test_unsuitable_exports_are_refused_before_any_job(raw, wanted, message):
    raw["quantizations"] |= {
        "w3": {"method": "rtn", "bits": 3, "group_size": 32},
        "g16": {"method": "rtn", "bits": 4, "group_size": 16},
        "auto": {"method": "rtn", "bits": 4, "group_size": "auto"},
        "some5": {"method": "rtn", "bits": 4, "group_size": 32, "overrides": {"fc2": {"bits": 5}}},
        "kept": {"method": "mixed-channels", "bits": 4, "group_size": 32, "dataset": "harbour", "length": 16},
        "fp8": {"method": "fp8", "activations": "none"},
    }
    raw["exports"] = [wanted]
    if message is None:
        assert load.load(raw).exports == [wanted]
        return
    with pytest.raises(ConfigError) as error:
        load.load(raw)
    assert message in str(error.value)
    assert str(error.value).startswith("config: exports: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rotary embedding is of type 'yarn'"),
        ({"rope_scaling": {"type": "dynamic"}}, "rotary embedding is of type 'dynamic'"),
        ({"hidden_act": "gelu"}, "its activation is 'gelu'"),
        ({"use_sliding_window": True}, "it attends to a sliding window"),
        ({"hidden_size": 40}, "its rows of 40 weights are no whole blocks of 32; export 'gguf-f16'"),
    ],
)
def test_models_that_llama_cpp_computes_in_another_way_are_refused(changes, message):
    config = SHAPE | {"model_type": "qwen2"} | changes
    assert message in exports.by_name()["gguf-q8-0"].unsuitable(exports.Exported(config))
    assert exports.by_name()["gguf-q8-0"].unsuitable(exports.Exported(SHAPE | {"model_type": "qwen2"})) is None


def test_the_licence_and_the_numbers_are_part_of_an_export(raw):
    raw["exports"] = ["opt+rtn-w4/{safetensors,compressed-tensors}"]
    raw["quantizations"]["rtn-w4"]["group_size"] = 64
    first = Plan(load.load(raw)).export("opt+rtn-w4", "safetensors")
    assert {item.path.split("/")[-2] for item in first.parents["evaluations"]} == {"opt", "opt+rtn-w4"}
    assert {item.path.split("/")[-1] for item in first.parents["evaluations"]} == {"harbour", "news"}  # with numbers
    raw["models"]["opt"]["licence"] = "mit"
    second = Plan(load.load(raw))
    assert second.export("opt+rtn-w4", "safetensors").digest != first.digest
    assert second.checkpoint("opt").digest == first.parents["checkpoint"].parents["parent"].digest


def test_an_export_is_planned_with_what_it_needs(project):
    project.write(project.config | {"exports": ["opt+lora+merge/safetensors"]})
    assert project.planned("exports") == {"exports/opt+lora+merge/safetensors"}


@pytest.mark.slow
def test_exports_of_a_finished_project(project):
    """One is copied, one is read by compressed-tensors' own loader; both have a card, and are current afterwards."""
    wanted = ["opt+lora+merge/safetensors", "opt+lora+merge+rtn-b/compressed-tensors"]
    project.write(project.config | {"exports": wanted})
    project.run("exports", "--cores", "2")
    assert project.planned("exports") == set()
    plain, packed = (project.work / "exports" / name for name in wanted)
    source = project.work / "checkpoints/opt+lora+merge"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (plain / name).read_bytes() == (source / name).read_bytes()
    facts = json.loads((packed / "provenance.json").read_text())
    assert facts["facts"]["relative_weight_distance"] < 1e-6
    assert facts["stage"] == "export/compressed-tensors"
    card = ModelCard.load(packed / "README.md")
    assert card.data.library_name == "transformers"
    assert {result.dataset_name for result in card.data.eval_results} == {"log", "general"}
    assert "| `log` | `log`, split `test` | perplexity, lower is better |" in card.text
    assert "`opt`, the original model" in card.text
    assert "vllm serve PATH" in card.text
    assert "`models.opt.licence`" in card.text
    written_back = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert written_back["variants"] == ["opt+lora+merge+rtn-b"]
    assert written_back["quantizations"] == {"rtn-b": project.config["quantizations"]["rtn-b"]}
    assert str(project.path) not in card.text
    printed = project.run("work/exports/opt+lora/safetensors", check=False)
    assert "'opt+lora' is an adapter, and whole models are exported; export 'opt+lora+merge/safetensors'" in printed


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that takes uploads with any token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    with uploads.serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{served.port}")
        close_session()
        yield served
    close_session()


@pytest.fixture
def export(tmp_path):
    """The folder of an export."""
    folder = tmp_path / "work/exports/opt+lora+merge/safetensors"
    folder.mkdir(parents=True)
    for name, content in {"README.md": "---\nlicense: mit\n---\nCard.\n", "model.safetensors": "weights"}.items():
        (folder / name).write_text(content)
    recipe = {"format": "safetensors", "licences": {"models.opt": None}}
    provenance = {"digest": "d", "stage": "export/safetensors", "version": 1, "recipe": recipe, "sources": {}}
    files = [{"path": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)} for path in folder.iterdir()]
    records.write(folder, provenance | {"parents": {}, "facts": {}, "packages": {}, "files": files})
    return folder


def test_an_upload_makes_a_private_repository_and_keeps_the_token_from_the_storage(hub, export, capsys):
    upload.push(str(export), "me/tiny")
    files = hub.repositories["me/tiny"]["main"]
    assert set(files) == {".gitattributes", "README.md", "model.safetensors", "provenance.json"}  # no run.json
    assert files["model.safetensors"] == b"weights"
    assert hub.private["me/tiny"]
    assert f"uploaded: http://127.0.0.1:{hub.port}/me/tiny/commit/" in capsys.readouterr().out
    hosts = {host.split(":")[0]: token for _, host, _, token in hub.requests}
    assert hosts == {"127.0.0.1": "Bearer hf_secret", "localhost": None}


def test_an_upload_overwrites_only_the_branch_that_is_named(hub, export, capsys):
    upload.push(str(export), "me/tiny")
    before = dict(hub.repositories["me/tiny"]["main"])
    with pytest.raises(SystemExit) as stopped:
        upload.push(str(export), "me/tiny")
    assert "'me/tiny' already holds 3 files; give REVISION=name" in str(stopped.value)
    hub.repositories["me/tiny"]["main"]["old.bin"] = b"old"
    upload.push(str(export), "me/tiny", "v2")
    assert "old.bin" not in hub.repositories["me/tiny"]["v2"]
    assert hub.repositories["me/tiny"]["main"] == before | {"old.bin": b"old"}
    upload.push(str(export), "me/tiny", "main")
    assert hub.repositories["me/tiny"]["main"] == before
    hub.private["me/tiny"] = False
    with pytest.raises(SystemExit, match="the licence of the model is not known"):  # now anyone would see it
        upload.push(str(export), "me/tiny", "v2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("me",), "TO='me' is not a repository on the hub; give owner/name"),
        (("me/tiny", "a..b"), "REVISION='a..b' is not a branch"),
        (("me/tiny", "", "1"), "the licence of the model is not known; write 'models.opt.licence'"),
        (("me/tiny", "", "yes"), "PUBLIC=yes is not allowed"),
    ],
)
def test_wrong_uploads_are_refused_before_any_request(hub, export, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        upload.push(str(export), *arguments)
    assert message in str(stopped.value)
    assert not hub.requests


def test_damaged_exports_other_folders_and_missing_tokens_are_refused(hub, export, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="is no export; make one first"):
        upload.push(str(tmp_path), "me/tiny")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="an upload needs a token"):
        upload.push(str(export), "me/tiny")
    (export / "model.safetensors").write_text("wrights")
    with pytest.raises(SystemExit, match=r"model\.safetensors is not the file that was made"):
        upload.push(str(export), "me/tiny")
    assert not hub.requests
