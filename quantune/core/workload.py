"""What a job does with a model, as plain data: recipes describe it, `quantune.planning.memory` prices it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

PROBE_TOKENS = 512
"""Tokens of the probe text that a quantized model and its parent read, at most."""
PROBE_SAMPLES, PROBE_SAMPLE_TOKENS = 8, 4096
"""Calibration samples, and their tokens, that they read instead where the method calibrates, at most."""
PROBE_LOGITS = 2**28
"""Float32 logits of one pass over them, at most: 1 GiB."""
LOSS_CHUNK = 2**26
"""Logits that the training loss holds at once."""


@dataclass(frozen=True)
class Inference:
    """Forward passes without gradients."""

    dtype: str
    """Dtype of the computation and of the weights that are not packed."""
    batch: int
    """Sequences in one pass."""
    length: int
    """Tokens in each sequence; with a cache, the tokens in the cache at the end."""
    cache: bool = False
    """Whether keys and values are kept, as in generation."""
    logits: int | None = None
    """Positions of each sequence whose logits are computed; None: all (1 in generation)."""
    extra: dict[str, int] = field(default_factory=dict)
    """Tensors in addition to the model's own: name -> bytes."""


@dataclass(frozen=True)
class Training:
    """Forward and backward passes of AdamW, trained weights in float32."""

    dtype: str
    """Dtype of the computation and of the frozen weights."""
    batch: int
    """Sequences in one forward and backward pass."""
    length: int
    """Tokens in each sequence."""
    kept: Literal["activations", "inputs", "none"] = "activations"
    """What the device keeps for the backward pass: all activations, only the inputs of layers (gradient checkpointing),
    or none, because the inputs are offloaded."""
    mixed: bool = False
    """Mixed precision: matrix products compute in `dtype`; norms, and a quantized base's other weights, in float32."""


@dataclass(frozen=True)
class Calibration:
    """A model that is streamed layer by layer over calibration samples."""

    samples: int
    length: int
    """Tokens in each sample."""
    group_size: int | None
    """Weights of a row that share a scale; None: the whole row."""
    requantized: bool
    """Whether the rounded weights replace the model's own; otherwise both are kept in memory."""
    solver_bytes: Callable[[int, int], int]
    """(outputs, inputs) of a matrix -> bytes for fitting its grids, without its Gram matrix."""
    gram: bool = True
    """Whether the Gram matrices of inputs are collected."""
