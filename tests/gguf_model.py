"""Write GGUF files from checkpoints in Hugging Face layout, as llama.cpp's conversion does."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from safetensors.torch import load_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    **{f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}
BLOCKS = {"Q4_K": 144, "Q6_K": 210, "Q3_K": 110}
"""Bytes of a block of 256 values, for the types that the library reads and does not write: drawn at random."""


def blocks(shape: tuple[int, ...], kind: str, draw: np.random.Generator) -> np.ndarray:
    """Return random blocks of a type whose scales are small and finite."""
    raw = draw.integers(0, 256, (*shape[:-1], shape[-1] // 256, BLOCKS[kind]), dtype=np.uint8)
    small = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
    for begin in {"Q4_K": (0, 2), "Q6_K": (208,), "Q3_K": (108,)}[kind]:
        raw[..., begin : begin + 2] = small
    return raw.reshape(*shape[:-1], -1)


def apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of queries or keys in the order of llama.cpp: the halves of a head interleaved."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def tokens(writer: gguf.GGUFWriter, folder: Path, pre: str) -> None:
    """Write the byte-level tokenizer of a folder."""
    content = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    ids = dict(content["model"]["vocab"]) | {item["content"]: item["id"] for item in content["added_tokens"]}
    special = {item["content"] for item in content["added_tokens"] if item["special"]}
    ordered = sorted(ids, key=ids.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(ordered)
    writer.add_token_types([3 if token in special else 1 for token in ordered])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]])
    for kind, add in {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id}.items():
        token = settings.get(f"{kind}_token")
        if token:
            add(ids[token["content"] if isinstance(token, dict) else token])


def write(folder: Path, path: Path, kind=lambda name: "F16", pre: str = "gpt-2", change=lambda writer: None) -> None:
    """Write the checkpoint in a folder as a GGUF file.

    Args:
        kind: type of ggml of a matrix by its name in GGUF; vectors are F32.
        pre: the splitting of texts that the file names.
        change: called with the writer before the tensors, to add or replace metadata.
    """
    config = json.loads((folder / "config.json").read_text())
    family, draw = config["model_type"], np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    tokens(writer, folder, pre)
    change(writer)
    for name, value in load_file(folder / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", stem)
        new = f"blk.{layer[1]}.{NAMES[layer[2]]}.{end}" if layer else f"{NAMES[stem]}.{end}"
        data = value.float().numpy()
        if family == "llama" and (part := re.search(r"attn_([qk])\.", new)):
            data = apart(data, config["num_attention_heads" if part[1] == "q" else "num_key_value_heads"])
        stored = kind(new) if data.ndim > 1 else "F32"
        number = gguf.GGMLQuantizationType[stored]
        raw = blocks(data.shape, stored, draw) if stored in BLOCKS else quantize(data, number)
        writer.add_tensor(new, raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model(folder: Path, tokenizer: Path, family: str, **values) -> Path:
    """Write a small random model with the tokenizer of another folder; return the folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    shape = {
        "vocab_size": 12288,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    config = AutoConfig.for_model(family, **(shape | values))
    AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder
