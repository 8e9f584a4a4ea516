"""The values of a model's config.json, checked before anything is built from them: types, bounds, kind of model.

Only keys that are present are checked, because a missing key has the default of its configuration class.
"""

import math
import re
from typing import Any

from quantune.core.errors import QuantuneError, listed
from quantune.models.architecture import FAMILIES, SPEECH
from quantune.models.foreign import compressed_config, dialects
from quantune.models.stored import GENERATION

MANY, WIDE, LONG = 10_000, 1_000_000, 1_000_000_000
COUNTS = {
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), MANY
    ),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_kv_heads"), MANY),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_mel_bins"), MANY),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"), MANY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "head_dim", "word_embed_proj_dim"), WIDE),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), WIDE),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), WIDE),
    **dict.fromkeys(("vocab_size",), 10 * WIDE),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), LONG),
}
"""Key of config.json that counts something -> the largest value; the smallest is 1."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
NULLABLE = ("num_key_value_heads", "num_kv_heads", "head_dim", "n_inner", "word_embed_proj_dim", "num_experts")
NULLABLE += ("num_local_experts", "n_routed_experts", "num_experts_per_tok", "n_head", "n_heads")
"""Keys whose value null stands for a default."""
POSITIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "rope_theta")
TEXTS = ("activation_function", "hidden_act", "model_type")
SWITCHES = ("tie_word_embeddings", "is_encoder_decoder", "enable_bias", "do_layer_norm_before", "attention_bias")
SWITCHES += ("mlp_bias", "layer_norm_elementwise_affine", "_remove_final_layer_norm")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
DTYPES = ("float32", "float16", "bfloat16")
GENERATION_COUNTS = ("num_beams", "max_length", "max_new_tokens", "num_return_sequences", "num_beam_groups")
GENERATION_NUMBERS = (
    "temperature",
    "top_p",
    "top_k",
    "typical_p",
    "min_length",
    "repetition_penalty",
    "min_new_tokens",
)
FLOATS = ("F32", "F16", "BF16", "F64")
PACKED = (
    ".qweight",
    ".qzeros",
    ".weight_packed",
    ".SCB",
    ".absmax",
    ".quant_map",
    ".weight_scale",
    ".weight_scale_inv",
)
"""Ends of the names of tensors that only quantized layers have."""
ATTENTION = ("eager", "sdpa")
OTHER_HEADS = r"For(MaskedLM|PreTraining|NextSentencePrediction|MultipleChoice|CTC|\w*(Classification|Answering))$"
"""Ends of the names of classes (`architectures`) that are no language models."""
LOADED = ("bitsandbytes", "compressed-tensors", *dialects.METHODS)
"""Methods of checkpoints from outside that are already quantized and can be evaluated and trained on; those of
`dialects` are repacked first."""
REMEDY = "correct config.json, or copy it from the original model"


def check(config: dict[str, Any]) -> None:
    """Raise QuantuneError if a config.json has an impossible value, or describes a model that quantune cannot use."""
    if not isinstance(config.get("model_type", ""), str):
        raise _wrong("model_type", config["model_type"], "a text, such as llama")
    if problem := _unusable(config):
        raise QuantuneError(f"config.json: {problem}")
    for key, value in config.items():
        if allowed := _allowed(key, value):
            raise _wrong(key, value, allowed)
    vocabulary = config.get("vocab_size", 10 * WIDE)
    for key in TOKENS:
        require_token(config, key, vocabulary, "config.json")
    heads, key_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads and key_heads and heads % key_heads:
        raise _wrong("num_key_value_heads", key_heads, f"a divisor of 'num_attention_heads' ({heads})")
    quantized(config)


def require_token(content: dict[str, Any], key: str, vocabulary: int, file: str) -> None:
    """Raise QuantuneError if a key holds something else than the ids of tokens or null; -1 is no token of padding."""
    value, least = content.get(key), -1 if key == "pad_token_id" else 0
    for token in value if isinstance(value, list) else [value]:
        if token is not None and not (type(token) is int and least <= token < vocabulary):
            raise _wrong(key, token, f"the id of a token, from 0 to {vocabulary - 1:,}, or null", file)


def quantized(config: dict[str, Any]) -> str | None:
    """Return how a checkpoint is already quantized (`quant_method`), or None.

    Raises:
        QuantuneError: if this package cannot load it with the arithmetic of its format.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method not in LOADED:
        raise QuantuneError(
            f"config.json: the model is already quantized ('quantization_config', quant_method {_shown(method)}); "
            f"allowed: {listed(LOADED)}; give the original model, and quantize it with a step of 'quantizations'"
        )
    dialects.read(settings)  # raises for a dialect that is not supported
    if method == "compressed-tensors" and (problem := compressed_config.problem(settings)):
        raise QuantuneError(
            f"config.json: 'quantization_config' {problem}; allowed: {compressed_config.ALLOWED}; give the original "
            "model, and quantize it with a step of 'quantizations'"
        )
    return method


def _unusable(config: dict[str, Any]) -> str | None:
    """Return why quantune cannot use a model of this kind, with what it can use, or None."""
    family, classes = config.get("model_type"), config.get("architectures")
    if "model_type" not in config:
        return f"'model_type' is missing; allowed: the name of an architecture of transformers, such as llama; {REMEDY}"
    if config.get("is_encoder_decoder") is True and family not in SPEECH:
        allowed = "allowed: decoder-only language models and Whisper"
        return f"'{family}' is an encoder-decoder model of text ('is_encoder_decoder' is true); {allowed}"
    if classes is not None and not (isinstance(classes, list) and all(isinstance(item, str) for item in classes)):
        return f"'architectures' is {_shown(classes)}; allowed: a list of names of classes; {REMEDY}"
    if classes and all(re.search(OTHER_HEADS, item) for item in classes):
        reason = f"is no language model ('architectures': {listed(classes)})"
        return f"'{family}' {reason}; allowed: decoder-only language models (…ForCausalLM) and Whisper"
    if "auto_map" in config and not isinstance(config["auto_map"], dict):
        return f"'auto_map' is {_shown(config['auto_map'])}; allowed: no such key; remove it"
    for key in ("transformers_weights", "fusion_config"):
        if config.get(key) is not None:
            return f"'{key}' is {_shown(config[key])}; allowed: no such key; remove it"
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        if config.get(key) not in (None, *ATTENTION):
            return f"'{key}' is {_shown(config[key])}; allowed: {listed(ATTENTION)}, or no such key; remove it"
    return None


def _allowed(key: str, value: Any) -> str | None:
    """Return what a key of config.json may hold if its value is something else, or None."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if key in COUNTS and not (value is None and key in NULLABLE):
        least = 0 if "expert" in key else 1
        if not (type(value) is int and least <= value <= COUNTS[key]):
            return f"a whole number from {least} to {COUNTS[key]:,}{', or null' if key in NULLABLE else ''}"
    if key in POSITIVE and value is not None and not (number and 0 < value <= 1e12):
        return "a number above 0"
    if key.endswith("dropout") and value is not None and not (number and 0 <= value <= 1):
        return "a number from 0 to 1"
    if key in TEXTS and not (isinstance(value, str) and value):
        return "a text"
    if key in SWITCHES and value is not None and not isinstance(value, bool):
        return "true or false"
    if key in ("dtype", "torch_dtype") and value is not None and value not in DTYPES:
        return listed(DTYPES)
    return None


def _wrong(key: str, value: Any, allowed: str, file: str = "config.json") -> QuantuneError:
    return QuantuneError(
        f"{file}: '{key}' is {_shown(value)}; allowed: {allowed}; {REMEDY.replace('config.json', file)}"
    )


def _shown(value: Any) -> str:
    """Return a value as JSON would show it, cut to 60 characters."""
    names = {None: "null", True: "true", False: "false"}
    text = names[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def require_layers(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Raise QuantuneError if config.json has more layers than the weights have tensors: each layer has at least one."""
    for key in LAYERS:
        if config.get(key, 0) > len(tensors):
            raise _wrong(key, config[key], f"up to {len(tensors)}, the number of tensors in the weights")


def require_embeddings(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Raise QuantuneError if the token embeddings in the weights have another shape than in config.json."""
    width = next((key for key in ("word_embed_proj_dim", "hidden_size", "d_model", "n_embd") if config.get(key)), None)
    names = [name for name in tensors if re.search(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in)\.weight$", name)]
    if len(names) != 1 or len(tensors[names[0]].shape) != 2 or config.get("model_type") not in FAMILIES:
        return
    for key, size in zip(("vocab_size", width), tensors[names[0]].shape, strict=True):
        if key and config.get(key, size) != size:
            raise _wrong(key, config[key], f"{size}, as '{names[0]}' has in {tensors[names[0]].file.name}")


def require_float(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Raise QuantuneError if the weights are quantized although config.json does not say so."""
    if config.get("quantization_config") is not None:
        return
    for name, tensor in tensors.items():
        packed = name.endswith(PACKED)
        if packed or (name.endswith(".weight") and tensor.dtype not in FLOATS):
            what = "a tensor of a quantized layer" if packed else f"stored as {tensor.dtype}"
            remedy = "give the original model, and quantize it with a step of 'quantizations'"
            if name.endswith(".qweight"):
                remedy += ', or add the key, with "quant_method": "gptq" and what quantize_config.json holds'
            raise QuantuneError(
                f"{tensor.file.name}: '{name}' is {what}, and config.json has no 'quantization_config'; allowed: "
                f"weights of {listed(FLOATS)}; {remedy}"
            )


def check_generation(content: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise QuantuneError if a generation_config.json has an impossible value; `config` is the model's config.json."""
    vocabulary = config.get("vocab_size", 10 * WIDE)
    for key in (*TOKENS, "suppress_tokens", "begin_suppress_tokens"):
        require_token(content, key, vocabulary, GENERATION)
    for key, value in content.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if key in GENERATION_COUNTS and value is not None and not (type(value) is int and 1 <= value <= LONG):
            raise _wrong(key, value, f"a whole number from 1 to {LONG:,}, or null", GENERATION)
        if key in GENERATION_NUMBERS and value is not None and not (number and 0 <= value <= LONG):
            raise _wrong(key, value, "a number from 0 on, or null", GENERATION)
