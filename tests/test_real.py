"""SmolLM2-135M-Instruct and Whisper-base through experiments/real-models.yaml, against known values.

`make test-real REAL=folder` runs it: minutes on a GPU, hours on two cores. What is made stays in work-real.
"""

import csv
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODELS = ("smollm2-135m-instruct", "whisper-base")
REAL = os.environ.get("REAL", "")

pytestmark = pytest.mark.skipif(
    not all(Path(REAL, name, "config.json").is_file() for name in MODELS) or not REAL,
    reason=f"needs real models: make test-real REAL=folder, with {' and '.join(MODELS)} in it",
)


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    """Variant -> its row of the report's table, once everything is made."""
    environment = os.environ | {"REAL": str(Path(REAL).resolve())}
    environment.setdefault("QUANTUNE_DATA", str(ROOT.parent / "shared"))
    command = ["snakemake", "--cores", "all", "--quiet", "host", "reason", "--configfile"]
    subprocess.run([*command, "experiments/real-models.yaml"], cwd=ROOT, env=environment, check=True)
    with (ROOT / "work-real/report/table.csv").open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def perplexity(table, variant: str, evaluation: str) -> float:
    return float(table[f"smollm2{variant}"][f"{evaluation}.token_perplexity"])


def rate(table, variant: str, evaluation: str, which: str) -> float:
    return float(table[f"whisper-base{variant}"][f"{evaluation}.{which}"])


@pytest.mark.parametrize(
    ("variant", "evaluation", "known", "tolerance"),
    [
        ("", "wikitext-2", 21.77, 0.05),
        ("+int8", "wikitext-2", 22.17, 0.15),
        ("+nf4", "wikitext-2", 27.8, 0.3),
        ("", "quotes", 40.6, 0.5),
        ("+lora-quotes", "quotes", 29.9, 1.0),
    ],
)
def test_perplexities_of_smollm2(table, variant, evaluation, known, tolerance):
    assert perplexity(table, variant, evaluation) == pytest.approx(known, abs=tolerance)


def test_methods_that_calibrate_beat_rounding(table):
    for bits in (3, 4):
        assert perplexity(table, f"+gptq-w{bits}", "wikitext-2") < perplexity(table, f"+rtn-w{bits}", "wikitext-2")
        assert perplexity(table, f"+awq-w{bits}", "wikitext-2") < perplexity(table, f"+rtn-w{bits}", "wikitext-2")


def test_merging_keeps_what_was_learnt(table):
    merged = perplexity(table, "+lora-quotes+merge", "quotes")
    assert merged == pytest.approx(perplexity(table, "+lora-quotes", "quotes"), rel=0.005)


def test_sixty_steps_teach_whisper_to_write_digits_as_words(table):
    assert 1.0 < rate(table, "", "digits", "wer_raw") < 1.1, '"8" for "eight"'
    assert rate(table, "+lora-digits", "digits", "wer_raw") < 0.03
    assert rate(table, "+lora-digits+merge", "digits", "wer_raw") < 0.03


def test_quantized_whispers_still_write_what_is_said(table):
    """They were refused once, though their transcripts are right."""
    original = rate(table, "", "book", "wer")
    assert original < 0.1
    for method in ("rtn-w4", "gptq-book", "awq-book", "int8", "nf4"):
        assert rate(table, f"+{method}", "book", "wer") < original + 0.05, method
