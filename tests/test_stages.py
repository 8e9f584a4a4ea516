"""A stage whose code changed has its version raised, or is recorded to mean the same.

After a change: raise the version (quantune/planning/plan.py, or `version` of the recipe class) if the same recipe now
makes something else, and run `make stages`. If the same recipe makes the same bytes as before, run
`make stages SAME="why"`: the reason is recorded in tests/stages.json, for reviewers to see.
"""

import json
import sys

import pytest

from tests.fingerprints import ROOT, Code, stages

RECORD = ROOT / "tests/stages.json"
STAGES = {name: (version, script, recipe) for name, version, script, recipe in stages()}
NOW = Code()


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_changed_stage_is_recorded(stage):
    version, script, recipe = STAGES[stage]
    recorded = json.loads(RECORD.read_text()).get(stage, {})
    found = {"version": version, "source": NOW.fingerprint(script, recipe)}
    assert {key: recorded.get(key) for key in found} == found, (
        f"the code of '{stage}' changed: raise its version if the same recipe now makes something else, then run"
        ' `make stages`; if it makes the same bytes as before, run `make stages SAME="why"`'
    )


ROUNDED_BY_GPTQ = {"quantize/gptq", "quantize/awq-gptq"}
CALIBRATED = {*ROUNDED_BY_GPTQ, "quantize/awq", "quantize/mixed-channels"}
CALIBRATED |= {"quantize/int8-static", "quantize/smoothquant"}

CHANGES = {
    "columns rounded at once": ("arithmetic/gptq.py", "BLOCK = 128", "BLOCK = 64", ROUNDED_BY_GPTQ),
    "growth of the damping": ("arithmetic/gptq.py", "damping *= 10", "damping *= 2", ROUNDED_BY_GPTQ),
    "span of the grid": (
        "arithmetic/grids.py",
        "steps = 2**grid.bits - 1",
        "steps = 2**grid.bits - 2",
        {*ROUNDED_BY_GPTQ, "quantize/rtn", "quantize/awq", "quantize/mixed-channels"},
    ),
    "draw of the calibration samples": (
        "quantizations/calibration.py",
        "[: recipe.samples]",
        "[-recipe.samples :]",
        CALIBRATED,
    ),
    "separator of the training blocks": (
        "data/text.py",
        '"ids", most), [end], []',
        '"ids", most), [end, end], []',
        CALIBRATED | {name for name in STAGES if name.startswith("train/")},
    ),
    "length of the probe text": (
        "core/workload.py",
        "PROBE_TOKENS = 512",
        "PROBE_TOKENS = 64",
        {name for name in STAGES if name.startswith("quantize")},
    ),
    "normal form of transcripts": (
        "metrics/normalizers.py",
        '"NFKC", text).lower()',
        '"NFKC", text).upper()',
        {"report"},
    ),
    "text of an error": ("data/text.py", "fewer than one block", "less than one block", set()),
    "a docstring": ("arithmetic/grids.py", "The smallest code.", "The lowest code.", set()),
    "loading": (
        "models/loading.py",
        "loaded.eval()",
        "loaded.train()",
        {name for name in STAGES if name.startswith(("quantize", "train", "evaluate"))}
        | {"merge", "transcribe", "benchmark", "export/compressed-tensors"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_by_the_stages_that_it_touches(change):
    end, before, after, touched = CHANGES[change]
    changed = []

    def altered(path: str, text: str) -> str:
        if not path.endswith(end) or before not in text:
            return text
        changed.append(path)
        return text.replace(before, after)

    then = Code(altered)
    assert len(changed) == 1
    flagged = {name for name, (_, *what) in STAGES.items() if then.fingerprint(*what) != NOW.fingerprint(*what)}
    assert flagged == touched


def record(same: str) -> None:
    """Write the record; exits where the code changed, the version did not, and no reason is given."""
    before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found, unsaid = {}, []
    for stage, (version, script, recipe) in STAGES.items():
        entry = {"version": version, "source": NOW.fingerprint(script, recipe)}
        was = before.get(stage, {})
        if was.get("version") == version and was.get("source") != entry["source"]:
            entry["means_the_same"] = same
            unsaid += [] if same else [stage]
        elif was.get("version") == version and "means_the_same" in was:
            entry["means_the_same"] = was["means_the_same"]
        found[stage] = entry
    if unsaid:
        sys.exit(f'{", ".join(unsaid)}: the code changed; raise the version, or say why it is the same: SAME="why"')
    RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    record(" ".join(sys.argv[1:]))
