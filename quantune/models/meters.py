"""Meters of time, memory and energy. On a GPU the device memory is metered; on a CPU it is the resident set of this
process, above its size before the model was loaded.
"""

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from quantune.core import hardware

ENERGY_SECONDS = 2.0  # a phase is repeated for this long: the driver's counter advances about ten times a second


class Memory:
    """Bytes in use, above those in use when this object was created."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.before = 0
        self.before = self.used()

    def used(self) -> int:
        """Return the bytes in use now."""
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated() - self.before
        return hardware.resident_bytes("VmRSS") - self.before

    def reset_peak(self) -> None:
        """Start a new peak."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            hardware.reset_resident_peak()

    def peak(self) -> int:
        """Return the most bytes in use since `reset_peak` (since the process started if the kernel cannot reset)."""
        return (torch.cuda.max_memory_allocated() if self.cuda else hardware.resident_bytes("VmHWM")) - self.before


class Energy:
    """The energy that a GPU used, from the counter of its driver."""

    def __init__(self, device: torch.device):
        self.handle = None
        if device.type == "cuda":
            try:
                import pynvml

                pynvml.nvmlInit()
                self.nvml = pynvml
                self.handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
                pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)
            except Exception:  # a GPU without the counter, a container without the right to read it
                self.handle = None

    def of(self, work: Callable[[], Any]) -> float | None:
        """Return the mean energy of one `work()` in joules, over some seconds; None without a driver's counter."""
        if self.handle is None:
            return None
        torch.cuda.synchronize()
        before, began, times = self._joules(), time.perf_counter(), 0
        while time.perf_counter() - began < ENERGY_SECONDS:
            work()
            torch.cuda.synchronize()
            times += 1
        return (self._joules() - before) / times

    def _joules(self) -> float:
        return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1000


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports too little memory, on the device or, for tensors, on the host."""
    on_host = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_host or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the wall time of `work()` in seconds, until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def tensor_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all tensors that a model keeps: parameters, buffers, and the quantization constants of
    bitsandbytes (which `get_memory_footprint` leaves out). Shared storage counts once.
    """
    storages = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr(), tensor.device] = storage.nbytes()
    return sum(storages.values())


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor
        for kept in vars(tensor).values():  # 4-bit parameters have quant_state, 8-bit ones CB and SCB
            yield from _kept(kept)
    for module in model.modules():
        if hasattr(module, "state") and hasattr(module.state, "SCB"):  # 8-bit layers of bitsandbytes
            yield from _kept(module.state)


def _kept(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a state of bitsandbytes, and in its nested states."""
    if isinstance(value, torch.Tensor):
        yield value
    elif type(value).__module__.startswith("bitsandbytes."):
        for kept in vars(value).values():
            yield from _kept(kept)
