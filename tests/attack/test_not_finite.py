"""Models whose logits are not numbers: the report says so and why, and recommends none of them."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantune.data import tokens
from quantune.evaluations.generation import Generation
from quantune.evaluations.perplexity import Perplexity
from quantune.evaluations.transcription import Transcription
from quantune.models import loading
from quantune.report import decisions, losses, scores
from tests.conftest import OPT
from tests.reports import write
from tests.voices import WHISPER


@pytest.fixture
def changed(tmp_path):
    """Return a function that copies a model and changes its weights."""

    def copied(source, name: str, change) -> loading.LoadedVariant:
        folder = shutil.copytree(source, tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return loading.LoadedVariant([folder])

    return copied


def hot(weights: dict[str, torch.Tensor]) -> None:
    """Scale some units of each MLP up and down again: the same function, beyond the range of float16 in between."""
    for name in [name for name in weights if name.endswith("fc1.weight")]:
        up, down = name, name.replace("fc1", "fc2")
        bias = name.replace("weight", "bias")
        weights |= {key: weights[key].float() for key in (up, bias, down)}
        weights[up][:64] *= 2.0**17
        weights[bias][:64] *= 2.0**17
        weights[down][:, :64] /= 2.0**17
        weights |= {key: weights[key].half() for key in (up, bias, down)}


def one_nan(weights: dict[str, torch.Tensor]) -> None:
    """Put a NaN into one weight matrix."""
    name = next(name for name in weights if name.endswith("layers.1.fc1.weight"))
    weights[name][3, 5] = math.nan


@pytest.mark.parametrize(
    ("change", "dtype", "reason"),
    [
        (hot, "float16", "exceed the range of float16; evaluate it with 'dtype: bfloat16' or float32"),
        (one_nan, "float32", "layers.1.fc1.weight' hold values that are not finite"),
        (hot, "float32", None),
    ],
)
def test_perplexity_and_generation_say_why(changed, prepared_text, tmp_path, change, dtype, reason):
    variant = changed(OPT, "opt", change)
    recipe = Perplexity(kind="perplexity", dataset="any", length=16, dtype=dtype)
    result = recipe.evaluate(variant, prepared_text, tmp_path)
    assert (reason is None) == math.isfinite(result["token_perplexity"])
    assert reason is None or result["broken"].endswith(reason)
    (tmp_path / "result.json").write_text(json.dumps({"broken": result.get("broken")}))
    score = scores.read(str(tmp_path), recipe.model_dump(), str(OPT))
    assert score.broken == result.get("broken") and math.isfinite(score.value) == (reason is None)
    prompts = Generation(kind="generation", prompts=["The sea"], max_new_tokens=3, dtype=dtype)
    prompts.evaluate(variant, None, tmp_path)
    written = json.loads((tmp_path / "items.jsonl").read_text())
    assert reason is None or written["text"].endswith(f"{reason})")
    assert written["tokens"] == (3 if reason is None else 0)


def test_transcription_says_why(changed, prepared, tmp_path):
    recipe = Transcription(kind="transcription", dataset="talks", split="train", max_clips=2, max_new_tokens=8)
    result = recipe.evaluate(changed(WHISPER, "whisper", one_nan), prepared, tmp_path)
    assert "hold values that are not finite" in result["broken"]
    (tmp_path / "result.json").write_text(json.dumps({"language": "en", "broken": result["broken"]}))
    (tmp_path / "run.json").write_text("{}")
    score = scores.read(str(tmp_path), recipe.model_dump(), str(WHISPER))
    assert math.isnan(score.numbers["wer"]) and math.isnan(score.numbers["wer_substitutions"])


def test_the_report_says_so_and_recommends_no_such_variant(work, tmp_path):
    why = "its logits are not finite"
    for name in ("m+rough", "m+tune"):
        work.evaluated = [made for made in work.evaluated if f"/{name}/home" not in made["path"]]
        work.perplexity(name, "home", math.nan, broken=why)
    gathered, html = write(work.order(), tmp_path / "report")
    assert f"not a number on home, because {why}" in html and html.count("not a number") > 4
    assert "only one window" not in html
    rough = gathered.variants["m+rough"]
    assert not losses.bounded(rough, ("home",))
    (quantizing, _) = decisions.quantizing(gathered)
    assert [variant.name for variant, _ in quantizing.changes] == ["m+fine", "m+rough"], "the worst comes last"
    table = (tmp_path / "report/table.csv").read_text()
    assert ",nan," in table


@pytest.fixture(scope="module")
def prepared_text(tmp_path_factory):
    """A split of three short documents, as tokens of the demo's model."""
    import pyarrow

    folder = tmp_path_factory.mktemp("prepared")
    rows = tokens.encode(["The sea is calm. " * 8, "A bridge is long.", "Wind from the north."], loading.tokenizer(OPT))
    table = pyarrow.table(rows, tokens.SCHEMA)
    with pyarrow.ipc.new_file(folder / "test.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder
