"""Calibration data: token blocks or clips, drawn with a seed and hashed. Too few samples give a warning."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from quantune.core import units
from quantune.core.recipe import LONGEST
from quantune.core.workload import Calibration
from quantune.quantizations import Quantization
from quantune.quantizations.packed import Packed

if TYPE_CHECKING:
    from quantune.data.batches import Data
    from quantune.data.draws import Sequences

FEW = 128  # samples below which calibration is known to become unreliable (GPTQ and AWQ papers use 128 or more)


class Sampled(Quantization):
    """A method with calibration data: its dataset, split, number and length of samples."""

    neutral: ClassVar[frozenset[str]] = frozenset({"draw"})

    dataset: str
    """Name of the dataset to calibrate on; best similar to the text or speech that the model will read."""
    split: str = "train"
    """Its split."""
    samples: int = Field(default=128, gt=0, le=1_000_000)
    """Blocks of tokens, or clips; fewer than 128 give a warning."""
    length: int = Field(default=512, gt=1, le=LONGEST)
    """Tokens in one block (2048 in the GPTQ paper). Speech has the length of its transcripts."""
    draw: Literal["blocks", "windows", "long-documents", "short-documents", "documents"] = "blocks"
    """How samples of text are drawn. blocks: documents are joined by the end-of-text token and cut. windows: they are
    joined, and taken at random places, so that samples may overlap (optimum on WikiText-2). long-documents: one random
    window from each of `samples` documents of at least `length` tokens (GPTQ and AutoGPTQ on C4). short-documents:
    `samples` documents of at most `length` tokens are joined and cut (AutoAWQ). documents: each document is a sample,
    its rest after `length` tokens left out (a list of texts in AutoGPTQ)."""

    def probe(self, parent: Path, data: Path | None, seed: int) -> tuple[str, list[dict[str, Any]]]:
        """Return a name and the first calibration samples as a model's inputs."""
        from quantune.quantizations.arithmetic.quality import calibration_inputs

        drawn, chosen, _ = samples(self, data, seed, parent)
        return calibration_inputs(drawn, chosen)


class Calibrated(Sampled, Packed):
    """A method with integer grids that are fitted to calibration data."""

    neutral: ClassVar[frozenset[str]] = Packed.neutral | Sampled.neutral
    requantized: ClassVar[bool]
    """Whether each layer is calibrated on the outputs of the quantized layers before it, or on the original ones."""

    @property
    def sequential(self) -> bool:
        """Whether the linear layers of a layer are calibrated one after another, on inputs that the others changed."""
        return False

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Quantize layer by layer; the facts hold the relative output error of each linear layer, from rounding."""
        from quantune.models import checkpoints, loading, offloading
        from quantune.quantizations.arithmetic import layerwise
        from quantune.quantizations.formats import pack_quantized

        layers = checkpoints.linear_layers(parent, self.output_embedding)
        chosen = self.chosen(layers, parent, data, seed)
        recipe = self.resolved(layers, chosen)
        batches, facts = draw(recipe, data, seed, parent)
        model = layerwise.load(parent)
        grids, errors, stored = {}, {}, loading.stored_dtype(parent)

        def pack(name, layer):
            for part in [part for part in grids if part.startswith(f"{name}.")]:
                linear = layer.get_submodule(part.removeprefix(f"{name}."))
                pack_quantized.pack(linear, grids.pop(part), recipe.of_layer(part).grid, stored)
            offloading.move(layer.modules(), "cpu", stored)

        transform, visit = recipe.visitors(model, grids, errors)
        layerwise.stream(model, batches, visit, recipe.requantized, pack, recipe.sequential, transform)
        pack_quantized.save(model, recipe, parent, folder)
        return {"calibration": facts, "output_errors": errors} | chosen

    def visitors(self, model, grids: dict, errors: dict):
        """Return the function that transforms a decoder layer, or None, and the function that rounds it.

        Both take the layer's name, the layer, and its linear layers grouped by input (`layerwise.Inputs`). The second
        fills `grids` and `errors`, by linear layer.
        """
        from quantune.quantizations.arithmetic.grids import output_error

        scales: dict[str, Any] = {}

        def transform(name, layer, inputs):
            scales.update(self.rescale(model, name, layer, inputs))

        def visit(name, layer, inputs):
            for group in inputs:
                scale = scales.get(next(iter(group.layers)))
                gram = group.gram if scale is None else group.gram / scale / scale[:, None]
                for part, fitted in self._fit_each(group.layers, gram):
                    weight = group.layers[part].weight
                    grids[part], errors[part] = fitted, output_error(fitted.weight, weight.data, gram)
                    if self.requantized:
                        weight.data = fitted.weight.to(weight.dtype)
            scales.clear()

        return transform if self.rescales else None, visit

    def _fit_each(self, layers: dict[str, Any], gram) -> Iterator[tuple[str, Any]]:
        """Round linear layers that read the same input, those of one recipe together; yield name and `grids.Fitted`."""
        recipes: dict[tuple | None, tuple[Any, dict[str, Any]]] = {}
        for part, layer in layers.items():
            own = self.of_layer(part)
            kind = None if own is None else (own.bits, own.group_size, own.symmetric)
            recipes.setdefault(kind, (own, {}))[1][part] = layer
        for own, alike in recipes.values():
            if own is not None:
                yield from own.fit(alike, gram).items()

    def _damages(
        self, free: list[list[str]], widths: list[int], parent: Path, inputs: list[dict], data: Path | None, seed: int
    ) -> list[dict[int, float]]:
        """Return the damage of each unit of layers at each width, rounded on the statistics of the original model."""
        from quantune.quantizations.arithmetic import sensitivity

        batches, _ = draw(self, data, seed, parent)
        fewest = min(widths)  # the scales are chosen for the layers that lose most
        rescale = self._with(bits=fewest, overrides=self._same_bits(fewest)).rescale if self.rescales else None
        return sensitivity.calibrated(parent, inputs, free, widths, self._fits, batches, rescale)

    def _fits(self, layers: dict[str, Any], gram, bits: int) -> dict[str, Any]:
        """Return full name -> weights rounded by the method with this width; to the nearest without statistics."""
        if gram is None:
            return super()._fits(layers, gram, bits)
        widened = self._with(bits=bits, overrides=self._same_bits(bits))
        return {name: fitted.weight for name, fitted in widened._fit_each(layers, gram)}

    def _same_bits(self, bits: int) -> dict[str, Any]:
        """Return the overrides, with this width in place of theirs."""
        return {key: type(item)(**item.given() | {"bits": bits}) for key, item in self.overrides.items()}

    def rescale(self, model, name: str, layer, inputs: list) -> dict[str, Any]:
        """Rescale a decoder layer in place before rounding, without changing its function; for methods that `rescales`.

        Returns:
            Full name of a linear layer -> the factors of its input channels, (columns,).
        """
        raise NotImplementedError

    def fit(self, layers: dict[str, Any], gram) -> dict[str, Any]:
        """Round linear layers that read the same input; return name -> `grids.Fitted`.

        Args:
            layers: full name -> linear layer.
            gram: mean of x xᵀ over the tokens of their input, (columns, columns), float32.
        """
        raise NotImplementedError

    def workload(self) -> Calibration:
        """Return the workload of calibration, for estimates of memory."""
        return Calibration(self.samples, self.length, self.group_size, self.requantized, self.solver_bytes)

    def solver_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes that fitting the grids of a matrix (outputs, inputs) needs, without its Gram matrix."""
        raise NotImplementedError


def samples(recipe: Sampled, data: Path, seed: int, checkpoint: Path) -> "tuple[Data | Sequences, list[int], int]":
    """Return the data that samples are drawn from, the numbers of the chosen samples, and how many documents, blocks or
    clips were drawn. The arguments are those of `draw`.
    """
    from quantune.data import draws, examples, text
    from quantune.models import loading
    from quantune.sources.draw import order

    if recipe.draw != "blocks":
        text.require_length(loading.config(checkpoint), recipe.length)
        tokenizer = loading.tokenizer(checkpoint)
        drawn = draws.draw(data, recipe.split, tokenizer, recipe.draw, recipe.samples, recipe.length, seed)
        return drawn, list(range(len(drawn))), drawn.documents
    drawn = examples.read(data, recipe.split, checkpoint, recipe.length)
    chosen = order(len(drawn), seed)[: recipe.samples]
    return drawn, chosen, len(chosen)


def draw(recipe: Sampled, data: Path, seed: int, checkpoint: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Draw the calibration samples: blocks or documents of text, or clips with their transcripts.

    Args:
        recipe: its split, the draw, and the number and length of samples.
        data: the prepared dataset.
        seed: of the draw.
        checkpoint: the folder of the model to calibrate, which reads the samples.

    Returns:
        Batches of the model's inputs, without padding, and facts for the provenance: SHA-256 of the samples, counts,
        warnings.
    """
    drawn, chosen, count = samples(recipe, data, seed, checkpoint)
    warnings = []
    if count < recipe.samples:
        held = f"'{recipe.dataset}', split '{recipe.split}', holds {count} {drawn.unit}"
        warnings.append(f"{held}, not the {recipe.samples} requested")
    if (few := min(count, len(chosen))) < FEW:
        warnings.append(f"calibrated on {units.plural(few, 'sample')}; fewer than {FEW} can harm the model")
    for warning in warnings:
        print(f"WARNING: {warning}", flush=True)
    digest = hashlib.sha256()
    for number in chosen:
        digest.update(drawn.content(number))
    facts = {"sha256": digest.hexdigest(), "samples": count, "tokens": drawn.tokens(chosen), "warnings": warnings}
    return list(drawn.inputs(chosen)), facts
