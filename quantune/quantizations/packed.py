"""The base of methods with uniform integer grids: the recipe of the grid, and packed checkpoints.

Checkpoints are in the `pack-quantized` format of compressed-tensors, which transformers and vLLM load.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import field_serializer, field_validator

from quantune.core.errors import listed
from quantune.quantizations import Quantization
from quantune.quantizations.budget import Budget, choose, units
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

SERVED_BITS, SERVED_GROUPS = (4, 8), (32, 64, 128, None)
"""Bits and group sizes for which vLLM has a kernel."""


class Packed(Quantization):
    """Uniform integer grids, packed into 32-bit words in compressed-tensors' `pack-quantized` format."""

    neutral: ClassVar[frozenset[str]] = frozenset({"overrides", "ignore", "output_embedding", "budget"})

    bits: Bits = 4
    """Bits per weight."""
    group_size: GroupSize = 128
    """Neighbouring inputs of a row that share one scale; null: one scale for each whole row (per channel); auto: the
    largest of 128, 64, 32 … 4 that divides the widths of all layers."""
    symmetric: bool = True
    """Grid symmetric around zero (no zero points stored); false: fitted to the group's minimum and maximum."""
    overrides: dict[Pattern, Override] = {}
    """Pattern of layer names -> `bits`, `group_size` or `symmetric` of these layers, such as `fc2: {bits: 8}`. A
    pattern (`*`, `?`) is a full name or its end after a dot; where several match, later ones override earlier ones, key
    by key."""
    ignore: list[Pattern] = []
    """Patterns of the layers that stay dense."""
    output_embedding: bool = False
    """Quantize the output embedding (`lm_head`), too, to the nearest; one that shares its weights with the input
    embedding gets weights of its own, and the input embedding stays dense."""
    budget: Budget | None = None
    """Measure the damage of each layer at each of several widths, and choose the widths of least damage within a number
    of bytes. `bits` is not used then; layers that an override gives `bits` keep them."""

    @field_validator("overrides", mode="before")
    @classmethod
    def _in_order(cls, raw: Any) -> Any:
        """Read overrides that were written as pairs."""
        pairs = isinstance(raw, list) and all(isinstance(item, list) and len(item) == 2 for item in raw)
        return {str(pattern): keys for pattern, keys in raw} if pairs else raw

    @field_serializer("overrides")
    def _as_pairs(self, overrides: dict[str, Override]) -> list[list[Any]]:
        """Return pairs, because the order counts, and JSON with sorted keys would lose it."""
        return [[pattern, override.model_dump()] for pattern, override in overrides.items()]

    @property
    def grid(self):
        """The kind of grid."""
        from quantune.quantizations.arithmetic.grids import Grid

        return Grid(self.bits, self.group_size, self.symmetric)

    def grid_of(self, name: str):
        """Return the kind of grid of one layer, by its full name; None: it stays dense."""
        own = self.of_layer(name)
        return own and own.grid

    def rounded(self, weight, gram=None):
        """Return the `grids.Fitted` of a matrix that no calibration reaches: rounded to nearest."""
        from quantune.quantizations.arithmetic.grids import fit

        return fit(weight, self.grid)

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

    def resolved(self, layers: Mapping[str, tuple[int, int]], facts: Mapping[str, Any] | None = None) -> Self:
        """Return the recipe with numbers in place of `auto`, and with the bits that were chosen within the budget.

        Args:
            layers: full name -> (outputs, inputs) of the layers that can be quantized.
            facts: what `chosen` returned; None: for estimates, all layers get the fewest bits that use up the budget.
        """
        if self.budget:
            return self._within_budget(layers, facts)
        chosen = {name: self.of_layer(name) for name in layers}
        automatic = {layers[name][1] for name, own in chosen.items() if own and own.group_size == "auto"}
        if not automatic:
            return self._with(group_size=None) if self.group_size == "auto" else self  # no layer uses it
        size, overrides = largest_group(automatic), {}
        for pattern, override in self.overrides.items():
            keys = override.given()
            overrides[pattern] = Override(**keys | ({"group_size": size} if keys.get("group_size") == "auto" else {}))
        return self._with(group_size=size if self.group_size == "auto" else self.group_size, overrides=overrides)

    def chosen(
        self, layers: Mapping[str, tuple[int, int]], parent: Path, data: Path | None, seed: int
    ) -> dict[str, Any]:
        """Return the choices that depend on the model, as facts: the group size that `auto` took; with a budget, the
        bits of each layer and the damages that they follow from.

        Args:
            layers: full name -> (outputs, inputs) of the layers that can be quantized.
            parent: the checkpoint.
            data: the prepared calibration set, if the method has one.
            seed: of the draw of samples.
        """
        facts = {"group_size": self.resolved(layers).group_size} if self.group_size == "auto" else {}
        if not self.budget:
            return facts
        recipe = self._with(budget=None).resolved(layers)
        free = units([name for name in layers if self._is_free(name)])
        source, inputs = self.probe(parent, data, seed)
        damages = recipe._damages(free, sorted(self.budget.choices), parent, inputs, data, seed)
        sizes = [{bits: self._size(recipe, layers, names, bits) for bits in self.budget.choices} for names in free]
        fixed = self._size(recipe, layers, [name for name in layers if not self._is_free(name)])
        weights = sum(rows * columns for name, (rows, columns) in layers.items() if recipe.of_layer(name))
        widths = choose(damages, sizes, self.budget.limit(weights) - fixed)
        bits = {name: width for names, width in zip(free, widths, strict=True) for name in names}
        return facts | {
            "bits_of_layers": bits,
            "damage_of_layers": {", ".join(names): damage for names, damage in zip(free, damages, strict=True)},
            "damage_measured_on": source,
        }

    def _damages(
        self, free: list[list[str]], widths: list[int], parent: Path, inputs: list[dict], data: Path | None, seed: int
    ) -> list[dict[int, float]]:
        """Return the damage of each unit of layers at each width; see `arithmetic.sensitivity`."""
        from quantune.quantizations.arithmetic import sensitivity

        return sensitivity.nearest(parent, inputs, free, widths, self._fits)

    def _fits(self, layers: dict[str, Any], gram, bits: int) -> dict[str, Any]:
        """Return full name -> weights rounded to the nearest points of grids with this width."""
        from quantune.models.loading import device
        from quantune.quantizations.arithmetic.grids import fit

        grids = {name: own._with(bits=bits).grid for name in layers if (own := self.of_layer(name))}
        return {name: fit(layers[name].weight.data.to(device()).float(), grid).weight for name, grid in grids.items()}

    def _is_free(self, name: str) -> bool:
        """Return whether the budget chooses the bits of a layer: it is quantized, and no override gives its bits."""
        given = any(item.bits for pattern, item in self.overrides.items() if matches(pattern, name))
        return self.of_layer(name) is not None and not given

    def _size(self, recipe: Self, layers: Mapping, names: Iterable[str], bits: int | None = None) -> int:
        """Return the bits that layers take, all of them with this width, or each with its own."""
        own = {name: item for name in names if (item := recipe.of_layer(name))}
        return sum((item._with(bits=bits) if bits else item).stored_bits(*layers[name]) for name, item in own.items())

    def _within_budget(self, layers: Mapping, facts: Mapping[str, Any] | None) -> Self:
        recipe = self._with(budget=None).resolved(layers)
        if facts:
            given = {name: item.given() for name, item in recipe.overrides.items()}
            chosen = {
                name: Override(**given.get(name, {}) | {"bits": bits}) for name, bits in facts["bits_of_layers"].items()
            }
            return recipe._with(overrides=recipe.overrides | chosen)
        weights = sum(rows * columns for name, (rows, columns) in layers.items() if recipe.of_layer(name))
        sizes = {bits: self._size(recipe._with(bits=bits), layers, layers) for bits in sorted(self.budget.choices)}
        enough = (bits for bits, size in sizes.items() if size >= self.budget.limit(weights))
        return recipe._with(bits=next(enough, max(sizes)))

    def usual_error(self) -> float:
        """Return the limit of the usual error of the layers with the fewest bits; it grows as bits become fewer."""
        widths = [override.bits for override in self.overrides.values() if override.bits]
        fewest = min([*widths, *(self.budget.choices if self.budget else [self.bits])])
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
        problems = (self._with(group_size=size).misfit(widths[size]) for size in widths)
        return next((problem for problem in problems if problem), None) or self._too_small(layers)

    def _too_small(self, layers: Mapping[str, tuple[int, int]]) -> str | None:
        """Return why the budget is below the size at the fewest bits, or None."""
        if not self.budget:
            return None
        recipe = self._with(budget=None, bits=min(self.budget.choices)).resolved(layers)
        least = self._size(recipe, layers, layers)
        weights = sum(rows * columns for name, (rows, columns) in layers.items() if recipe.of_layer(name))
        if least <= self.budget.limit(weights):
            return None
        allowed = f"at least {-(-least // 8)} bytes, or {math.ceil(1000 * least / weights) / 1000:g} bits per weight"
        return f".budget: {recipe.bits} bits for every layer need more; allowed: {allowed}"

    def unservable(self, widths: set[int]) -> str | None:
        """Return why vLLM has no kernel for these grids, or None (`compressed_tensors_wNa16` and `marlin_utils`)."""
        given = [override.given() for override in self.overrides.values()]
        bits = set(self.budget.choices) if self.budget else {self.bits}
        bits |= {keys["bits"] for keys in given if keys.get("bits")}
        sizes = {self.group_size, *(keys["group_size"] for keys in given if "group_size" in keys)}
        sizes = {largest_group(widths) if size == "auto" else size for size in sizes}
        if wrong := sorted(bits - set(SERVED_BITS)):
            return f"vLLM serves {listed(SERVED_BITS)} bits, not {wrong[0]}; export 'safetensors'"
        if wrong := sorted(sizes - set(SERVED_GROUPS), key=str):
            allowed = listed(size or "null" for size in SERVED_GROUPS)
            return f"vLLM serves groups of {allowed}, not {wrong[0] or 'null'}; export 'safetensors'"
        if self.output_embedding:
            return "vLLM reads no quantized output embedding of this format; export 'safetensors'"
        return None

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
