"""Every architecture through every method: quantized, evaluated, adapted and merged, or refused in a sentence.

What comes out is docs/models.md. After a change: `PYTHONPATH=. python tests/test_zoo.py` writes it anew.
"""

import json
import math
import re
from pathlib import Path

import numpy
import pyarrow
import pytest
import torch

from quantune.core.errors import QuantuneError
from quantune.data import clips, tokens
from quantune.data.examples import read
from quantune.evaluations.perplexity import Perplexity
from quantune.evaluations.transcription import Transcription
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop, loss
from quantune.models import adapters, checkpoints, loading, offloading, probes
from quantune.quantizations import calibration, methods
from quantune.quantizations.arithmetic import awq, layerwise
from quantune.quantizations.awq import known_mappings
from quantune.sources import audio
from tests.voices import stage
from tests.zoo import LAYERS, MODELS, ROOT, build

TABLE = ROOT / "docs/models.md"
LENGTH, SAMPLES, CLIPS = 32, 8, 4
RECIPES = {recipe.model_fields["method"].annotation.__args__[0]: recipe for recipe in methods()}
GRID = {"group_size": 32}
CALIBRATED = GRID | {"dataset": "data", "split": "train", "samples": SAMPLES, "length": LENGTH}
METHODS = {"rtn": GRID, "gptq": CALIBRATED, "awq": CALIBRATED, "int8": {}, "nf4": {}}
CONV1D = "Conv1D modules instead of linear layers"
EXPERTS = "experts are fused into one parameter"
SUBCLASS = "layers are FalconLinear modules"
REFUSED = {
    **{("gpt2", method): CONV1D for method in METHODS},
    **{(model, method): EXPERTS for model in ("mixtral", "qwen3_moe") for method in METHODS},
    **{(model, method): SUBCLASS for model in ("falcon-7b", "falcon-40b") for method in METHODS},
}
"""What must end with a QuantuneError: its sentence contains this pattern, which is the reason in the table too."""
LAYER = re.compile(r"\.(layers|h)\.\d+\.")


@pytest.fixture(scope="module")
def texts(tmp_path_factory, tokenizer) -> Path:
    """Texts of the demo as tokens."""
    folder = tmp_path_factory.mktemp("texts")
    for split in ("train", "test"):
        documents = (ROOT / "assets/text/general/calibration.txt").read_text().split("\n\n")[:40]
        write(folder / f"{split}.arrow", pyarrow.table(tokens.encode(documents, tokenizer), schema=tokens.SCHEMA))
    return folder


@pytest.fixture(scope="module")
def talks(tmp_path_factory) -> Path:
    """Tones with transcripts."""
    folder = tmp_path_factory.mktemp("talks")
    rows = []
    for number in range(CLIPS):
        tone = numpy.sin(numpy.arange(16000) * (300 + 50 * number) * 2 * numpy.pi / 16000)
        row = {"id": f"clip-{number}", "text": f"Alpha {number}.", "translation": None, "language": "en"}
        rows.append(row | {"seconds": 1.0, "samples": audio.to_pcm(0.5 * tone).tobytes()})
    for split in ("train", "test"):
        write(folder / f"{split}.arrow", pyarrow.Table.from_pylist(rows, clips.SCHEMA))
    return folder


def write(path: Path, table: pyarrow.Table) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)


@pytest.fixture(scope="module")
def parent(request, tmp_path_factory) -> Path:
    """A model at full precision."""
    return build(request.param, tmp_path_factory.mktemp("parent") / request.param)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parent", MODELS, indirect=True)
def test_a_model_goes_through_all_stages_or_is_refused(tmp_path, texts, talks, parent, method):
    data = talks if loading.is_speech(parent) else texts
    shape, recipe = json.loads((parent / "config.json").read_text()), RECIPES[method](method=method, **METHODS[method])
    if reason := REFUSED.get((parent.name, method)):
        with pytest.raises(QuantuneError, match=reason):
            quantize(parent, method, data, tmp_path / "quantized")
        assert recipe.unsuitable(shape), "said before any job, from config.json alone"
        return
    assert recipe.unsuitable(shape) is None
    quantized, adapter, merged = (tmp_path / name for name in ("quantized", "adapter", "merged"))
    quantize(parent, method, data, quantized)
    require_nothing_dense(parent, quantized)
    assert math.isfinite(evaluate(quantized, data))
    adapt(quantized, data, adapter)
    merged.mkdir()
    stage("merge.py")({}, {"base": [parent], "adapter": [adapter], "parent": [quantized]}, merged, tmp_path)
    assert loading.quantization_method(merged) is None
    assert loading.stored_dtype(merged) == loading.stored_dtype(parent)
    assert math.isfinite(evaluate(merged, data))


@pytest.mark.parametrize("parent", [name for name in MODELS if (name, "awq") not in REFUSED], indirect=True)
def test_layers_are_called_as_the_model_calls_them_and_keep_their_function(texts, talks, parent):
    recipe = RECIPES["awq"](method="awq", **CALIBRATED)
    batches, _ = calibration.draw(recipe, talks if loading.is_speech(parent) else texts, 0, parent)
    model = loading.model([parent], "float32")
    for _, layers in layerwise.stacks(model):
        outputs = []
        hooks = [layer.register_forward_hook(lambda *called, to=outputs: to.append(called[2])) for layer in layers]
        with torch.no_grad():
            model(**batches[0], use_cache=False)
        for hook in hooks:
            hook.remove()
        (arguments, *_), _ = layerwise.first_inputs(model, layers, batches)
        assert len(arguments.others) == len(layers) == len(outputs)
        for index, (layer, output) in enumerate(zip(layers, outputs, strict=True)):
            with torch.no_grad():
                arguments.states = arguments(layer, index)
            assert torch.equal(arguments.states, output[0] if isinstance(output, tuple) else output)

    before, moved, mappings = probes.probe_logits(model), set(), known_mappings(model.config)

    def visit(name, layer, inputs):
        there = dict(layer.named_modules())
        fitting = [item for item in mappings if item.before in there]
        scales = awq.rescale(name, layer, inputs, fitting, recipe.grid_of)
        moved.update(LAYER.split(part)[-1] for part, scale in scales.items() if scale.std() > 0)

    layerwise.stream(model, batches, lambda *_: None, requantized=False, transform=visit)
    assert mappings == [] or moved
    assert probes.relative_distance(probes.probe_logits(model), before) < 1e-4


@pytest.mark.parametrize("parent", ["gemma3", "gpt_neox", "llama-3", "whisper"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_streamed_model_is_the_same_to_the_bit(parent, dtype):
    """Gemma scales embeddings by a buffer that is not saved, and whose value depends on the dtype."""
    whole, streamed = loading.model([parent], dtype), loading.streamed([parent], dtype)
    assert torch.equal(probes.probe_logits(whole), probes.probe_logits(streamed))
    layers = [layer for _, stack in offloading.stacks(streamed) for layer in stack]
    stored = loading.stored_dtype(parent)
    assert all(map(offloading.is_away, layers)) and {item.dtype for item in layers[0].parameters()} == {stored}
    loaded = loading._in_main_memory([parent], getattr(torch, dtype))
    first = offloading.size(layers[0], getattr(torch, dtype))
    partly = offloading.stream(loaded, torch.device("cpu"), getattr(torch, dtype), first)
    assert sum(map(offloading.is_away, partly.modules())) == len(layers) - 1
    assert torch.equal(probes.probe_logits(whole), probes.probe_logits(partly))


def quantize(parent: Path, method: str, data: Path, folder: Path) -> None:
    """Do what scripts/quantize.py does."""
    folder.mkdir()
    recipe = RECIPES[method](method=method, **METHODS[method])
    layers = checkpoints.linear_layers(parent)
    assert recipe.misfit({columns for _, columns in layers.values()}) is None
    recipe.quantize(parent, folder, data, 0)
    assert recipe.check(parent, folder)["layers_quantized"] == len(layers)


def require_nothing_dense(parent: Path, folder: Path) -> None:
    """Every matrix inside the layers is a linear layer that is quantized; the files hold no other."""
    original, tensors = checkpoints.Tensors(parent), checkpoints.Tensors(folder)
    matrices = {name for name in original.names() if LAYER.search(name) and len(original.shape(name)) > 1}
    assert len(matrices) >= 4 * LAYERS
    linears = {name for name in checkpoints.linear_layers(parent) if LAYER.search(name)}
    assert matrices == {f"{name}.weight" for name in linears}
    left = [name for name in tensors.names() if LAYER.search(name) and len(tensors.shape(name)) > 1]
    assert not [name for name in left if tensors[name].is_floating_point() and not name.endswith("weight_scale")]


def evaluate(folder: Path, data: Path) -> float:
    """Return the perplexity of a few windows; of a speech model, which transcribes too, the mean loss.

    It is finite only where every logit is: the loss has all of them in its denominator.
    """
    if not loading.is_speech(folder):
        recipe = Perplexity(kind="perplexity", dataset="data", length=LENGTH, batch_size=2, max_windows=4)
        return recipe.evaluate(loading.LoadedVariant([folder]), data, folder)["token_perplexity"]
    transcription = Transcription(kind="transcription", dataset="data", max_clips=2, max_new_tokens=4)
    assert transcription.evaluate(loading.LoadedVariant([folder]), data, folder)["clips"] == 2
    recipe = lora()
    return loop.mean_loss(
        loading.model([folder], "float32"), read(data, "test", folder, recipe.length, recipe.task), recipe
    )


def lora() -> LoRA:
    """Return the recipe of two steps for all linear layers."""
    keys = {"rank": 2, "steps": 2, "batch_size": 2, "length": LENGTH, "validation_split": None, "learning_rate": 1e-3}
    return LoRA(method="lora", dataset="data", target_modules="all-linear", **keys)


def adapt(quantized: Path, data: Path, folder: Path) -> None:
    """Do what scripts/train.py does: every linear layer that was quantized gets an adapter, and each of them learns."""
    folder.mkdir()
    recipe = lora()
    examples = read(data, recipe.train_split, quantized, recipe.length, recipe.task)
    model = loading.model([quantized], recipe.precision)
    model.config.use_cache = False
    model = recipe.prepare(model, 0)
    with loss.fused(model):
        facts = loop.train(model, recipe, 0, examples, None, folder, folder)
    assert math.isfinite(facts["train_loss"])
    updates = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert updates and all(value.abs().sum() > 0 for value in updates)
    adapters.save_adapter(model, folder)
    checkpoints.copy_tokenizer(quantized, folder)


def table() -> str:
    """Return the outcomes that the tests above ask for as markdown."""
    cells = {key: f"refused: {reason}" for key, reason in REFUSED.items()}
    rows = [[model, *(cells.get((model, method), "✔") for method in METHODS)] for model in MODELS]
    heading = [["Model", *METHODS], ["---"] * (1 + len(METHODS))]
    lines = ["| " + " | ".join(row) + " |" for row in heading + rows]
    return "\n".join([*INTRODUCTION, *lines]) + "\n"


INTRODUCTION = (
    "# Models",
    "",
    "What goes through which method. ✔: quantized, reloaded to the same bits, evaluated, adapted with LoRA",
    "on all linear layers, and merged into the model at full precision, by `tests/test_zoo.py` with tiny random models",
    "(`tests/zoo.py`). What is refused ends at once with a sentence that says why.",
    "",
)


def test_the_table_in_the_docs_is_what_is_tested():
    assert TABLE.read_text() == table(), "run `PYTHONPATH=. python tests/test_zoo.py`"


if __name__ == "__main__":
    TABLE.write_text(table())
