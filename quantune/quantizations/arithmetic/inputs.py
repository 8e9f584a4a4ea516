"""Statistics of the inputs of linear layers, collected by hooks while a decoder layer computes."""

import weakref
from collections import defaultdict
from dataclasses import dataclass

import torch


@dataclass
class Inputs:
    """Linear layers of one decoder layer that read the same input, and statistics of that input."""

    layers: dict[str, torch.nn.Linear]
    """Full name -> layer."""
    gram: torch.Tensor
    """Mean over tokens of x xᵀ, (columns, columns), float32."""
    magnitude: torch.Tensor
    """Mean over tokens of |x|, (columns,), float32."""


class Collector:
    """Hooks that sum the statistics of the inputs of a layer's linear layers, or of some of them by full name."""

    def __init__(self, name: str, layer: torch.nn.Module, chosen: set[str] | None = None):
        linears = {f"{name}.{part}": item for part, item in layer.named_modules() if isinstance(item, torch.nn.Linear)}
        self.linears = {part: item for part, item in linears.items() if chosen is None or part in chosen}
        self.leader: dict[str, str] = {}
        self.sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.rows: dict[str, int] = defaultdict(int)
        self.seen: list[tuple[weakref.ref, int, str]] = []
        self.hooks = [item.register_forward_pre_hook(self._hook(part)) for part, item in self.linears.items()]

    def _hook(self, part: str):
        def collect(_, args):
            states = args[0]
            # query, key and value read the same tensor; with parallel attention, so do layers that are called later
            if self.leader.get(part, part) != part:
                return
            if part not in self.leader:
                self.leader[part] = self._reader(states) or part
                if self.leader[part] != part:
                    return
                self.seen.append((weakref.ref(states), states._version, part))
            self.add(part, states.reshape(-1, states.shape[-1]))

        return collect

    def add(self, part: str, rows: torch.Tensor) -> None:
        """Add an input of the linear layer `part`, (tokens, columns), to its statistics."""
        self.rows[part] += len(rows)
        gram, magnitude = _gram(rows), rows.abs().sum(0, dtype=torch.float32)
        if part in self.sums:
            self.sums[part][0].add_(gram)
            self.sums[part][1].add_(magnitude)
        else:
            self.sums[part] = (gram, magnitude)

    def group(self, leader: str, layers: dict[str, torch.nn.Linear]):
        """Return the statistics of layers that read the same input; `leader` is the first of them."""
        gram, magnitude = self.sums.pop(leader)
        return Inputs(layers, gram.div_(self.rows[leader]), magnitude.div_(self.rows[leader]))

    def _reader(self, states: torch.Tensor) -> str | None:
        """Return the first linear layer that read this same, unchanged tensor, or None."""
        alike = (part for read, version, part in self.seen if read() is states and version == states._version)
        return next(alike, None)

    def finish(self) -> list[Inputs]:
        """Remove the hooks; return the groups with their means."""
        for hook in self.hooks:
            hook.remove()
        self.seen.clear()
        members: dict[str, dict] = {leader: {} for leader in self.sums}
        for part, leader in self.leader.items():
            members[leader][part] = self.linears[part]
        return [self.group(leader, layers) for leader, layers in members.items()]


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """Return rowsᵀ rows in float32; TF32, which is exact for 16-bit values, is used only for them."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = rows.dtype in (torch.float16, torch.bfloat16)
    try:
        return rows.float().T @ rows.float()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
