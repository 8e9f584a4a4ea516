"""Tiny random models of many architectures, each saved as its published relatives are."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from quantune.models import checkpoints

ROOT = Path(__file__).parent.parent
OPT = ROOT / "assets/models/opt-2m"
WHISPER = ROOT / "assets/models/whisper-3m"
TOKENS = {"vocab_size": 12288, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
LAYERS = 2
WIDTH, INNER, HEADS = 192, 320, 3  # multiples of 64, as bitsandbytes' blocks need, and no powers of two
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
GATED = SHAPE | {"intermediate_size": INNER, "max_position_embeddings": 256}
WINDOW = 16  # tokens of a layer with local attention: fewer than any sequence here has


def causal(family: str, **keys) -> Callable[[], torch.nn.Module]:
    """Return what builds a language model of a family (`LlamaForCausalLM`) from the keys of its configuration."""

    def make():
        config = getattr(transformers, f"{family}Config")(**TOKENS, **keys)
        return transformers.AutoModelForCausalLM.from_config(config)

    return make


def whisper() -> torch.nn.Module:
    """Return a Whisper that hears and writes as whisper-3m does."""
    config = transformers.WhisperConfig(
        vocab_size=764,
        num_mel_bins=80,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS + 1,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=INNER,
        decoder_ffn_dim=INNER,
        max_source_positions=200,
        max_target_positions=64,
        bos_token_id=553,
        eos_token_id=553,
        pad_token_id=553,
        decoder_start_token_id=554,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return transformers.WhisperForConditionalGeneration(config)


LLAMA_3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA_3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
GEMMA = GATED | {"head_dim": 64, "num_key_value_heads": 1, "sliding_window": WINDOW}
MIXTURE = GATED | {"num_key_value_heads": 1, "num_experts_per_tok": 2, "tie_word_embeddings": False}
WIDE_OPT = SHAPE | {"ffn_dim": INNER, "max_position_embeddings": 256}
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], torch.dtype, str]] = {
    "llama": (causal("Llama", **GATED, tie_word_embeddings=False), torch.float16, "5GB"),
    "llama-3": (
        causal("Llama", **GATED, num_key_value_heads=1, rope_parameters=LLAMA_3, tie_word_embeddings=True),
        torch.bfloat16,
        "2MB",
    ),
    "qwen2": (causal("Qwen2", **GATED, num_key_value_heads=1, tie_word_embeddings=True), torch.bfloat16, "5GB"),
    "qwen3": (causal("Qwen3", **GATED, num_key_value_heads=1, head_dim=128), torch.bfloat16, "1MB"),
    "mistral": (causal("Mistral", **GATED, num_key_value_heads=1, sliding_window=WINDOW), torch.float16, "5GB"),
    "gemma2": (causal("Gemma2", **GEMMA, query_pre_attn_scalar=64), torch.bfloat16, "5GB"),
    "gemma3": (
        causal("Gemma3Text", **GEMMA, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=64),
        torch.bfloat16,
        "5GB",
    ),
    "phi3": (causal("Phi3", **GATED, tie_word_embeddings=False), torch.float16, "5GB"),
    "gpt2": (causal("GPT2", n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=256), torch.float16, "5GB"),
    "gpt_neox": (causal("GPTNeoX", **GATED, tie_word_embeddings=False), torch.float16, "1MB"),
    "bloom": (causal("Bloom", hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS), torch.bfloat16, "5GB"),
    "falcon-7b": (causal("Falcon", **SHAPE, parallel_attn=True, multi_query=True), torch.bfloat16, "5GB"),
    "falcon-40b": (
        causal("Falcon", **SHAPE, new_decoder_architecture=True, num_kv_heads=1, tie_word_embeddings=False),
        torch.float16,
        "5GB",
    ),
    "stablelm": (causal("StableLm", **GATED, num_key_value_heads=HEADS, use_qkv_bias=True), torch.float16, "5GB"),
    "stablelm-2-12b": (
        causal("StableLm", **GATED, num_key_value_heads=1, use_parallel_residual=True, qk_layernorm=True),
        torch.bfloat16,
        "5GB",
    ),
    "opt": (causal("OPT", **WIDE_OPT, word_embed_proj_dim=WIDTH), torch.float16, "2MB"),
    "opt-350m": (causal("OPT", **WIDE_OPT, word_embed_proj_dim=64, do_layer_norm_before=False), torch.float16, "5GB"),
    "mixtral": (causal("Mixtral", **MIXTURE, num_local_experts=4), torch.bfloat16, "5GB"),
    "qwen3_moe": (
        causal("Qwen3Moe", **MIXTURE, num_experts=4, moe_intermediate_size=INNER, head_dim=64),
        torch.float16,
        "5GB",
    ),
    "whisper": (whisper, torch.float16, "5GB"),
}
"""Name -> what builds the model, the dtype that it is stored in, and the size of a file of weights at most."""


def build(name: str, folder: Path) -> Path:
    """Save a tiny random model with a tokenizer that fits it; return its folder.

    Vectors (biases and norms) are random too: at their initial zeros and ones nothing would show that they are used.
    """
    make, dtype, largest = MODELS[name]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for part, value in model.named_parameters():
            if value.dim() == 1:
                value.add_(0.1 * torch.randn_like(value))
            elif "embed" not in part:
                value.mul_(3)
    model.config.dtype = dtype
    model.to(dtype).save_pretrained(folder, max_shard_size=largest)
    (folder / "generation_config.json").unlink(missing_ok=True)
    checkpoints.copy_tokenizer(WHISPER if name == "whisper" else OPT, folder)
    return folder
