"""The bytes of a model's activations in one pass over a batch, derived from the source code of the libraries.

The terms follow the tensors of transformers 5.17 (`models/*/modeling_*.py`, `loss/loss_utils.py`), peft 0.21
(`tuners/lora/layer.py`) and bitsandbytes 0.50 (`autograd/_functions.py`). With N tokens (batch x length), width H,
feed-forward size F and s bytes for a value of the dtype computed in, each layer keeps for the backward pass:

- norms: their input. LayerNorm N·H·s and two float32 statistics a token; RMSNorm computes in float32: N·H·4 and one.
  The embeddings are frozen, so the first norm keeps nothing; the final norm is counted instead.
- attention (`sdpa` with a flash kernel: no matrix of length x length): queries, keys, values, output, and one float32 a
  token and head.
- feed-forward: ReLU keeps its result, N·F·s; GELU its input; SwiGLU the gate, its SiLU and `up_proj`, 3·N·F·s.
- frozen linear layers: nothing.
- adapted linear layers: their input, shared by layers that read the same tensor; with dropout each layer keeps a copy
  of its own. Between A and B, N·rank·s. In 16 bits also A and B in this dtype.
- dropout: a mask of one byte a value, after each part of the layer.

In mixed precision (torch.autocast) norms keep a float32 input, attention computes in 16 bits, and each adapted layer
that reads a float32 tensor, such as the output of a norm, keeps a 16-bit copy of its own. Linear layers return 16 bits.

Adapters are float32 whatever the base is (PEFT's `autocast_adapter_dtype`). In training they compute in the dtype of
their input (`finetunings/training/precision.py`), in inference in float32.
"""

from dataclasses import dataclass

from quantune.core.units import BYTES
from quantune.core.workload import LOSS_CHUNK
from quantune.finetunings import Finetuning
from quantune.models.architecture import Architecture, Layers, Linear
from quantune.quantizations import Quantization

FLOAT = BYTES["float32"]


@dataclass(frozen=True)
class Pass:
    """One pass of a model over a batch."""

    model: Architecture
    batch: int
    """Number of sequences."""
    length: int
    """Tokens of each sequence."""
    dtype: str
    """Dtype of the activations."""
    quantization: Quantization | None = None
    """Recipe of the linear layers; None: not quantized."""
    finetuning: Finetuning | None = None
    """Recipe of the adapters; None: no adapters."""
    mixed: bool = False
    """Mixed precision: matrix products compute in 16 bits, and `dtype` is that of the hidden states."""

    @property
    def size(self) -> int:
        """Bytes of one value of an activation."""
        return BYTES[self.dtype]

    def tokens(self, layers: Layers) -> int:
        """Return the number of positions that a layer computes, over the whole batch."""
        return self.batch * (self.model.frames if layers.part == "encoder" else self.length)

    def hidden(self, layers: Layers) -> int:
        """Return the bytes of one hidden state."""
        return self.tokens(layers) * layers.width * self.size

    def logits(self, dtype: str, positions: int | None = None) -> int:
        """Return the bytes of the logits, at all positions or at this number of positions of each sequence."""
        return self.batch * (positions or self.length) * self.model.vocabulary * BYTES[dtype]

    def cache(self) -> int:
        """Return the bytes of the cached keys and values: of `length` tokens, and of the encoder output if any."""
        layers = self.model.decoder
        positions = self.length + (self.model.frames if layers.cross else 0)
        return 2 * layers.count * self.batch * positions * layers.keys * self.size

    def norm(self, layers: Layers) -> int:
        """Return the bytes that a norm keeps for the backward pass."""
        per_token = layers.width * (FLOAT if self.mixed else self.size) + 2 * FLOAT
        per_token = layers.width * FLOAT + FLOAT if layers.rms else per_token
        return self.tokens(layers) * per_token

    def saved_for_backward(self, layers: Layers) -> int:
        """Return the bytes that one layer keeps for the backward pass; only adapters are trained."""
        attention = 2 * (layers.queries + layers.keys) * self._factor + layers.heads * FLOAT
        cross = 2 * layers.queries * self._factor + layers.heads * FLOAT if layers.cross else 0
        feed_forward = (3 if layers.gated else 1) * layers.feed_forward * self._factor
        masks = layers.norms * layers.width if layers.dropout else 0
        encoded = 2 * self.batch * self.model.frames * layers.keys * self._factor if layers.cross else 0
        per_token = attention + cross + feed_forward + masks
        norms = layers.norms * self.norm(layers)
        return norms + self.tokens(layers) * per_token + encoded + self._linear_inputs(layers)

    def _linear_inputs(self, layers: Layers) -> int:
        """Return the bytes of the inputs that linear layers keep, without tensors that other operations keep."""
        saved = {"attention", "cross attention", "encoder output"}  # all layers share the encoder output
        if layers.activation == "relu":
            saved.add("feed-forward")
        total, (rank, dropout) = (
            0,
            ((self.finetuning.bottleneck, self.finetuning.adapter_dropout) if self.finetuning else (0, 0)),
        )
        for linear in layers.linears:
            positions = self.batch * self.model.frames if linear.reads == "encoder output" else self.tokens(layers)
            adapted = linear in self._adapted(layers)
            copied = adapted and dropout
            if adapted:
                total += positions * rank * self._factor
                total += rank * (linear.inputs + linear.outputs) * self._factor if self._factor != FLOAT else 0
            if copied:
                total += positions * linear.inputs * (self._factor + 1)
            elif adapted and self._float(linear):
                total += positions * linear.inputs * self._factor
            if adapted and not copied and not self._float(linear) and linear.reads not in saved:
                total += positions * linear.inputs * self.size
                saved.add(linear.reads)
        return total

    def forward_peak(self, layers: Layers) -> int:
        """Return the bytes that one layer holds while it computes without gradients; they are freed afterwards.

        The layer's input, the residual and the embeddings stay in memory. The largest of these is added:
        - attention: the norm's output, queries, keys, values and output; for RoPE four more of the queries' size;
        - feed-forward: input and output of ReLU or GELU, in Whisper the norm's output too; for SwiGLU both factors,
          their product and the norm's output;
        - an adapted linear layer: its input, the float32 copy of it, its output, the update before and after scaling;
        - a layer that multiplies codes: its input, the codes, the sums, its output.
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
        coded = self.quantization is not None and not self.quantization.unpacks
        products = [
            (linear.inputs + linear.outputs) * self.size
            + self.quantization.product_bytes(linear.outputs, linear.inputs)
            for linear in (layers.linears if coded else [])
        ]
        largest = max(attention * self.size, feed_forward * self.size, *updates, *products, 0)
        unpacked = 0 if coded else self._unpacked(layers)
        return (2 + self.model.embedded) * self.hidden(layers) + self.tokens(layers) * largest + unpacked

    def gradients(self, layers: Layers) -> int:
        """Return the largest number of bytes that gradients take at one time inside one layer.

        Those of the feed-forward part: input and output of the activation; for SwiGLU both factors and the product.
        """
        feed_forward = (3 if layers.gated else 2) * layers.feed_forward * self._factor
        return self.tokens(layers) * feed_forward + self._unpacked(layers)

    def loss(self) -> int:
        """Return the bytes that the loss of training holds at its peak.

        These are some rows of logits, twice in float32, and the gradient of the hidden states; in mixed precision also
        a 16-bit copy of a float32 output embedding.
        """
        rows = min(self.batch * self.length * self.model.vocabulary, LOSS_CHUNK)
        head = self.model.head.inputs * self.model.vocabulary * self._factor if self._factor != self.size else 0
        return self.hidden(self.model.decoder) + rows * 2 * FLOAT + head

    @property
    def _factor(self) -> int:
        """Bytes of one value of a factor of a matrix product."""
        return 2 if self.mixed else self.size

    def _float(self, linear: Linear) -> bool:
        """Return whether a linear layer reads a float32 tensor in mixed precision, and casts it."""
        reads_float = "norm" in linear.reads or (linear.reads == "encoder output" and self.size == FLOAT)
        return self.mixed and reads_float

    @property
    def _copy(self) -> int:
        """Bytes of one value of the float32 copy that adapters make of their input; 0 if they make none."""
        return FLOAT if self.size != FLOAT else 0

    def _adapted(self, layers: Layers) -> list[Linear]:
        return [linear for linear in layers.linears if self.finetuning and self.finetuning.adapts(linear.name)]

    def _unpacked(self, layers: Layers) -> int:
        """Return the bytes of the largest packed layer after unpacking."""
        return max(linear.inputs * linear.outputs for linear in layers.linears) * self.size if self.quantization else 0
