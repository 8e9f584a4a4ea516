"""The training loop: one example a document, float16, points of the curves, which weights are kept."""

import csv
import json
import math

import numpy
import pyarrow
import pytest
import torch
from pydantic import ValidationError

from quantune.core.errors import QuantuneError
from quantune.data import examples, text, tokens
from quantune.data.batches import IGNORED
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop, loss, optimizers, precision
from quantune.models import adapters, architecture, loading
from tests.conftest import OPT
from tests.test_memory import METHODS, SMALL, built

KEYS = {"method": "lora", "dataset": "any", "rank": 4, "learning_rate": 6e-3, "batch_size": 2}
SIZES = [9, 30, 5, 17, 2, 24]


def written(folder, split, ids):
    """Write tokenized documents as the stage `tokenize` does."""
    columns = {"ids": ids, "bytes": ids, "words": ids}
    with (
        pyarrow.OSFile(str(folder / f"{split}.arrow"), "wb") as sink,
        pyarrow.ipc.new_file(sink, tokens.SCHEMA) as writer,
    ):
        writer.write_table(pyarrow.table(columns, schema=tokens.SCHEMA))


@pytest.fixture
def prepared(tmp_path):
    """A folder with documents of `SIZES` tokens, and an empty one."""
    draw = numpy.random.default_rng(0)
    written(tmp_path, "train", [[], *(draw.integers(5, 12000, size).tolist() for size in SIZES)])
    return tmp_path


def documents(prepared, length=64, **form) -> text.Documents:
    return examples.read(prepared, "train", OPT, length, packing=False, **form)


def trained(prepared, folder, recipe, data=None, validation=None, dtype=None, parent=OPT):
    """Train; return the model, its trained weights and the facts."""
    scratch = folder.with_name(f"{folder.name}-scratch")
    folder.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    data = data or documents(prepared)
    model = recipe.prepare(loading.model([parent], dtype or recipe.precision), 0)
    with loss.fused(model):
        facts = loop.train(
            model, recipe, 0, data, validation, folder, scratch, lambda path: adapters.save_adapter(model, path)
        )
    return model, [value.detach().clone() for value in model.parameters() if value.requires_grad], facts


def scaled_from(scale: float):
    """Return a function that makes the scaler of the loss, with another first scale."""
    return lambda _, recipe: torch.amp.GradScaler("cpu", scale, enabled=recipe.precision == "float16")


def curve(folder) -> list[dict[str, str]]:
    with (folder / "curves.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("end_of_text", [True, False])
def test_a_document_is_an_example_padded_to_the_longest_of_its_batch(prepared, tokenizer, end_of_text, capsys):
    data = documents(prepared, 20, end_of_text=end_of_text)
    extra = 1 + end_of_text
    assert data.lengths() == [min(size + extra, 20) for size in SIZES] and data.cut == 2
    assert "2 of 6 documents are longer than 20 tokens and were cut" in capsys.readouterr().out
    batch = data.batch([0, 2])
    ids, mask, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
    assert ids.shape == (2, SIZES[0] + extra) and ids[:, 0].tolist() == 2 * [tokenizer.bos_token_id]
    assert mask.sum(1).tolist() == [SIZES[0] + extra, SIZES[2] + extra]
    assert (ids[1, SIZES[2] + extra :] == tokenizer.pad_token_id).all() and (labels[mask == 0] == IGNORED).all()
    assert torch.equal(labels[:, 1:][mask[:, 1:] == 1], ids[:, 1:][mask[:, 1:] == 1])
    last = [int(ids[0, -1]), int(ids[1, SIZES[2] + extra - 1])]
    assert (last == 2 * [tokenizer.eos_token_id]) is end_of_text
    assert data.labels([0, 2]) == int((labels[:, 1:] != IGNORED).sum()) == sum(data.lengths()[n] - 1 for n in (0, 2))


def test_the_loss_of_a_padded_batch_is_the_mean_over_the_documents_alone(prepared):
    data, model = documents(prepared), loading.model([OPT], "float32")
    with torch.no_grad(), loss.fused(model):
        alone = [float(model(**data.batch([number])).loss) for number in range(len(data))]
        together = float(model(**data.batch(list(range(len(data))))).loss)
    assert together == pytest.approx(numpy.average(alone, weights=[size - 1 for size in data.lengths()]), rel=1e-5)
    recipe = LoRA(**KEYS, steps=1, max_validation=3)
    first = numpy.average(alone[:3], weights=[size - 1 for size in data.lengths()[:3]])
    assert loop.mean_loss(model, data, recipe) == pytest.approx(first, rel=1e-5)


def test_each_label_counts_once_however_documents_are_divided_into_batches(prepared, monkeypatch):
    gradients = []

    def recorded(parameters, limit):
        gradients.append(torch.cat([parameter.grad.flatten().clone() for parameter in parameters]))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", recorded)
    for sizes in ({"batch_size": 6}, {"batch_size": 1, "gradient_accumulation": 6}):
        recipe = LoRA(**KEYS | sizes, steps=1, packing=False, group_by_length=False)
        trained(prepared, prepared / "out", recipe)
    whole, parts = gradients
    assert (parts - whole).norm() / whole.norm() < 1e-5


def test_batches_are_of_similar_length_only_if_wanted(prepared, monkeypatch):
    seen = []
    monkeypatch.setattr(loop.Order, "__init__", lambda self, count, seed, lengths, batch: seen.append(lengths))
    for wanted in (True, False):
        with pytest.raises(AttributeError):  # the order is not drawn
            trained(prepared, prepared / "out", LoRA(**KEYS, steps=1, packing=False, group_by_length=wanted))
    assert seen == [documents(prepared).lengths(), None]


def test_float16_learns_as_float32_and_norms_stay_float32(prepared, tmp_path, monkeypatch):
    """Within 0.05 nats at each of 6 steps, from a scale of the loss on that skips none."""
    monkeypatch.setattr(precision, "scaler", scaled_from(2.0**12))
    curves = {}
    for dtype in ("float32", "float16"):
        recipe = LoRA(**KEYS, steps=6, precision=dtype, evaluate_every=1, packing=False)
        model, _, facts = trained(prepared, tmp_path / dtype, recipe)
        curves[dtype] = numpy.array([float(point["train_loss"]) for point in curve(tmp_path / dtype)[1:]])
    kinds = {str(value.dtype) for name, value in model.named_parameters() if "norm" in name or "lora" in name}
    assert kinds == {"torch.float32"} and model.get_input_embeddings().weight.dtype == torch.float16
    assert curves["float32"][-1] < curves["float32"][0] - 0.3
    assert numpy.abs(curves["float32"] - curves["float16"]).max() < 0.05
    assert facts["skipped_steps"] == 0 and facts["loss_scale"] == 2**12


@pytest.mark.parametrize("method", ["int8", "rtn"])
def test_on_a_quantized_model_float16_keeps_all_other_weights_in_float32(prepared, tmp_path, method):
    (base := tmp_path / "base").mkdir()
    METHODS[method](method=method).quantize(OPT, base)
    recipe = LoRA(**KEYS, steps=4, precision="float16", evaluate_every=1, packing=False)
    dtype = precision.loaded_dtype(recipe, quantized=True)
    data = documents(prepared)
    model, _, _ = trained(prepared, tmp_path / "out", recipe, data, data, dtype, base)
    assert {value.dtype for value in model.parameters() if value.is_floating_point()} == {torch.float32}
    losses = [float(point["validation_loss"]) for point in curve(tmp_path / "out")]
    assert losses[-1] < losses[0] - 0.5


def test_small_gradients_do_not_vanish_in_float16():
    """The gradient of the loss in chunks equals that in float32, also if many labels share the mean."""
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    head.weight.mul_(0.05)
    states, labels = 0.1 * torch.randn(64, 64, 8), torch.randint(50, (64, 64))
    targets = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]

    def chunked(part: torch.Tensor) -> torch.Tensor:
        return loss.cross_entropy(part, targets, head)

    def as_on_a_gpu(part: torch.Tensor) -> torch.Tensor:
        """Compute in 16 bits under autocast, with the float32 output of a norm."""
        return loss._CrossEntropy.apply(part.flatten(0, 1), head.weight, None, targets.flatten(), 0.0)

    def gradient(dtype: torch.dtype, mixed: bool, product=chunked) -> torch.Tensor:
        part = states.clone().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=mixed):
            value = product(part)
        (value * 2**16).backward()
        return part.grad.float()

    exact = gradient(torch.float32, False)
    for found in (gradient(torch.float16, True), gradient(torch.float32, True, as_on_a_gpu)):
        assert (found - exact).norm() / exact.norm() < 0.002


def test_skipped_steps_are_counted_and_a_killed_run_ends_with_the_same_bits(prepared, tmp_path, monkeypatch, capsys):
    """The scale of the loss is too large in the first steps; the run is killed while it still falls."""
    monkeypatch.setattr(precision, "scaler", lambda *_: torch.amp.GradScaler("cpu", 2.0**18))
    recipe = LoRA(
        **KEYS, steps=12, precision="float16", save_every=2, evaluate_every=4, packing=False, warmup_ratio=0.5
    )
    _, whole, facts = trained(prepared, tmp_path / "whole", recipe)
    assert 3 <= facts["skipped_steps"] <= 9 and facts["loss_scale"] == 2.0 ** (18 - facts["skipped_steps"])
    assert f"{facts['skipped_steps']} of 12 steps were skipped" in capsys.readouterr().out
    rate = float(curve(tmp_path / "whole")[-1]["learning_rate"])
    assert rate > 0, "the schedule does not count skipped steps"
    with pytest.raises(InterruptedError):
        trained(prepared, tmp_path / "cut", recipe, Killed(documents(prepared), 3))
    _, resumed, again = trained(prepared, tmp_path / "cut", recipe)
    assert again["run"]["resumed_from_step"] == 2
    assert {key: value for key, value in again.items() if key != "run"} == {
        key: value for key, value in facts.items() if key != "run"
    }
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    assert (tmp_path / "whole/curves.csv").read_text() == (tmp_path / "cut/curves.csv").read_text()


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_other_optimizers_learn_alike_and_a_killed_run_ends_with_the_same_bits(prepared, tmp_path, optimizer):
    keys = KEYS | {"rank": 32, "steps": 8, "save_every": 2, "evaluate_every": 4, "packing": False}
    _, plain, _ = trained(prepared, tmp_path / "plain", LoRA(**keys))
    recipe = LoRA(**keys, optimizer=optimizer)
    _, whole, _ = trained(prepared, tmp_path / "whole", recipe)
    change = [(one - other).norm() / other.norm() for one, other in zip(whole, plain, strict=True)]
    assert max(change) < (0.25 if "8bit" in optimizer else 1e-5)
    assert "8bit" not in optimizer or max(change) > 1e-6, "some means are in 8 bits"
    with pytest.raises(InterruptedError):
        trained(prepared, tmp_path / "cut", recipe, Killed(documents(prepared), 5))
    _, resumed, again = trained(prepared, tmp_path / "cut", recipe)
    assert again["run"]["resumed_from_step"] == 4
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_the_memory_of_an_optimizer_is_predicted(optimizer):
    recipe = LoRA(**KEYS, steps=1, optimizer=optimizer)
    weights = [torch.nn.Parameter(torch.ones(64, 256)) for _ in range(4)]
    made = optimizers.build(recipe, {str(number): weight for number, weight in enumerate(weights)})
    sum(weight.sum() for weight in weights).backward()
    made.step()
    tables = ("qmap1", "qmap2", "step")  # shared by all tensors
    found = [value for state in made.state.values() for name, value in state.items() if name not in tables]
    assert sum(value.nbytes for value in found) == recipe.optimizer_bytes(4 * 64 * 256)


class Killed:
    """Examples that end a training in its step `stop`, counted from 0, as a killed job ends."""

    def __init__(self, data, stop: int):
        self.data, self.left = data, stop

    def __len__(self):
        return len(self.data)

    def __getattr__(self, name):
        return getattr(self.data, name)

    def batch(self, chosen):
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return self.data.batch(chosen)


def test_gradients_that_overflow_at_every_scale_are_an_error(monkeypatch):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.SGD([weight], 0.1), torch.amp.GradScaler("cpu", 4.0)
    with pytest.raises(QuantuneError, match="overflow float16; lower 'learning_rate', or take 'precision: bfloat16'"):
        for _ in range(40):
            scaler.scale((weight * math.inf).sum()).backward()
            assert not precision.step(scaler, optimizer)
    assert weight.tolist() == [1, 1]


def test_an_epoch_has_a_point_at_its_end_and_the_log_has_more(prepared, tmp_path):
    """6 documents in batches of 4: epochs end in the steps 2, 3, 5, 6 (with 6, 12, 18 and 24 documents)."""
    keys = KEYS | {"batch_size": 4}
    recipe = LoRA(**keys, epochs=4, evaluate_every="epoch", log_every=1, packing=False)
    data = documents(prepared)
    _, _, facts = trained(prepared, tmp_path / "out", recipe, data, data)
    points = curve(tmp_path / "out")
    assert [int(point["step"]) for point in points] == list(range(7)) and facts["steps"] == 6 and facts["epochs"] == 4
    assert [int(point["step"]) for point in points if point["validation_loss"]] == [0, 2, 3, 5, 6]
    losses = [float(point["train_loss"]) for point in points[1:]]
    assert facts["mean_train_loss"] == pytest.approx(numpy.mean(losses))


def test_the_best_weights_and_the_newest_checkpoints_are_kept(prepared, tmp_path, monkeypatch):
    """The validation loss is lowest in step 3; the run is killed in step 7 and resumes from step 4."""
    recipe = LoRA(**KEYS, steps=8, evaluate_every=1, save_every=4, keep="best", keep_checkpoints=2, packing=False)
    data, own, real, results = documents(prepared), loop.mean_loss, [], []
    for name, losses in (("whole", [9, 8, 7, 3, 4, 5, 6, 7, 8]), ("cut", [9, 8, 7, 3, 4, 5, 6, 5, 6, 7, 8])):
        left = iter(losses)
        monkeypatch.setattr(loop, "mean_loss", lambda *given, left=left: real.append(own(*given)) or next(left))
        if name == "cut":
            with pytest.raises(InterruptedError):
                trained(prepared, tmp_path / name, recipe, Killed(documents(prepared), 6), data)
        results.append(trained(prepared, tmp_path / name, recipe, data, data))
        folders = sorted(path.name for path in (tmp_path / name).glob("checkpoint-*"))
        assert folders == ["checkpoint-6", "checkpoint-7"] and results[-1][2]["checkpoints"] == [6, 7]
    (model, weights, facts), (_, again, resumed) = results
    assert facts["best"] == resumed["best"] == {"step": 3, "validation_loss": 3} and facts["validation_loss"] == 3
    assert resumed["run"]["resumed_from_step"] == 4
    assert own(model, data, recipe) == pytest.approx(real[3], rel=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(weights, again, strict=True))
    stored = loading.model([OPT, tmp_path / "cut/checkpoint-6"], "float32")
    assert own(stored, data, recipe) == pytest.approx(real[6], rel=1e-5)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "either 'warmup_steps' or 'warmup_ratio'"),
        ({"keep": "best", "validation_split": None}, "'keep: best' needs a validation loss; give 'validation_split'"),
        ({"end_of_text": False}, "'end_of_text: false' needs 'packing: false'"),
        ({"evaluate_every": "epochs"}, "epoch"),
        ({"evaluate_every": True}, "valid integer"),
        ({"evaluate_every": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_keys_that_do_not_fit_together_are_refused(keys, problem):
    with pytest.raises(ValidationError, match=problem):
        LoRA(**KEYS, steps=5, **keys)


def test_the_warm_up_is_a_number_of_steps_or_a_share_of_them():
    assert LoRA(**KEYS, steps=100, warmup_steps=7).warmup(100) == 7
    assert LoRA(**KEYS, epochs=1, warmup_ratio=0.101).warmup(100) == 11


@pytest.mark.parametrize(
    ("method", "dtype", "bias"),
    [
        (None, "float32", "lora_only"),
        (None, "bfloat16", "all"),
        ("int8", "float16", "all"),
        ("nf4", "float16", "lora_only"),
        ("rtn", "float16", "all"),
    ],
)
def test_biases_are_trained_in_float32_saved_loaded_and_merged(prepared, tmp_path, method, dtype, bias):
    (base := tmp_path / "base").mkdir()
    if method:
        METHODS[method](method=method).quantize(OPT, base)
    parent = base if method else OPT
    recipe = LoRA(**KEYS, steps=3, precision=dtype, bias=bias, packing=False)
    loaded = precision.loaded_dtype(recipe, bool(method))
    before = dict(loading.model([parent], loaded).state_dict())
    model, weights, _ = trained(prepared, tmp_path / "out", recipe, dtype=loaded, parent=parent)
    shape = architecture.read(json.loads((OPT / "config.json").read_text()))
    total = sum(shape.parameters().values()) + recipe.model_copy(update={"bias": "none"}).trained(shape)
    assert adapters.parameters(model) == (recipe.trained(shape), total)
    assert {value.dtype for value in weights} == {torch.float32}
    adapters.save_adapter(model, tmp_path / "out")
    kept = dict(loading.model([parent, tmp_path / "out"], "float32").state_dict())
    whole = loading.model([OPT, tmp_path / "out"], "float32")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        streamed = loading.streamed([OPT, tmp_path / "out"], "float32")
        assert torch.equal(streamed(input_ids=ids).logits, expected), "trained biases are not rounded"
        merged = adapters.merged(streamed, torch.device("cpu"), torch.float32)
        assert (merged(input_ids=ids).logits - expected).norm() / expected.norm() < 1e-4
    for name, value in model.state_dict().items():
        if name.endswith(".bias"):
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            changed = bias == "all" or ".base_layer" in name
            assert torch.equal(kept[name].float(), value.float())
            assert torch.equal(value.float(), before[plain].float()) is not changed, name
            assert torch.equal(merged.state_dict()[plain], value.float())


@pytest.mark.parametrize("name", SMALL)
def test_the_number_of_biases_is_that_of_the_model(name):
    counted = sum(value.numel() for key, value in built(SMALL[name]).named_parameters() if key.endswith(".bias"))
    assert architecture.read(SMALL[name]).biases() == counted
