"""The arithmetic of AWQ on one decoder layer, in float32 (Lin et al., 2023, arXiv:2306.00978)."""

from collections.abc import Callable

import torch
from torch.func import functional_call

from quantune.core.errors import QuantuneError
from quantune.quantizations.arithmetic.grids import Fitted, Grid, best_shrink, fit, grouped
from quantune.quantizations.arithmetic.layerwise import Inputs

ALPHAS = 20


def rescale(
    name: str,
    layer: torch.nn.Module,
    inputs: list[Inputs],
    mappings: list,
    grid_of: Callable[[str], Grid | None],
) -> dict:
    """Move the best channel scales from each mapping's layers into the operation before them, in place.

    Args:
        name: full name of the decoder layer.
        layer: the decoder layer.
        inputs: statistics of its linear layers' inputs.
        mappings: where scales can move.
        grid_of: full name of a linear layer -> the grid that it is rounded to, or None if it stays dense.

    Returns and raises what `fold` does.
    """

    def choose(weights: dict[str, torch.Tensor], group: Inputs) -> torch.Tensor | None:
        rounded: dict[Grid, list[torch.Tensor]] = {}
        for part, weight in weights.items():
            if grid := grid_of(part):
                rounded.setdefault(grid, []).append(weight)
        alike = [(torch.cat(matrices), grid) for grid, matrices in rounded.items()]
        return best_scale(alike, group) if alike else None  # layers that stay dense need no scales

    return fold(name, layer, inputs, mappings, choose)


def fold(name: str, layer: torch.nn.Module, inputs: list, mappings: list, choose: Callable) -> dict[str, torch.Tensor]:
    """Move channel scales from each mapping's layers into the operation before them, in place.

    Args:
        name: full name of the decoder layer.
        layer: the decoder layer.
        inputs: its linear layers grouped by input, with statistics.
        mappings: where scales can move.
        choose: returns the scales, (columns,), or None, from the float32 weights of a mapping's layers (by full name)
            and their group of `inputs`.

    Returns:
        Full name of a layer -> the scale of its input channels, (columns,); layers without a mapping are left out.

    Raises:
        QuantuneError: if a mapping names a missing layer, or a norm that cannot take scales.
    """
    groups = {part.removeprefix(f"{name}."): group for group in inputs for part in group.layers}
    scales = {}
    for mapping in mappings:
        try:
            before = layer.get_submodule(mapping.before)
            group, linears = groups[mapping.layers[0]], [layer.get_submodule(part) for part in mapping.layers]
        except (AttributeError, KeyError):
            parts = ", ".join([mapping.before, *mapping.layers])
            raise QuantuneError(f"mapping: not all of {parts} are in the layer '{name}'") from None
        readers = {part.removeprefix(f"{name}.") for part in group.layers}
        if readers != set(mapping.layers):
            raise QuantuneError(
                f"mapping: the output of '{mapping.before}' is read by {', '.join(sorted(readers))};"
                " name all of them, or the model's function changes"
            )
        if before.weight.shape[0] != linears[0].in_features:
            continue  # grouped-query attention: one value channel feeds several output channels
        weights = {
            f"{name}.{part}": item.weight.data.float() for part, item in zip(mapping.layers, linears, strict=True)
        }
        if (scale := choose(weights, group)) is None:
            continue
        _move(scale, before, linears, _offset(f"{name}.{mapping.before}", before))
        scales |= {f"{name}.{part}": scale for part in mapping.layers}
    return scales


@torch.no_grad()
def _move(scale: torch.Tensor, before: torch.nn.Module, linears: list[torch.nn.Linear], offset: int) -> None:
    """Divide the outputs of `before`, which multiplies by offset + weight, by the scale, and multiply the input
    channels of `linears` by it.
    """
    divisor = scale.view(-1, *[1] * (before.weight.dim() - 1)).to(before.weight.dtype)
    before.weight.copy_((before.weight.float() + offset) / divisor.float() - offset)
    if getattr(before, "bias", None) is not None:
        before.bias.div_(scale.to(before.bias.dtype))
    for item in linears:
        item.weight.mul_(scale.to(item.weight.dtype))


@torch.no_grad()
def _offset(name: str, before: torch.nn.Module) -> int:
    """Return the number that an operation adds to its weight before the product: 0, or 1 in norms such as Gemma's."""
    if before.weight.dim() > 1:
        return 0
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(8, len(before.weight), generator=generator).to(before.weight)
    without_bias = {} if getattr(before, "bias", None) is None else {"bias": torch.zeros_like(before.bias)}
    outputs = []
    for weight in (torch.zeros_like(before.weight), torch.ones_like(before.weight)):
        outputs.append(functional_call(before, {"weight": weight, **without_bias}, states).float())
    for offset in (0, 1):
        if (outputs[0] - offset * (outputs[1] - outputs[0])).norm() <= 0.05 * outputs[1].norm():
            return offset
    raise QuantuneError(
        f"mapping: '{name}' multiplies neither by its weight nor by 1 + weight; leave it out of 'mappings'"
    )


def best_scale(weights: list[tuple[torch.Tensor, Grid]], group: Inputs) -> torch.Tensor:
    """Return the channel scales, (columns,), under which rounding matrices to their grids changes the outputs least.

    The change is ‖(Ŵ-W)X‖² = tr((Ŵ-W) XXᵀ (Ŵ-W)ᵀ): the Gram matrix replaces the inputs.
    """
    best, best_loss = torch.ones_like(group.magnitude), None
    for step in range(ALPHAS):
        scale = group.magnitude.clamp(min=1e-4) ** (step / ALPHAS)
        scale = (scale / (scale.max() * scale.min()).sqrt()).clamp(min=1e-4)
        changes = (fit(weight * scale, grid).weight / scale - weight for weight, grid in weights)
        loss = sum(((change @ group.gram) * change).sum() for change in changes)
        if best_loss is None or loss < best_loss:
            best, best_loss = scale, loss
    return best


def fit_clipped(weight: torch.Tensor, gram: torch.Tensor, grid: Grid, clipped: bool) -> Fitted:
    """Fit grids to a matrix, each group's range shrunk to the factor that changes its outputs least.

    Args:
        weight: (rows, columns).
        gram: mean of x xᵀ, (columns, columns); only its blocks along the diagonal, one a group, are used.
        grid: the kind of grid.
        clipped: whether ranges may shrink; false: the whole range is used.
    """
    if not clipped:
        return fit(weight, grid)
    groups = grouped(weight.float(), grid)
    size = groups.shape[-1]
    blocks = torch.stack([gram[first : first + size, first : first + size] for first in range(0, gram.shape[0], size)])

    def loss(change: torch.Tensor) -> torch.Tensor:
        change = change.transpose(0, 1)
        return ((change @ blocks) * change).sum(-1).T.unsqueeze(-1)

    return fit(weight, grid, best_shrink(groups, grid, loss))
