"""Read and write safetensors files tensor by tensor: memory holds one tensor at a time."""

import json
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

from quantune.models import stored

STORED_AS = {dtype: name for name, dtype in stored.DTYPES.items()}
"""dtype of torch -> data type of safetensors."""
PIECE = 16 * 2**20  # bytes that are copied at once


def write(path: Path, tensors: dict[str, tuple[str, Iterable[int]]], content: Callable[[str], Iterable[Any]]) -> None:
    """Write a safetensors file. The same tensors give the same bytes, in any order of the dictionary.

    Args:
        path: the file, replaced.
        tensors: name -> data type of safetensors, shape.
        content: returns the pieces of bytes (objects with a buffer) of a tensor by its name; called once for each.
    """
    ordered = sorted(tensors, key=lambda name: (-stored.BITS[tensors[name][0]], name))  # keeps values aligned
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in ordered:
        (dtype, shape), begin = tensors[name], end
        end += prod(shape) * stored.BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            for piece in content(name):
                file.write(piece)


def index(folder: Path, files: dict[str, Iterable[str]]) -> None:
    """Write the index of the shards in a folder; `files` is file -> names of its tensors."""
    places = {name: file for file, names in files.items() for name in names}
    headers = [stored.header(folder / file) for file in files]
    size = sum(tensor.end - tensor.begin for header in headers for tensor in header.values())
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / stored.INDEX).write_text(json.dumps(content, indent=2) + "\n")


def pieces(tensor: stored.StoredTensor) -> Iterable[bytes]:
    """Yield the bytes of a stored tensor, piece by piece."""
    with tensor.file.open("rb") as opened:
        opened.seek(tensor.begin)
        while left := tensor.end - opened.tell():
            yield opened.read(min(left, PIECE))


def array(tensor) -> Any:
    """Return the bytes of a torch tensor's values in order; they are copied only if the tensor is a view of another."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def values(tensor: stored.StoredTensor) -> Any:
    """Read a stored tensor; return a torch tensor."""
    import torch

    content = bytearray().join(pieces(tensor))
    return torch.frombuffer(content, dtype=getattr(torch, stored.DTYPES[tensor.dtype])).view(tensor.shape)
