"""The grammar of variants: every legal shape, every refusal with what to type instead, what follows from a chain."""

import re
from types import SimpleNamespace
from typing import ClassVar

import pytest

from quantune.core.errors import ConfigError
from quantune.finetunings import Finetuning
from quantune.planning import chains, load
from quantune.planning.chains import Variant
from quantune.planning.plan import Plan
from quantune.quantizations import Quantization

STEPS = "steps: rtn-w4, nf4, awq, lora, lora-zh, merge"


class Rescaling(Quantization):
    rescales: ClassVar[bool] = True


NAMES = SimpleNamespace(
    models={"opt": None, "whisper-large-v2": None},
    quantizations={"rtn-w4": Quantization(), "nf4": Quantization(), "awq": Rescaling()},
    finetunings={
        "lora": Finetuning(dataset="quotes", steps=1),
        "lora-zh": Finetuning(dataset="zh", steps=1),
    },
)
KIND = {"rtn-w4": "quantization", "nf4": "quantization", "lora": "finetuning", "lora-zh": "finetuning"}


def parse(text: str) -> Variant:
    return chains.parse(text, NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "opt",
        "whisper-large-v2",
        "opt+rtn-w4",
        "opt+lora",
        "opt+lora@0",
        "opt+lora@12",
        "opt+nf4+lora",
        "opt+lora+merge",
        "opt+nf4+lora@3+merge",
        "opt+lora+merge+rtn-w4",
        "opt+nf4+lora+merge+nf4",
        "opt+lora+merge+lora-zh",
        "opt+lora+merge+lora@1+merge",
        "whisper-large-v2+rtn-w4+lora-zh",
        "opt+lora+merge+nf4+lora-zh@7+merge+rtn-w4",
    ],
)
def test_every_legal_shape_is_read_and_written_back(text):
    variant = parse(text)
    head, *tail = text.split("+")
    assert str(variant) == text
    assert variant.model == head
    assert tuple(step.kind for step in variant.steps) == tuple(KIND.get(step.split("@")[0], "merge") for step in tail)


def test_a_step_holds_its_name_and_seed():
    assert [(step.name, step.seed) for step in parse("opt+nf4+lora@3").steps] == [("nf4", None), ("lora", 3)]
    assert parse("opt+lora") != parse("opt+lora@0")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "opt+lora+lora-zh",
            "'lora-zh' cannot train on top of the adapter 'opt+lora'; merge it first: 'opt+lora+merge+lora-zh'",
        ),
        (
            "opt+nf4+lora@1+lora@2",
            "'lora@2' cannot train on top of the adapter 'opt+nf4+lora@1'; "
            "merge it first: 'opt+nf4+lora@1+merge+lora@2'",
        ),
        (
            "opt+rtn-w4+nf4",
            "'opt+rtn-w4' is already quantized; 'nf4' needs full precision: 'opt+nf4'",
        ),
        (
            "opt+lora+merge+nf4+nf4",
            "'opt+lora+merge+nf4' is already quantized; 'nf4' needs full precision: 'opt+lora+merge+nf4'",
        ),
        (
            "opt+lora+nf4",
            "'nf4' cannot quantize the adapter 'opt+lora'; merge it first: 'opt+lora+merge+nf4'",
        ),
        (
            "opt+nf4+lora+rtn-w4",
            "'rtn-w4' cannot quantize the adapter 'opt+nf4+lora'; merge it first: 'opt+nf4+lora+merge+rtn-w4'",
        ),
        ("opt+merge", "'opt' has no adapter to merge; '+merge' follows a fine-tuning that leaves an adapter"),
        ("opt+nf4+merge", "'opt+nf4' has no adapter to merge; '+merge' follows a fine-tuning that leaves an adapter"),
        ("opt+lora+merge+merge", "'opt+lora+merge' is already merged; one '+merge' is enough"),
        (
            "opt+lora+merge+awq+lora@2+merge",
            "'lora@2' was trained on 'awq', which scales the inputs of layers, so on the original weights it would be "
            "another function; evaluate 'opt+lora+merge+awq+lora@2' as it is, or make 'opt+lora+merge+lora@2+merge'",
        ),
        ("opt+whisper-large-v2", "'whisper-large-v2' is a model; a model can only begin a chain"),
        ("opt+lora+opt", "'opt' is a model; a model can only begin a chain"),
        ("opt+rtn-w4@3", "'rtn-w4@3' gives a seed to a step that uses none; write 'rtn-w4'"),
        ("opt+lora+merge@3", "'merge@3' gives a seed to a step that uses none; write 'merge'"),
        ("ops", "'ops' is not a model; models: opt, whisper-large-v2; did you mean 'opt'?"),
        (
            "whisper+nf4",
            "'whisper' is not a model; models: opt, whisper-large-v2; did you mean 'whisper-large-v2'?",
        ),
        ("zzz", "'zzz' is not a model; models: opt, whisper-large-v2"),
        ("opt+lora-hz", f"'lora-hz' is not a step; {STEPS}; did you mean 'lora-zh'?"),
        ("opt+rtn4", f"'rtn4' is not a step; {STEPS}; did you mean 'rtn-w4'?"),
        ("opt+lora+merged", f"'merged' is not a step; {STEPS}; did you mean 'merge'?"),
        ("opt+zzz", f"'zzz' is not a step; {STEPS}"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_is_wrong_and_what_to_type(text, problem):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == f"variant '{text}': {problem}"


@pytest.mark.parametrize("part", ["", "lora@", "lora@x", "lora@-1", "lora@1@2", "@3", "LORA", "lora ", "-w4", "a_b"])
def test_a_malformed_step_shows_the_form_of_one(part):
    expected = f"variant 'opt+{part}': '{part}' is not a step; a step is a name, or name@seed, such as 'lora@3'"
    with pytest.raises(ConfigError, match=rf"^{re.escape(expected)}(; did you mean '\S+'\?)?$"):
        parse(f"opt+{part}")


@pytest.mark.parametrize("text", ["", "+lora", "opt@3", " opt", "opt "])
def test_a_chain_must_begin_with_a_model(text):
    head = text.split("+")[0]
    with pytest.raises(ConfigError, match=re.escape(f"variant '{text}': '{head}' is not a model; models: opt, ")):
        parse(text)


@pytest.mark.parametrize("text", ["opt+lora@03", "opt+lora@00", "opt+lora@３"])
def test_a_seed_is_written_in_one_way_only(text):
    """A chain's name is its path: two spellings of one chain would be two paths, and the job makes only one."""
    with pytest.raises(ConfigError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ("opt", ["opt"]),
        ("opt+nf4", ["opt+nf4"]),
        ("opt+lora", ["opt", "opt+lora"]),
        ("opt+nf4+lora@3", ["opt+nf4", "opt+nf4+lora@3"]),
        ("opt+lora+merge", ["opt+lora+merge"]),
        ("opt+lora+merge+lora-zh", ["opt+lora+merge", "opt+lora+merge+lora-zh"]),
    ],
)
def test_loads_is_the_base_and_then_the_adapter(text, loads):
    assert [str(item) for item in parse(text).checkpoints_to_load()] == loads


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("opt+lora+merge", "opt"),
        ("opt+nf4+lora+merge", "opt"),
        ("opt+lora+merge+lora-zh+merge", "opt+lora+merge"),
        ("opt+lora+merge+nf4+lora-zh+merge", "opt+lora+merge"),
        ("opt+nf4+lora+merge+nf4+lora-zh+merge", "opt+nf4+lora+merge"),
    ],
)
def test_merge_adds_to_the_nearest_unquantized_whole_model(text, base):
    assert str(parse(text).merge_base()) == base


@pytest.mark.parametrize(
    ("text", "kind", "quantized", "adapter"),
    [
        ("opt", "model", False, False),
        ("opt+nf4", "quantization", True, False),
        ("opt+lora", "finetuning", False, True),
        ("opt+nf4+lora", "finetuning", True, True),
        ("opt+nf4+lora+merge", "merge", False, False),
        ("opt+nf4+lora+merge+rtn-w4", "quantization", True, False),
        ("opt+nf4+lora+merge+lora-zh", "finetuning", False, True),
    ],
)
def test_what_a_variant_is(text, kind, quantized, adapter):
    variant = parse(text)
    assert (variant.kind, variant.quantized, variant.is_adapter) == (kind, quantized, adapter)


def test_ancestors_begin_with_the_model_and_end_with_the_parent():
    variant = parse("opt+nf4+lora@3+merge+rtn-w4")
    names = ["opt", "opt+nf4", "opt+nf4+lora@3", "opt+nf4+lora@3+merge"]
    assert [str(item) for item in variant.ancestors] == names
    assert variant.ancestors == [parse(name) for name in names]
    assert variant.parent == variant.ancestors[-1]
    assert parse("opt").ancestors == [] and parse("opt").parent is None


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["opt"], ["opt"]),
        (["opt+{rtn-w4,nf4}"], ["opt+rtn-w4", "opt+nf4"]),
        (["{opt,llama}+{rtn-w4,nf4}"], ["opt+rtn-w4", "opt+nf4", "llama+rtn-w4", "llama+nf4"]),
        (["opt+lora@{0..2}"], ["opt+lora@0", "opt+lora@1", "opt+lora@2"]),
        (["opt+{lora,nf4+lora}"], ["opt+lora", "opt+nf4+lora"]),
        (["opt{,+nf4}"], ["opt", "opt+nf4"]),
        (["opt+{nf4,{lora,rtn-w{4,8}}}"], ["opt+nf4", "opt+lora", "opt+rtn-w4", "opt+rtn-w8"]),
        (["opt+nf4", "opt", "opt+{rtn-w4,nf4}", "opt"], ["opt+nf4", "opt", "opt+rtn-w4"]),
        ([], []),
    ],
)
def test_braces_expand_as_in_a_shell_without_repetitions(patterns, names):
    assert chains.expand(patterns) == names


def test_an_unclosed_brace_is_refused_as_a_step():
    (name,) = chains.expand(["opt+{rtn-w4,nf4"])
    with pytest.raises(ConfigError, match=re.escape("'{rtn-w4,nf4' is not a step")):
        parse(name)


def test_too_wide_an_expansion_is_the_users_error():
    with pytest.raises(ConfigError):
        chains.expand(["opt+lora@{1..2000}"])


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("checkpoints/opt+nf5", r"'nf5' is not a step; .*did you mean 'nf4'\?"),
        ("sources/harbor", r"'harbor' is not one of the datasets: harbour, news; did you mean 'harbour'\?"),
        ("evaluations/opt/prompt", r"'prompt' is not one of the evaluations: .*did you mean 'prompts'\?"),
        ("checkpoint/opt", r"nothing is made at '.*/work/checkpoint/opt'; paths below .*: .*checkpoints/VARIANT, "),
    ],
)
def test_a_target_that_nothing_makes_is_explained(raw, target, problem):
    with pytest.raises(ConfigError, match=problem):
        Plan(load.load(raw)).require_target(target)
