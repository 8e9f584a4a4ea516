"""What a pass of a model over a batch holds beside weights, in bytes, read off the code that runs.

The terms follow the tensors of transformers 5.17 (`models/*/modeling_*.py`, `loss/loss_utils.py`), peft 0.21
(`tuners/lora/layer.py`) and bitsandbytes 0.50 (`autograd/_functions.py`). With N tokens (batch x length), width H,
feed-forward size F and s bytes for a value of the dtype computed in, each layer keeps for the backward pass:

- norms: their input. LayerNorm N·H·s and two float32 statistics a token; RMSNorm computes in float32: N·H·4 and one.
  The first norm of all sees no gradient, the embeddings being frozen, and keeps nothing; the last makes up for it.
- attention (`sdpa` with a flash kernel: no matrix of length x length): queries, keys, values, output, and one float32 a
  token and head.
- feed-forward: ReLU its result, N·F·s; GELU its input; SwiGLU the gate, its SiLU and `up_proj`, 3·N·F·s.
- frozen linear layers: nothing of their input; those of LLM.int8(): all of it.
- adapted linear layers: their input in float32, shared among layers that read the same; where it is in another dtype,
  or with dropout, a copy for each. Between A and B, N·rank·4.
- dropout: a mask of one byte a value, after each part of the layer.

Adapters are float32 whatever the base is (PEFT's `autocast_adapter_dtype`).
"""

from dataclasses import dataclass

from quantune.core.units import BYTES
from quantune.finetunings import Finetuning
from quantune.models.architecture import Architecture, Layers, Linear
from quantune.quantizations import Quantization

FLOAT = BYTES["float32"]


@dataclass(frozen=True)
class Pass:
    """One pass of a model over a batch."""

    model: Architecture
    batch: int
    """Sequences."""
    length: int
    """Tokens in each."""
    dtype: str
    """Of the activations."""
    quantization: Quantization | None = None
    """Of the linear layers."""
    finetuning: Finetuning | None = None
    """Whose adapters are there."""

    @property
    def size(self) -> int:
        """Bytes of one value of an activation."""
        return BYTES[self.dtype]

    def tokens(self, layers: Layers) -> int:
        """Return the positions that the layers work on."""
        return self.batch * (self.model.frames if layers.part == "encoder" else self.length)

    def hidden(self, layers: Layers) -> int:
        """Return the bytes of one hidden state."""
        return self.tokens(layers) * layers.width * self.size

    def logits(self, dtype: str, positions: int | None = None) -> int:
        """Return the bytes of the logits, at all positions or as many of each sequence."""
        return self.batch * (positions or self.length) * self.model.vocabulary * BYTES[dtype]

    def cache(self) -> int:
        """Return the bytes of keys and values: of `length` tokens, and of the encoder's output if there is one."""
        layers = self.model.decoder
        positions = self.length + (self.model.frames if layers.cross else 0)
        return 2 * layers.count * self.batch * positions * layers.keys * self.size

    def norm(self, layers: Layers) -> int:
        """Return the bytes that a norm keeps for the backward pass."""
        per_token = layers.width * FLOAT + FLOAT if layers.rms else layers.width * self.size + 2 * FLOAT
        return self.tokens(layers) * per_token

    def kept(self, layers: Layers) -> int:
        """Return the bytes that one layer keeps for the backward pass, linear layers frozen but for adapters."""
        attention = 2 * (layers.queries + layers.keys) * self.size + layers.heads * FLOAT
        cross = 2 * layers.queries * self.size + layers.heads * FLOAT if layers.cross else 0
        feed_forward = (3 if layers.gated else 1) * layers.feed_forward * self.size
        masks = layers.norms * layers.width if layers.dropout else 0
        encoded = 2 * self.batch * self.model.frames * layers.keys * self.size if layers.cross else 0
        per_token = attention + cross + feed_forward + masks
        norms = layers.norms * self.norm(layers)
        return norms + self.tokens(layers) * per_token + encoded + self._linear_inputs(layers)

    def _linear_inputs(self, layers: Layers) -> int:
        """Return the bytes that linear layers keep of their inputs, beyond what is kept anyway."""
        kept = {"attention", "cross attention", "encoder output"}  # the last once for all layers
        if layers.activation == "relu":
            kept.add("feed-forward")
        total, (rank, dropout) = (
            0,
            ((self.finetuning.bottleneck, self.finetuning.dropped) if self.finetuning else (0, 0)),
        )
        for linear in layers.linears:
            positions = self.batch * self.model.frames if linear.reads == "encoder output" else self.tokens(layers)
            adapted = linear in self._adapted(layers)
            copied = adapted and (self._copy or dropout)
            if adapted:
                total += positions * rank * FLOAT
            if copied:
                total += positions * linear.inputs * (FLOAT + bool(dropout))
            keeps = (adapted and not copied) or (self.quantization is not None and self.quantization.keeps_inputs)
            if keeps and linear.reads not in kept:
                total += positions * linear.inputs * self.size
                kept.add(linear.reads)
        return total

    def at_work(self, layers: Layers) -> int:
        """Return the bytes that one layer takes while it computes without gradients, freed afterwards.

        The layer's input, the residual and the embeddings are there throughout. To them comes the largest of
        - attention: the norm's output, queries, keys, values and output; for RoPE four more of the queries' size;
        - feed-forward: in and out of ReLU or GELU, in Whisper the norm's output too; for SwiGLU both factors, their
          product and the norm's output;
        - an adapted linear layer: its input and its copy in float32, its output, the update before and after scaling.
        Packed layers are unpacked one at a time.
        """
        rope = 4 * layers.queries if layers.gated else 0
        attention = layers.width + 2 * (layers.queries + layers.keys) + rope
        feed_forward = 3 * layers.feed_forward if layers.gated else 2 * layers.feed_forward
        feed_forward += layers.width if layers.gated or self.model.frames else 0
        updates = [
            linear.inputs * (self.size + self._copy) + linear.outputs * (self.size + 2 * FLOAT)
            for linear in self._adapted(layers)
        ]
        largest = max(attention * self.size, feed_forward * self.size, *updates, 0)
        return (2 + self.model.embedded) * self.hidden(layers) + self.tokens(layers) * largest + self._unpacked(layers)

    def gradients(self, layers: Layers) -> int:
        """Return the bytes of the gradients that are there at once inside one layer.

        The largest of those of the feed-forward part (of what the activation gives and takes, for SwiGLU of both
        factors and the product), and those at an adapted linear layer of another dtype: its output's in float32, its
        input's in float32, and from both paths in its own dtype.
        """
        feed_forward = (3 if layers.gated else 2) * layers.feed_forward * self.size
        updates = [
            linear.inputs * (FLOAT + 2 * self.size) + linear.outputs * FLOAT
            for linear in self._adapted(layers)
            if self._copy
        ]
        return self.tokens(layers) * max(feed_forward, *updates, 0) + self._unpacked(layers)

    @property
    def _copy(self) -> int:
        """Bytes of one value of the float32 copy that adapters make of their input."""
        return FLOAT if self.size != FLOAT else 0

    def _adapted(self, layers: Layers) -> list[Linear]:
        return [linear for linear in layers.linears if self.finetuning and self.finetuning.adapts(linear.name)]

    def _unpacked(self, layers: Layers) -> int:
        """Return the bytes of the largest packed layer, dense."""
        return max(linear.inputs * linear.outputs for linear in layers.linears) * self.size if self.quantization else 0
