"""AWQ: scale up the important input channels before rounding, and scale down the operation that produces them.

Lin et al., 2023 (arXiv:2306.00978). For each pair of a preceding operation and the layers that read its output, the
channel scales are mean(|x|)^alpha. Of 20 alphas, the one that changes the layers' outputs least is taken. Then the
range of each group is clipped where that helps, as in the authors' code (github.com/mit-han-lab/llm-awq). The
full-precision function does not change.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.core.errors import QuantuneError, listed
from quantune.core.recipe import Entry
from quantune.quantizations.calibration import Calibrated


class Mapping(Entry):
    """A place where scales can move: from the inputs of some layers into the operation that produces the inputs."""

    before: str
    """Norm or linear layer, by its name inside a decoder layer, whose output the layers read."""
    layers: list[str] = Field(min_length=1)
    """The linear layers that read that output."""


def pairs(*mappings: tuple[str, str]) -> list[Mapping]:
    """Return mappings from (before, "layer layer ...")."""
    return [Mapping(before=before, layers=layers.split()) for before, layers in mappings]


OPT = pairs(("self_attn.v_proj", "self_attn.out_proj"), ("fc1", "fc2"))
OPT_NORMS = pairs(
    ("self_attn_layer_norm", "self_attn.q_proj self_attn.k_proj self_attn.v_proj"), ("final_layer_norm", "fc1")
)
LLAMA = pairs(
    ("input_layernorm", "self_attn.q_proj self_attn.k_proj self_attn.v_proj"),
    ("self_attn.v_proj", "self_attn.o_proj"),
    ("post_attention_layernorm", "mlp.gate_proj mlp.up_proj"),
    ("mlp.up_proj", "mlp.down_proj"),
)
ENCODER = pairs(
    ("self_attn_layer_norm", "self_attn.q_proj self_attn.k_proj self_attn.v_proj"),
    ("self_attn.v_proj", "self_attn.out_proj"),
    ("final_layer_norm", "fc1"),  # fc2 reads fc1 through GELU, so no scale can move into fc1
)
WHISPER = pairs(("encoder_attn_layer_norm", "encoder_attn.q_proj"), ("encoder_attn.v_proj", "encoder_attn.out_proj"))
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma")
GEMMA = pairs(  # has norms after attention and feed-forward too; these are the norms before
    *((item.before, " ".join(item.layers)) for item in LLAMA if item.before != "post_attention_layernorm"),
    ("pre_feedforward_layernorm", "mlp.gate_proj mlp.up_proj"),
)
GEMMA_LIKE = ("gemma2", "gemma3_text")
# Fused projections: values and gate products are rows of a matrix whose other rows must not be scaled.
PHI = pairs(("input_layernorm", "self_attn.qkv_proj"), ("post_attention_layernorm", "mlp.gate_up_proj"))
NEOX = pairs(("input_layernorm", "attention.query_key_value"), ("post_attention_layernorm", "mlp.dense_h_to_4h"))
BLOOM = pairs(("input_layernorm", "self_attention.query_key_value"), ("post_attention_layernorm", "mlp.dense_h_to_4h"))
STABLELM = pairs(
    ("input_layernorm", "self_attn.q_proj self_attn.k_proj self_attn.v_proj mlp.gate_proj mlp.up_proj"),
    ("self_attn.v_proj", "self_attn.o_proj"),
    ("mlp.up_proj", "mlp.down_proj"),
)  # with parallel residuals
UNCLIPPED = ("q_proj", "k_proj", "qkv_proj", "query_key_value")


class Scaled(Calibrated):
    """The base of methods that scale up important input channels before they round."""

    seeded: ClassVar[bool] = True
    rescales: ClassVar[bool] = True

    mappings: list[Mapping] | None = None
    """Where scales can move; needed for architectures without known mappings. null: by the architecture."""

    def scaling_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of the larger of: five matrices of the weights' shape (search of scales), two Gram matrices
        (rescaling); all float32.
        """
        return 4 * max(5 * rows * columns, 2 * columns * columns)

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why the architecture does not fit, or None; one without known mappings needs them in the recipe."""
        family = config.get("model_type")
        unknown = f": {unknown_mappings(family)}" if self.mappings is None and family not in FAMILIES else None
        return super().unsuitable(config) or unknown

    def rescale(self, model, name: str, layer, inputs: list) -> dict[str, Any]:
        """Move the best channel scales of each mapping into the operation before its layers."""
        from quantune.quantizations.arithmetic import awq

        present = dict(layer.named_modules())
        mappings = self.mappings or [item for item in known_mappings(model.config) if item.before in present]
        return awq.rescale(name, layer, inputs, mappings, self.grid_of)


class AWQ(Scaled):
    """Activation-aware scales and clipping, then rounding to nearest."""

    version: ClassVar[int] = 4
    requantized: ClassVar[bool] = False

    method: Literal["awq"]
    """Activation-aware weight quantization: AWQ."""
    clip: bool = True
    """Clip the range of each group where that changes its output less (query and key layers are never clipped)."""

    def solver_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of the larger of: the search of scales; one Gram matrix and seven of the weights' shape
        (search of ranges), float32.
        """
        return max(self.scaling_bytes(rows, columns), 4 * (columns * columns + 7 * rows * columns))

    def fit(self, layers: dict[str, Any], gram) -> dict[str, Any]:
        """Round to nearest; with `clip`, ranges of all but query and key layers are clipped."""
        from quantune.quantizations.arithmetic.awq import fit_clipped

        clipped = {part: self.clip and not part.endswith(UNCLIPPED) for part in layers}
        return {part: fit_clipped(layer.weight.data, gram, self.grid, clipped[part]) for part, layer in layers.items()}


def known_mappings(config) -> list[Mapping]:
    """Return the mappings of an architecture.

    Raises:
        QuantuneError: if the architecture has none; the error says how to declare them.
    """
    family = FAMILIES.get(config.model_type)
    if family:
        return family(config)
    raise QuantuneError(unknown_mappings(config.model_type))


def unknown_mappings(family: str | None) -> str:
    """Return the error for an architecture without known mappings."""
    return (
        f"no mappings are known for the architecture '{family}' (known: {listed(FAMILIES)}); declare them in the"
        " quantization's 'mappings', such as [{before: ln_1, layers: [attn.q, attn.k, attn.v]}]"
    )


def _opt(config) -> list[Mapping]:
    through_relu = config.activation_function == "relu"
    return [*(OPT_NORMS if config.do_layer_norm_before else []), *(OPT if through_relu else OPT[:1])]


def _bloom(config) -> list[Mapping]:
    return [] if config.apply_residual_connection_post_layernorm else BLOOM  # []: the residual reads the norms too


FAMILIES: dict[str, Callable[[Any], list[Mapping]]] = {
    "opt": _opt,
    "whisper": lambda config: [*ENCODER, *WHISPER],
    **{name: lambda config: LLAMA for name in LLAMA_LIKE},
    **{name: lambda config: GEMMA for name in GEMMA_LIKE},
    "phi3": lambda config: PHI,
    "gpt_neox": lambda config: NEOX,
    "bloom": _bloom,
    "stablelm": lambda config: STABLELM if config.use_parallel_residual else LLAMA,
}
"""`model_type` of config.json -> the mappings of a configuration."""
