"""The base of methods with uniform integer grids: the recipe of the grid, and packed checkpoints.

Checkpoints are in the `pack-quantized` format of compressed-tensors, which transformers and vLLM load.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

from quantune.quantizations import Quantization
from quantune.quantizations.selection import (
    Bits,
    GroupSize,
    Override,
    Pattern,
    groups_that_fit,
    largest_group,
    matches,
    unmatched,
)


class Packed(Quantization):
    """Uniform integer grids, packed into 32-bit words in compressed-tensors' `pack-quantized` format."""

    neutral: ClassVar[frozenset[str]] = frozenset({"overrides", "ignore", "output_embedding"})

    bits: Bits = 4
    """Bits per weight."""
    group_size: GroupSize = 128
    """Neighbouring inputs of a row that share one scale; null: one scale for each whole row (per channel); auto: the
    largest of 128, 64, 32 … 4 that divides the widths of all layers."""
    symmetric: bool = True
    """Grid symmetric around zero (no zero points stored); false: fitted to the group's minimum and maximum."""
    overrides: dict[Pattern, Override] = {}
    """Pattern of layer names -> `bits`, `group_size` or `symmetric` of these layers, such as `fc2: {bits: 8}`. A
    pattern (`*`, `?`) is a full name or its end after a dot; of several that match, the later win, key by key."""
    ignore: list[Pattern] = []
    """Patterns of the layers that stay dense."""
    output_embedding: bool = False
    """Quantize the output embedding (`lm_head`), too, to the nearest; one that shares its weights with the input
    embedding gets weights of its own, and the input embedding stays dense."""

    @property
    def grid(self):
        """The kind of grid."""
        from quantune.quantizations.arithmetic.grids import Grid

        return Grid(self.bits, self.group_size, self.symmetric)

    def grid_of(self, name: str):
        """Return the kind of grid of one layer, by its full name; None: it stays dense."""
        own = self.of_layer(name)
        return own and own.grid

    def quantizes_head(self) -> bool:
        """Return whether the output embedding is quantized."""
        return self.output_embedding

    def of_layer(self, name: str) -> Self | None:
        """Return the recipe of one layer, by its full name; None: it stays dense."""
        if name not in self._known:
            self._known[name] = self._of_layer(name)
        return self._known[name]

    @cached_property
    def _known(self) -> dict[str, Self | None]:
        return {}

    def _of_layer(self, name: str) -> Self | None:
        if any(matches(pattern, name) for pattern in self.ignore):
            return None
        keys: dict[str, Any] = {}
        for pattern, override in self.overrides.items():
            keys |= override.given() if matches(pattern, name) else {}
        return self._with(overrides={}, **keys) if keys else self

    def _with(self, **keys: Any) -> Self:
        """Return a copy with other values."""
        copy = self.model_copy(update=keys)
        copy.__dict__.pop("_known", None)
        return copy

    def resolved(self, layers: Mapping[str, tuple[int, int]]) -> Self:
        """Return the recipe with numbers in place of `auto`.

        Args:
            layers: full name -> (outputs, inputs) of the layers that can be quantized.
        """
        chosen = {name: self.of_layer(name) for name in layers}
        automatic = {layers[name][1] for name, own in chosen.items() if own and own.group_size == "auto"}
        if not automatic:
            return self
        size, overrides = largest_group(automatic), {}
        for pattern, override in self.overrides.items():
            keys = override.given()
            overrides[pattern] = Override(**keys | ({"group_size": size} if keys.get("group_size") == "auto" else {}))
        return self._with(group_size=size if self.group_size == "auto" else self.group_size, overrides=overrides)

    def chosen(self, layers: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        """Return the facts of the recipe that depend on the model: the group size that `auto` took."""
        own = self.resolved(layers)
        return {"group_size": own.group_size} if self.group_size == "auto" else {}

    def usual_error(self) -> float:
        """Return the limit of the usual error of the layers with the fewest bits; it grows as bits become fewer."""
        fewest = min([self.bits, *(override.bits for override in self.overrides.values() if override.bits)])
        return {2: 0.75, 3: 0.45, 4: 0.3, 5: 0.15, 6: 0.08, 8: 0.03}[fewest]

    def misfit(self, widths: set[int]) -> str | None:
        """Return why groups do not fit, or None: the group size must divide the width of every row."""
        fits, size = groups_that_fit(widths), self.group_size
        if size == "auto":
            bad = sorted(width for width in widths if largest_group({width}) is None)
            return f".group_size: no group fits the layers' input width {bad[0]}; allowed: null" if bad else None
        bad = sorted(width for width in widths if size and width % size)
        if not bad:
            return None
        close = min(fits, key=lambda fit: (abs(fit - size), fit), default=None)
        advice = f"the nearest that fits is {close} ('auto' takes {largest_group(widths)}); " if close else ""
        return f".group_size: {size} does not divide the layers' input width {bad[0]}; {advice}allowed: {fits} or null"

    def mismatch(self, layers: Mapping[str, tuple[int, int]], head: str | None = None) -> str | None:
        """Return why patterns or groups do not fit the layers of a model, or None."""
        patterns = dict.fromkeys(self.overrides, "overrides") | dict.fromkeys(self.ignore, "ignore")
        if problem := unmatched(patterns, list(layers), None if self.output_embedding else head):
            return problem
        widths: dict[Any, set[int]] = {}
        for name, (_, columns) in layers.items():
            own = self.of_layer(name)
            widths.setdefault(own and own.group_size, set()).add(columns)
        if not {name for name in layers if self.of_layer(name)}:
            return ".ignore: it leaves every layer dense"
        found = (self._with(group_size=size).misfit(widths[size]) for size in widths)
        return next((problem for problem in found if problem), None)

    def stored_bits(self, rows: int, columns: int) -> int:
        """Codes, scales of 16 bits and zero points, without the padding of the last words."""
        groups = rows * (columns // self.group_size if self.group_size else 1)
        return rows * columns * self.bits + groups * (16 + (0 if self.symmetric else self.bits))

    def layer_tensors(self, rows: int, columns: int) -> dict[str, tuple[str | None, list[int]]]:
        """Packed words, one scale for each group, and packed zero points if the grid is not symmetric."""
        groups = columns // self.group_size if self.group_size else 1
        tensors = {
            "weight_packed": ("int32", [rows, -(-columns * self.bits // 32)]),
            "weight_scale": (None, [rows, groups]),
        }
        if not self.symmetric:
            tensors["weight_zero_point"] = ("int32", [-(-rows * self.bits // 32), groups])
        return tensors
