"""Convert a GGUF file into a checkpoint in Hugging Face layout, tensor by tensor.

F32, F16 and BF16 keep their values. Blocks are dequantized in float32 by the library `gguf` (llama.cpp's own Python
package) and rounded once to float16, by at most one part in 2,048. llama.cpp stores the queries and keys of Llama
with the two halves of each head interleaved; here they are apart again, as transformers expects.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

from quantune.core import hardware
from quantune.core.errors import QuantuneError, listed
from quantune.models import stored, tensor_files
from quantune.models.foreign import gguf_config, gguf_files, gguf_tokenizer
from quantune.models.foreign.gguf_files import Header, Tensor

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Part of a tensor's name in GGUF -> its name in transformers, outside and inside of layers."""
ROWS = 2**22  # values that are dequantized at once
STORED_AS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
"""Type of ggml -> data type of safetensors; all others become F16."""


def convert(path: Path, folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """Write config.json, the tokenizer and the weights of a GGUF file into an empty folder.

    Returns:
        The written files, and facts for the provenance: types of the tensors, version of the library.

    Raises:
        QuantuneError: if the model or its tokenizer is not supported, or the file is damaged.
    """
    header = gguf_files.read(path, texts=True)
    factors = header.tensors.get(gguf_config.FACTORS)
    config = gguf_config.config(header, gguf_files.raw(path, factors) if factors else None)
    (folder / stored.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    gguf_tokenizer.write(header, folder)
    names = {_name(header, name): name for name in header.tensors if name != gguf_config.FACTORS}
    _require_shapes(header, config)
    described = {new: _described(header.tensors[name]) for new, name in names.items()}
    tensor_files.write(folder / stored.SINGLE, described, lambda new: _content(path, header, names[new], config))
    kinds = Counter(tensor.kind for tensor in header.tensors.values())
    facts = {"types": dict(sorted(kinds.items())), "gguf": hardware.version("gguf"), "dtype": config["dtype"]}
    return sorted(folder.iterdir()), {"dequantized": facts}


def _name(header: Header, name: str) -> str:
    """Return a tensor's name in transformers; raises QuantuneError if the architecture has none."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    outside = re.fullmatch(r"(\w+)\.(weight|bias)", name)
    if layer and layer[2] in INSIDE:
        return f"model.layers.{layer[1]}.{INSIDE[layer[2]]}.{layer[3]}"
    if outside and outside[1] in OUTSIDE:
        return f"{OUTSIDE[outside[1]]}.{outside[2]}"
    family = header.metadata["general.architecture"]
    raise QuantuneError(f"{header.name}: holds '{name:.90}', which no model of type {family} has; {gguf_config.REMEDY}")


def _require_shapes(header: Header, config: dict[str, Any]) -> None:
    """Raise QuantuneError if a tensor's shape does not allow to read it; transformers compares all others."""
    for name, tensor in header.tensors.items():
        order = _order(name, config)
        if order is not None and tensor.shape[0] != len(order):
            allowed = f"{len(order)} rows, as the heads in the metadata have"
        elif len(tensor.shape) > 2 or (len(tensor.shape) == 1 and tensor.kind not in STORED_AS):
            allowed = f"a matrix, or a vector of {listed(STORED_AS)}"
        else:
            continue
        shape = f"{tensor.kind} {list(tensor.shape)}"
        raise QuantuneError(f"{header.name}: '{name}' is {shape}; allowed: {allowed}; {gguf_config.REMEDY}")


def _described(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    """Return the data type of safetensors and the shape of the dense tensor."""
    return STORED_AS.get(tensor.kind, "F16"), tensor.shape


def _content(path: Path, header: Header, name: str, config: dict[str, Any]) -> Iterable[Any]:
    """Yield the bytes of a dense tensor, some rows at a time."""
    tensor = header.tensors[name]
    order = _order(name, config) if config["model_type"] in ("llama", "mistral") else None
    width = (tensor.end - tensor.begin) // tensor.shape[0]
    data = np.memmap(path, np.uint8, "r", tensor.begin, (tensor.shape[0], width))
    step = max(1, ROWS // max(1, int(np.prod(tensor.shape[1:]))))
    for begin in range(0, tensor.shape[0], step):
        rows = slice(begin, begin + step) if order is None else order[begin : begin + step]
        part = np.ascontiguousarray(data[rows])
        if tensor.kind in STORED_AS:
            yield part
            continue
        dense = dequantize(part, gguf.GGMLQuantizationType[tensor.kind])
        with np.errstate(over="ignore"):
            yield dense.astype(np.float16)  # infinite above 65,504: the job refuses such weights


def _order(name: str, config: dict[str, Any]) -> np.ndarray | None:
    """Return the row in the file of each row of Llama's queries and keys; None for other tensors.

    llama.cpp's rotary embedding turns neighbouring values, that of transformers values half a head apart.
    """
    part = re.search(r"\.attn_([qk])\.", name)
    if not part:
        return None
    heads, size = config["num_attention_heads" if part[1] == "q" else "num_key_value_heads"], config["head_dim"]
    return np.arange(heads * size).reshape(heads, size // 2, 2).swapaxes(1, 2).reshape(-1)
