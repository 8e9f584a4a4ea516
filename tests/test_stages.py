"""A stage whose source changed either still means the same, and is recorded so, or has its version raised.

After a change: raise the version (quantune/planning/plan.py, or `version` of the recipe class) if the same recipe now makes
something else; then `make stages` records the sources anew. The record is part of the change that reviewers see.
"""

import ast
import hashlib
import json
from pathlib import Path

import pytest

from quantune import evaluations, finetunings, quantizations
from quantune.evaluations.benchmark import Benchmark
from quantune.planning import plan

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tests/stages.json"
LOADING = ["quantune/models/loading.py", "quantune/models/checkpoints.py"]
TRAINING = [f"quantune/{name}.py" for name in ("training", "tracks", "speech")]
REPORT = (
    "report",
    "lineage",
    "scores",
    "table",
    "performance",
    "performance_words",
    "estimates",
    "words",
    "plots",
    "canvas",
    "tradeoffs",
    "calibration_figure",
    "expected",
    "page",
    "listening",
    "edits",
    "normalizers",
    "prepared",
    "statistics",
)
READS = {
    "text": ["quantune/data/text.py"],
    "speech": [f"quantune/{name}.py" for name in ("audio", "edits", "prepared", "speech", "statistics")],
}
OWN = {
    "model": ["scripts/model.py"],
    "dataset": ["scripts/dataset.py", "quantune/sources/documents.py"],
    "tokenize": ["scripts/tokenize.py", "quantune/data/text.py"],
    "clips": ["scripts/clips.py", *(f"quantune/{name}.py" for name in ("archives", "audio", "clips", "recordings"))],
    "resample": [
        "scripts/resample.py",
        "quantune/sources/audio.py",
        "quantune/data/speech.py",
        "quantune/data/clips.py",
    ],
    "transcribe": [
        "scripts/transcribe.py",
        *(f"quantune/{name}.py" for name in ("audio", "longform", "speech")),
        *LOADING,
    ],
    "benchmark": [
        "scripts/benchmark.py",
        *(f"quantune/{name}.py" for name in ("benchmarking", "decoding", "meters", "hardware")),
        *LOADING,
    ],
    "merge": ["scripts/merge.py", *LOADING],
    "report": [
        "scripts/report.py",
        *(f"quantune/{name}.py" for name in REPORT),
    ],
}


def stages() -> dict[str, tuple[int, list[str]]]:
    """Return stage -> its version and its source files."""
    versions = plan.VERSIONS | {"benchmark": Benchmark.version}
    found = {name: (versions[name], files) for name, files in OWN.items()}
    for kind, package, recipes, shared in (
        (
            "quantize",
            quantizations,
            quantizations.methods(),
            ["scripts/quantize.py", "quantune/quantizations/arithmetic/quality.py", *LOADING],
        ),
        ("train", finetunings, finetunings.methods(), ["scripts/train.py", *TRAINING, *LOADING]),
        ("evaluate", evaluations, evaluations.kinds(), ["scripts/evaluate.py", *LOADING]),
    ):
        init = f"{package.__name__.replace('.', '/')}/__init__.py"
        for recipe in recipes:
            tag = "kind" if kind == "evaluate" else "method"
            name = recipe.model_fields[tag].annotation.__args__[0]
            own = [
                f"{base.__module__.replace('.', '/')}.py"
                for base in recipe.__mro__
                if package.__name__ in base.__module__
            ]
            own += READS[recipe.track] if kind == "evaluate" else []
            files = sorted({path for path in own if (ROOT / path).exists()} | {init, *shared})
            found[f"{kind}/{name}"] = (recipe.version, files)
    return found


def fingerprint(files: list[str]) -> str:
    """Return the SHA-256 of the files' code; comments, docstrings and layout left out."""
    digest = hashlib.sha256()
    for path in sorted(files):
        tree = ast.parse((ROOT / path).read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [item for item in body if not (isinstance(item, ast.Expr) and _is_text(item.value))] or body
        digest.update(repr(_structure(tree)).encode())
    return digest.hexdigest()


def _structure(node):
    """Return a syntax tree as lists, without what is empty: each Python adds empty fields of its own."""
    if isinstance(node, ast.AST):
        fields = [[name, _structure(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, fields]
    return [_structure(item) for item in node] if isinstance(node, list) else node


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def record() -> dict[str, dict]:
    return {name: {"version": version, "source": fingerprint(files)} for name, (version, files) in stages().items()}


@pytest.mark.parametrize("stage", sorted(stages()))
def test_a_changed_stage_is_recorded(stage):
    recorded = json.loads(RECORD.read_text()).get(stage)
    version, files = stages()[stage]
    assert recorded == {"version": version, "source": fingerprint(files)}, (
        f"the source of '{stage}' changed ({', '.join(files)}): raise its version if the same recipe now makes"
        " something else, then run `make stages`"
    )


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(), indent=1, sort_keys=True) + "\n")
