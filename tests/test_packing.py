"""Whole documents in one sequence, and the loss on responses: equal to the loss of each document alone."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch

from quantune.core.errors import ConfigError, QuantuneError
from quantune.data import chat, examples, packing, tokens
from quantune.data.batches import IGNORED, in_batches
from quantune.evaluations.generation import Generation
from quantune.evaluations.perplexity import Perplexity
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop, loss
from quantune.models import loading
from quantune.planning import load
from tests.conftest import OPT
from tests.test_chat import FIRST, OWN, REAL, SECOND, TWO, messages
from tests.zoo import MODELS

TALKS = [
    TWO,
    [FIRST, SECOND],
    [("user", "Name the three lights of the coast"), ("assistant", "Pell, Arrow, Saltmere.")],
]


def written(folder: Path, tokenizer, talks=TALKS) -> Path:
    """Write conversations as the stage `tokenize` does."""
    chat.write([messages(*turns) for turns in talks], tokenizer, folder / "train.arrow")
    return folder


def with_own_template():
    """Return the tokenizer of opt-2m with the chat template of this test."""
    own = loading.tokenizer(OPT)
    own.chat_template = OWN
    return own


tokenizer = pytest.fixture(with_own_template, name="tokenizer")


@pytest.fixture
def prepared(tmp_path, tokenizer):
    return written(tmp_path, tokenizer)


def texts(folder: Path, tokenizer, *documents: str) -> Path:
    tokens.write((text.encode() for text in documents), tokenizer, folder / "train.arrow")
    return folder


def counted(data, tokenizer, number: int = 0) -> str:
    """Return the text of the labels that the loss counts, in one example."""
    labels = data.batch([number])["labels"][0]
    print(
        list(zip(tokenizer.convert_ids_to_tokens(data.batch([number])["input_ids"][0]), labels.tolist(), strict=True))
    )
    return tokenizer.decode(labels[labels != IGNORED])


LAST = "Two miles,\nor “three”."


@pytest.mark.parametrize(
    ("loss_on", "text"),
    [
        (None, f"North.</s>{LAST}</s>"),
        ("responses", f"North.</s>{LAST}</s>"),
        ("last-response", f"{LAST}</s>"),
        ("everything", f"user>Which way?<assistant>North.</s>\n<user>How far?<assistant>{LAST}</s>\n"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_counts_the_responses(prepared, tokenizer, loss_on, text, packed):
    longest = examples.read(prepared, "train", OPT, 60, packing=False).lengths()[0]
    data = examples.read(prepared, "train", OPT, longest, packing=packed, loss_on=loss_on)
    number = 0 if not packed else next(at for at in range(len(data)) if data.inside(at) == [0])
    assert counted(data, tokenizer, number) == text
    assert data.labels([number]) == int((data.batch([number])["labels"] != IGNORED).sum())


@pytest.mark.skipif(not REAL.exists(), reason="needs smollm2-135m-instruct: set REAL to its folder")
@pytest.mark.parametrize(
    ("loss_on", "text"), [("responses", f"North.<|im_end|>{LAST}<|im_end|>"), ("last-response", f"{LAST}<|im_end|>")]
)
def test_the_loss_of_smollm2_counts_the_responses(tmp_path, loss_on, text):
    tokenizer = loading.tokenizer(REAL)
    data = examples.read(written(tmp_path, tokenizer), "train", REAL, 128, packing=False, loss_on=loss_on)
    assert counted(data, tokenizer) == text


def test_a_long_conversation_is_cut_and_one_without_a_label_is_left_out(prepared, capsys):
    data = examples.read(prepared, "train", OPT, 16, packing=False)
    assert data.cut == 2 and len(data) == 2 and data.lengths() == [16, 16]
    assert "left out 1 conversations whose responses begin after 16 tokens" in capsys.readouterr().out
    with pytest.raises(QuantuneError, match="no response begins within 4 tokens; raise 'length'"):
        examples.read(prepared, "train", OPT, 4)


@pytest.mark.parametrize("seed", range(5))
def test_documents_fill_sequences(seed):
    sizes = numpy.random.default_rng(seed).integers(1, 33, 400)
    members, begins = packing.packed(sizes, 32)
    assert sorted(members) == list(range(400))
    filled = numpy.add.reduceat(sizes[members], begins[:-1])
    assert filled.max() <= 32 and filled.sum() == sizes.sum() and len(filled) <= sizes.sum() / 32 * 1.1


def tiny(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.use_cache = False
    return model.eval()


@pytest.mark.parametrize("name", ["opt", "llama", "mistral"])
@pytest.mark.parametrize("kind", ["chat", "text"])
def test_the_loss_of_packed_documents_is_that_of_each_alone(tmp_path, tokenizer, name, kind):
    """A padded batch and packed sequences give the mean over the labels of each document alone, in every model."""
    words = "The keeper climbed the stair and lit the lamp before the fog came in from the sea. " * 3
    documents = [words, words[40:], "A second entry, later.", "Wind from the north all day."]
    folder = written(tmp_path, tokenizer) if kind == "chat" else texts(tmp_path, tokenizer, *documents)
    model = tiny(name)
    padded, packed = (examples.read(folder, "train", OPT, 96, packing=how) for how in (False, "separate"))
    packing.settle(model, [packed, None])
    assert packed.masked == (name == "opt") and len(packed) < len(padded)
    with torch.no_grad(), loss.fused(model):
        alone = [model(**padded.batch([number])).loss.item() for number in range(len(padded))]
        counts = [padded.labels([number]) for number in range(len(padded))]
        expected = numpy.average(alone, weights=counts)
        assert model(**padded.batch(list(range(len(padded))))).loss.item() == pytest.approx(expected, rel=1e-5)
        batch = packed.batch(list(range(len(packed))))
        assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-5)
        del batch["attention_mask" if packed.masked else "position_ids"]
        assert model(**batch).loss.item() != pytest.approx(expected, rel=1e-4), "the documents are kept apart by this"
    assert packed.labels(list(range(len(packed)))) == sum(counts)


@pytest.mark.skipif(not REAL.exists(), reason="needs smollm2-135m-instruct: set REAL to its folder")
def test_packed_conversations_of_smollm2(tmp_path):
    tokenizer, model = loading.tokenizer(REAL), loading.model([REAL], "float32")
    model.config.use_cache = False
    folder = written(tmp_path, tokenizer)
    padded, packed = (examples.read(folder, "train", REAL, 256, packing=how) for how in (False, True))
    packing.settle(model, [packed])
    assert len(packed) == 1
    with torch.no_grad():
        alone = [model(**padded.batch([number])).loss.item() for number in range(3)]
        expected = numpy.average(alone, weights=[padded.labels([number]) for number in range(3)])
        assert model(**packed.batch([0])).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "ways"),
    [("gemma2", (True, False)), ("falcon-7b", (False, True)), ("qwen3", (True, True)), ("bloom", (False, False))],
)
def test_ways_to_keep_documents_apart(name, ways):
    assert tuple(packing.apart(tiny(name), masked) for masked in (False, True)) == ways


def test_a_model_that_cannot_keep_documents_apart_is_refused(prepared, raw):
    data = examples.read(prepared, "train", OPT, 60)
    with pytest.raises(QuantuneError, match=r"'bloom' cannot keep packed documents apart.*set 'packing: false'"):
        packing.settle(tiny("bloom"), [data])


def test_training_on_packed_conversations(prepared, tmp_path):
    recipe = LoRA(method="lora", dataset="any", steps=12, length=60, learning_rate=0.01, batch_size=2, evaluate_every=6)
    data = examples.read(prepared, "train", OPT, 60, packing=recipe.packing, loss_on=recipe.loss_on)
    model = loading.model([OPT], "float32")
    model.config.use_cache = False
    model = recipe.prepare(model, 0)
    packing.settle(model, [data])
    (tmp_path / "out").mkdir()
    with loss.fused(model):
        before = loop.mean_loss(model, data, recipe)
        facts = loop.train(model, recipe, 0, data, None, tmp_path / "out", tmp_path)
        assert loop.mean_loss(model, data, recipe) < before - 0.5
    assert facts["steps"] == 12
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in in_batches(data, 2)) == data.labels(
        [*range(len(data))]
    )


CHAT = {"path": "", "chat": "prompt-completion", "splits": {"train": 0.5, "test": 0.5}}


@pytest.fixture
def talk(raw, tmp_path):
    """A configuration with a dataset of conversations, on which the LoRA trains."""
    path = tmp_path / "data/talk.jsonl"
    path.write_text('{"prompt": "Which way?", "completion": "North."}\n' * 4)
    raw["datasets"]["talk"] = CHAT | {"path": str(path)}
    raw["models"]["opt"]["chat_template"] = "alpaca"
    raw["finetunings"]["lora"] |= {"dataset": "talk", "validation_split": None}
    return raw


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"loss_on": "last-response", "packing": False}, None),
        ({"dataset": "harbour", "packing": "separate", "end_of_text": False}, None),
        ({"dataset": "harbour", "loss_on": "responses"}, "finetunings.lora.loss_on: 'responses' needs conversations"),
        ({"packing": "apart"}, "finetunings.lora.packing"),
    ],
)
def test_keys_of_conversations(talk, changes, problem):
    talk["finetunings"]["lora"] |= changes
    if problem is None:
        load.load(talk)
    else:
        with pytest.raises(ConfigError, match=problem):
            load.load(talk)


def test_draws_of_documents_are_for_texts(talk):
    talk["quantizations"]["gptq"] = {"method": "gptq", "bits": 4, "group_size": 32, "dataset": "talk", "split": "train"}
    load.load(talk)
    talk["quantizations"]["gptq"]["draw"] = "documents"
    with pytest.raises(ConfigError, match=r"gptq.draw: 'documents' is for text, and 'talk' holds conversations"):
        load.load(talk)


def test_a_model_that_cannot_is_refused_before_any_job(talk, write_model):
    shape = {"model_type": "bloom", "hidden_size": 64, "n_layer": 1, "n_head": 1, "vocab_size": 100}
    talk["models"]["bloom"] = {"path": write_model("bloom", shape)}
    talk["variants"] = ["bloom+lora"]
    with pytest.raises(ConfigError, match=r"finetunings.lora.packing: .* 'bloom' cannot keep .* 'packing: false'"):
        load.load(talk)


def test_a_model_without_a_chat_template_is_refused_before_any_job(talk):
    del talk["models"]["opt"]["chat_template"]
    problem = r"models.opt.chat_template: 'finetunings.lora' needs a chat template, and the model has none; give one of"
    with pytest.raises(ConfigError, match=problem):
        load.load(talk)
    talk["finetunings"]["lora"] |= {"dataset": "harbour"}
    load.load(talk)
    talk["evaluations"]["prompts"]["chat"] = True
    with pytest.raises(ConfigError, match=r"'evaluations.prompts' needs a chat template"):
        load.load(talk)


def test_perplexity_of_responses(tmp_path, tokenizer, monkeypatch):
    """Each response's content, after its own conversation: the losses of the model itself, token by token."""
    (tmp_path / "data").mkdir()
    folder = written(tmp_path / "data", tokenizer)
    variant = loading.LoadedVariant([OPT])
    recipe = Perplexity(kind="perplexity", dataset="any", split="train", length=64, batch_size=2)
    result = recipe.evaluate(variant, folder, tmp_path)
    total = count = 0
    for turns in TALKS:
        (columns,) = chat.encode([messages(*turns)], tokenizer)
        ids = torch.from_numpy(columns["ids"])[None]
        with torch.no_grad():
            chances = variant.model("float32")(input_ids=ids).logits[0, :-1].log_softmax(-1)
        own = torch.from_numpy(columns["turns"][1:] > 0)
        total -= float(chances.gather(1, ids[0, 1:, None])[own].double().sum())
        count += int(own.sum())
    assert result["tokens"] == count == result["tokens_in_split"] and result["windows"] == 3
    assert result["token_perplexity"] == pytest.approx(numpy.exp(total / count), rel=1e-6)
    assert result["bytes"] == sum(
        len(words.encode()) for turns in TALKS for role, words in turns if role == "assistant"
    )
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert "only the contents of its responses" in recipe.read(tmp_path, OPT).details["context"]
    short = recipe.model_copy(update={"length": 16}).evaluate(variant, folder, tmp_path)
    assert short["tokens"] == count, "a conversation longer than a window is scored in several"


def test_generation_through_the_template(tmp_path, tokenizer):
    folder = tmp_path / "opt"
    shutil.copytree(OPT, folder)
    (folder / "chat_template.jinja").write_text(OWN)
    recipe = Generation(kind="generation", prompts=["Which way?"], chat=True, max_new_tokens=5)
    assert recipe.identity()["chat"] and "chat" not in recipe.model_copy(update={"chat": False}).identity()
    recipe.evaluate(loading.LoadedVariant([folder]), None, tmp_path)
    item = json.loads((tmp_path / "items.jsonl").read_text())
    model = loading.model([OPT], "float32")
    written = tokenizer("<user>Which way?<assistant>", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        output = model.generate(written, max_new_tokens=5, do_sample=False)
    assert item["text"] == tokenizer.decode(output[0, written.shape[1] :], skip_special_tokens=True)
