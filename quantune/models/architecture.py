"""The shape of a model, from its config.json alone: the sizes of layers and the number of parameters, without torch.

The shapes follow transformers 5.17 (`models/{opt,llama,mistral,qwen2,qwen3,whisper}/modeling_*.py`). A key that is
missing in config.json has the default of its configuration class. To add a family, add one function to `FAMILIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quantune.core.errors import QuantuneError, listed

ATTENTION_END, FEED_FORWARD_END = ("out_proj", "o_proj"), ("fc2", "down_proj")
"""Names of the linear layer that ends the attention, and of the one that ends the feed-forward part."""


@dataclass(frozen=True)
class Linear:
    """One linear layer."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    reads: str = ""
    """Name of the activation that the layer reads; layers with the same name here share one tensor."""


@dataclass(frozen=True)
class Layers:
    """Transformer layers of the same shape."""

    part: str
    """"decoder" or "encoder"."""
    count: int
    width: int
    """Size of the hidden states."""
    heads: int
    key_heads: int
    """Heads of keys and values; fewer than `heads` with grouped-query attention."""
    head_size: int
    linears: tuple[Linear, ...]
    norms: int
    """Norms on the hidden states in each layer."""
    norm_parameters: int
    """Parameters of all norms of a layer."""
    rms: bool
    """Whether norms are RMSNorm (computed in float32) instead of LayerNorm."""
    activation: str
    gated: bool = False
    """Whether the feed-forward network multiplies the outputs of `gate_proj` and `up_proj` (SwiGLU)."""
    dropout: float = 0.0
    cross: bool = False
    """Whether each layer has cross-attention, whose keys and values come from the encoder."""

    @property
    def queries(self) -> int:
        """Number of values in the queries of one token."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Number of values in the keys of one token; the attention values have the same size."""
        return self.key_heads * self.head_size

    @property
    def feed_forward(self) -> int:
        """Size of the hidden states between the two feed-forward layers."""
        return max(linear.outputs for linear in self.linears if linear.reads == "feed-forward norm")


@dataclass(frozen=True)
class Architecture:
    """A model's layers and the parameters outside of them."""

    vocabulary: int
    embeddings: int
    """Parameters of token and position embeddings."""
    layers: tuple[Layers, ...]
    head: Linear
    tied: bool
    """Whether the output embedding shares its parameters with the input embedding."""
    final_norms: int
    """Parameters of the norms after the layers."""
    projections: tuple[Linear, ...] = ()
    """Linear layers outside the transformer layers (in OPT-350M)."""
    embedded: int = 1
    """Embedding outputs that stay in memory until the last layer is done (OPT: of tokens and of positions)."""
    convolutions: int = 0
    frames: int = 0
    """Positions of the encoder's output (Whisper: 1,500 for 30 s); 0 without an encoder."""

    @property
    def decoder(self) -> Layers:
        """The layers that generate text."""
        return next(layers for layers in self.layers if layers.part == "decoder")

    @property
    def encoder(self) -> Layers | None:
        """The layers of the encoder, which reads audio; None for text models."""
        return next((layers for layers in self.layers if layers.part == "encoder"), None)

    def linears(self) -> list[tuple[int, Linear]]:
        """Return (count, layer) of every linear layer that is quantized: all but the output embedding."""
        inside = [(layers.count, linear) for layers in self.layers for linear in layers.linears]
        return [*inside, *((1, linear) for linear in self.projections)]

    def parameters(self) -> dict[str, int]:
        """Return component -> number of parameters; their sum is `model.num_parameters()`."""
        return {
            "embeddings": self.embeddings,
            "linears": sum(count * linear.inputs * linear.outputs for count, linear in self.linears()),
            "biases": sum(count * linear.outputs for count, linear in self.linears() if linear.bias),
            "norms": self.final_norms + sum(layers.count * layers.norm_parameters for layers in self.layers),
            "convolutions": self.convolutions,
            "head": 0 if self.tied else self.head.inputs * self.head.outputs,
        }

    def biases(self) -> int:
        """Return the number of biases, those of norms and convolutions included."""
        norms = sum(layers.count * layers.norm_parameters for layers in self.layers if not layers.rms) // 2
        final = 0 if self.decoder.rms else self.final_norms // 2
        convolutions = 2 * self.encoder.width if self.convolutions else 0
        return self.parameters()["biases"] + norms + final + convolutions


def read(config: dict[str, Any]) -> Architecture:
    """Return the shape of a model.

    Args:
        config: config.json as transformers writes it.

    Raises:
        QuantuneError: if its `model_type` is not among `FAMILIES`, a size is missing, or it is already quantized.
    """
    family = config.get("model_type")
    if config.get("quantization_config") is not None:
        raise QuantuneError("the shape of a checkpoint that comes quantized is not known")
    if family not in FAMILIES:
        raise QuantuneError(f"the shape of models of type '{family}' is not known; known: {listed(FAMILIES)}")
    try:
        return FAMILIES[family](config)
    except KeyError as error:
        raise QuantuneError(f"config.json of type '{family}' has no {error}") from None


def known(config: dict[str, Any]) -> Architecture | None:
    """Return the shape of a model, or None where `read` knows none: then only the job can check a recipe."""
    try:
        return read(config)
    except (QuantuneError, ArithmeticError, TypeError, ValueError):
        return None


def _opt(config: dict[str, Any]) -> Architecture:
    width, vocabulary, bias = config["hidden_size"], config["vocab_size"], config.get("enable_bias", True)
    token_width = config.get("word_embed_proj_dim") or width
    norm = 2 * width if config.get("layer_norm_elementwise_affine", True) else 0
    final = config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm", False)
    layers = Layers(
        part="decoder",
        count=config["num_hidden_layers"],
        width=width,
        heads=config["num_attention_heads"],
        key_heads=config["num_attention_heads"],
        head_size=width // config["num_attention_heads"],
        linears=(
            *_attention(width, width, width, {"q_proj": bias, "k_proj": bias, "v_proj": bias, "out_proj": bias}),
            *_feed_forward(width, config["ffn_dim"], bias),
        ),
        norms=2,
        norm_parameters=2 * norm,
        rms=False,
        activation=config.get("activation_function", "relu"),
        dropout=config.get("dropout", 0.1),
    )
    projected = token_width != width
    return Architecture(
        vocabulary=vocabulary,
        embeddings=vocabulary * token_width + (config["max_position_embeddings"] + 2) * width,
        layers=(layers,),
        head=Linear("lm_head", token_width, vocabulary, False),
        tied=config.get("tie_word_embeddings", True),
        final_norms=norm if final else 0,
        embedded=2,
        projections=(
            (Linear("project_in", token_width, width, False), Linear("project_out", width, token_width, False))
            if projected
            else ()
        ),
    )


def _llama(config: dict[str, Any]) -> Architecture:
    family, width, vocabulary = config["model_type"], config["hidden_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or {"mistral": 8}.get(family, heads)
    head_size = config.get("head_dim") or (128 if family == "qwen3" else width // heads)
    bias = family == "qwen2" or (family != "mistral" and config.get("attention_bias", False))
    names = {"q_proj": bias, "k_proj": bias, "v_proj": bias, "o_proj": bias and family != "qwen2"}
    inner, inner_bias = config["intermediate_size"], family == "llama" and config.get("mlp_bias", False)
    layers = Layers(
        part="decoder",
        count=config["num_hidden_layers"],
        width=width,
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        linears=(
            *_attention(width, heads * head_size, key_heads * head_size, names),
            Linear("gate_proj", width, inner, inner_bias, "feed-forward norm"),
            Linear("up_proj", width, inner, inner_bias, "feed-forward norm"),
            Linear("down_proj", inner, width, inner_bias, "feed-forward"),
        ),
        norms=2,
        norm_parameters=2 * width + (2 * head_size if family == "qwen3" else 0),
        rms=True,
        activation=config.get("hidden_act", "silu"),
        gated=True,
    )
    return Architecture(
        vocabulary=vocabulary,
        embeddings=vocabulary * width,
        layers=(layers,),
        head=Linear("lm_head", width, vocabulary, False),
        tied=config.get("tie_word_embeddings", False),
        final_norms=width,
    )


def _whisper(config: dict[str, Any]) -> Architecture:
    width, vocabulary = config["d_model"], config["vocab_size"]
    frames = config.get("max_source_positions", 1500)

    def layers(part: str, cross: bool) -> Layers:
        names = {"q_proj": True, "k_proj": False, "v_proj": True, "out_proj": True}
        attentions = _attention(width, width, width, names)
        if cross:
            attentions += _attention(width, width, width, names, "cross ", "encoder output")
        return Layers(
            part=part,
            count=config[f"{part}_layers"],
            width=width,
            heads=config[f"{part}_attention_heads"],
            key_heads=config[f"{part}_attention_heads"],
            head_size=width // config[f"{part}_attention_heads"],
            linears=(*attentions, *_feed_forward(width, config[f"{part}_ffn_dim"], True)),
            norms=3 if cross else 2,
            norm_parameters=(3 if cross else 2) * 2 * width,
            rms=False,
            activation=config.get("activation_function", "gelu"),
            dropout=config.get("dropout", 0.0),
            cross=cross,
        )

    return Architecture(
        vocabulary=vocabulary,
        embeddings=(vocabulary + frames + config.get("max_target_positions", 448)) * width,
        layers=(layers("encoder", False), layers("decoder", True)),
        head=Linear("proj_out", width, vocabulary, False),
        tied=config.get("tie_word_embeddings", True),
        final_norms=2 * 2 * width,
        convolutions=3 * config.get("num_mel_bins", 80) * width + width + 3 * width * width + width,
        frames=frames,
    )


def _attention(
    width: int, queries: int, keys: int, names: dict[str, bool], prefix: str = "", source: str = "attention norm"
) -> tuple[Linear, ...]:
    """Return the four linear layers of an attention; `names` is layer name -> has a bias, in the order q, k, v, out."""
    (query, query_bias), (key, key_bias), (value, value_bias), (out, out_bias) = names.items()
    return (
        Linear(query, width, queries, query_bias, f"{prefix}attention norm"),
        Linear(key, width, keys, key_bias, source),
        Linear(value, width, keys, value_bias, source),
        Linear(out, queries, width, out_bias, f"{prefix}attention"),
    )


def _feed_forward(width: int, inner: int, bias: bool) -> tuple[Linear, ...]:
    return (
        Linear("fc1", width, inner, bias, "feed-forward norm"),
        Linear("fc2", inner, width, bias, "feed-forward"),
    )


FAMILIES: dict[str, Callable[[dict[str, Any]], Architecture]] = {
    "opt": _opt,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "whisper": _whisper,
}
"""`model_type` of config.json -> the function that reads it."""
SPEECH = ("whisper",)
"""`model_type` of speech models; all others are language models."""
