"""Gradient checkpointing: the backward pass recomputes each layer from its input (Chen et al., 2016, arXiv:1604.06174).
The inputs stay on the device or, offloaded, wait in main memory.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from quantune.finetunings import Finetuning

SMALLEST = 2**20
"""Bytes of a tensor from which on it is offloaded."""


def enable(model: torch.nn.Module, recipe: Finetuning) -> None:
    """Let the backward pass recompute the layers, if the recipe says so."""
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def saving(model: torch.nn.Module, recipe: Finetuning) -> AbstractContextManager:
    """Return the context of a forward pass whose layer inputs are kept as the recipe says."""
    away = recipe.gradient_checkpointing == "offload" and model.device.type == "cuda"
    return Offloaded() if away else nullcontext()


class Offloaded(saved_tensors_hooks):
    """Tensors that a forward pass saves wait in main memory for the backward pass; parameters stay.

    Several layers may save the same tensor, such as a decoder's the encoder output: it is copied once.
    """

    def __init__(self, smallest: int = SMALLEST):
        self.smallest = smallest
        self.copies: dict[int, tuple[StorageWeakRef, tuple, torch.Tensor]] = {}  # storage -> its last copy
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor):
        parameter = isinstance(tensor, torch.nn.Parameter) or (tensor.is_leaf and tensor.requires_grad)
        if parameter or tensor.nbytes < self.smallest:
            return tensor
        storage = tensor.untyped_storage()
        view = tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor._version
        weak, known, copy = self.copies.get(storage._cdata, (None, None, None))
        if weak is None or weak.expired() or known != view:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copy.copy_(tensor, non_blocking=True)  # work on the device is in order: it is copied before it is freed
            self.copies[storage._cdata] = StorageWeakRef(storage), view, copy
        return tensor.device, copy

    def _unpack(self, packed):
        if isinstance(packed, torch.Tensor):
            return packed
        device, copy = packed
        return copy.to(device, non_blocking=True)
