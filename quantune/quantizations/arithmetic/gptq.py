"""The arithmetic of GPTQ on one matrix, in the precision of its Gram matrix.

Frantar et al., 2022 (arXiv:2210.17323), algorithm 1.
"""

import torch

from quantune.core.errors import QuantuneError
from quantune.quantizations.arithmetic.grids import Fitted, Grid, best_shrink, fit, grouped, snap, span

BLOCK = 128  # columns rounded before the rest of the matrix is updated


def gptq(
    weight: torch.Tensor,
    gram: torch.Tensor,
    grid: Grid,
    damping: float,
    activation_order: bool | str,
    static_grids: bool = False,
    clip: bool = False,
) -> Fitted:
    """Round a matrix so that its outputs change little.

    Args:
        weight: (rows, columns).
        gram: mean of x xᵀ over calibration tokens, (columns, columns).
        grid: the kind of grid.
        damping: added to the diagonal of the Hessian, as a share of its mean.
        activation_order: True: round columns by falling diagonal, on static grids; "groups": round groups by falling
            largest diagonal, and the columns of a group by falling diagonal; False: in the original order.
        static_grids: fit all grids to the original weights; else each is fitted when its group's turn comes, to weights
            that compensate the errors before.
        clip: shrink the range of each group where that makes its weighted error smaller.
    """
    weight, hessian = weight.to(gram.dtype, copy=True), gram.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    size = grid.group_size or weight.shape[1]
    order = _order(hessian.diagonal(), size, activation_order)
    inverse = torch.argsort(order)
    if activation_order:
        weight, hessian = weight[:, order], hessian[order][:, order]
    upper = _inverse_cholesky(hessian, damping)
    del hessian
    scale, zero = None, None
    if static_grids or activation_order is True or not grid.group_size:
        groups = grouped(weight[:, inverse], grid)
        importance = upper.diagonal()[inverse].view(1, -1, size)
        fitted = fit(weight[:, inverse], grid, _shrink(groups, grid, importance) if clip else 1.0)
        scale, zero = (item.repeat_interleave(size, 1)[:, order] for item in (fitted.scale, fitted.zero))
        del fitted, groups
    scales, zeros = torch.empty_like(weight), torch.empty_like(weight)
    step = size * max(1, BLOCK // size) if scale is None else BLOCK  # no group is cut in two
    for first in range(0, weight.shape[1], step):
        last = min(first + step, weight.shape[1])
        columns = slice(first, last)
        known = (None, None) if scale is None else (scale[:, columns], zero[:, columns])
        rounded, error, used_scale, used_zero = _block(weight[:, columns], upper[columns, columns], grid, clip, *known)
        weight[:, last:] -= error @ upper[columns, last:]
        weight[:, columns], scales[:, columns], zeros[:, columns] = rounded, used_scale, used_zero
    weight, scales, zeros = weight[:, inverse], scales[:, inverse], zeros[:, inverse]
    return Fitted(scales[:, ::size].contiguous(), zeros[:, ::size].contiguous(), weight)


def _order(diagonal: torch.Tensor, size: int, activation_order: bool | str) -> torch.Tensor:
    """Return the numbers of the columns in the order in which they are rounded."""
    columns = torch.arange(len(diagonal), device=diagonal.device)
    if not activation_order:
        return columns
    if activation_order is True:
        return torch.argsort(diagonal, descending=True, stable=True)
    groups = diagonal.view(-1, size)
    inside = torch.argsort(groups, dim=1, descending=True, stable=True)
    first = torch.argsort(groups.amax(1), descending=True, stable=True)
    return columns.view(-1, size).gather(1, inside)[first].flatten()


def _shrink(groups: torch.Tensor, grid: Grid, factor: torch.Tensor) -> torch.Tensor:
    """Return the best factor on the range of each group, (..., 1).

    The loss of a column is that of GPTQ's equation 1: (change / u)², with u on the diagonal of the Cholesky factor.
    """
    return best_shrink(groups, grid, lambda change: (change / factor).square().sum(-1, keepdim=True))


def _inverse_cholesky(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped Hessian's inverse; damping grows tenfold while it fails.

    The Hessian's diagonal is damped in place.
    """
    diagonal, mean = hessian.diagonal().clone(), hessian.diagonal().mean()
    for _ in range(5):
        hessian.diagonal().copy_(diagonal + damping * mean)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            factor = torch.cholesky_inverse(factor)
            factor, failed = torch.linalg.cholesky_ex(factor, upper=True)
        if not failed:
            return factor
        damping *= 10
    raise QuantuneError("the Hessian has no Cholesky factor, even strongly damped: use other or more calibration data")


def _block(weight, upper, grid: Grid, clip: bool, scale, zero):
    """Round the columns of a block one by one; on CUDA the loop runs as one captured graph.

    Returns:
        The rounded weights, the scaled errors that later columns compensate, and each column's scale and zero; all
        (rows, columns of the block).
    """
    if weight.is_cuda:
        return _captured(weight, upper, grid, clip, scale, zero)
    return _columns(weight, upper, grid, clip, scale, zero)


def _columns(weight, upper, grid: Grid, clip: bool, scale, zero):
    weight, size = weight.clone(), grid.group_size
    rounded, errors = torch.empty_like(weight), torch.empty_like(weight)
    scales, zeros = torch.empty_like(weight), torch.empty_like(weight)
    for column in range(weight.shape[1]):
        if scale is None and column % size == 0:
            group = slice(column, column + size)
            shrink = _shrink(weight[:, group], grid, upper.diagonal()[group]) if clip else 1.0
            scales[:, group], zeros[:, group] = span(weight[:, group], grid, shrink)
        elif scale is not None and column == 0:
            scales.copy_(scale)
            zeros.copy_(zero)
        value = weight[:, column]
        rounded[:, column] = snap(value, scales[:, column], zeros[:, column], grid)
        errors[:, column] = (value - rounded[:, column]) / upper[column, column]
        weight[:, column + 1 :] -= errors[:, column : column + 1] * upper[column, column + 1 :]
    return rounded, errors, scales, zeros


_graphs: dict = {}


def _captured(weight, upper, grid: Grid, clip: bool, scale, zero):
    """Replay `_columns` as a CUDA graph: a thousand small kernels cost one launch."""
    key = (weight.shape, grid, clip, scale is None, weight.device)
    if key not in _graphs:
        buffers = [None if item is None else item.clone() for item in (weight, upper, scale, zero)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _columns(buffers[0], buffers[1], grid, clip, buffers[2], buffers[3])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = _columns(buffers[0], buffers[1], grid, clip, buffers[2], buffers[3])
        _graphs[key] = graph, buffers, results
    graph, buffers, results = _graphs[key]
    for buffer, item in zip(buffers, (weight, upper, scale, zero), strict=True):
        if buffer is not None:
            buffer.copy_(item)
    graph.replay()
    return tuple(item.clone() for item in results)
