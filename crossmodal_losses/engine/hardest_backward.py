"""The gradients where every anchor weighs only its positive and one selected negative: rows, gathered and summed.

O(B D), in a fixed order of summation on every device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from crossmodal_losses.engine.objective import State
from crossmodal_losses.engine.one_process import Visit
from crossmodal_losses.engine.operands import Side, Sides, blocks, normalisation_backward

# Where rows have to be scaled or widened, so many entries at a time, but at least so many columns.
ENTRIES, NARROWEST = 1 << 20, 32


def _widths(side: Side) -> list[slice]:
    """Columns of the embeddings to work on at a time."""
    count, D = side.rows.shape
    return blocks(slice(0, D), D if side.scale is None else max(NARROWEST, ENTRIES // count))


def _summed(rows: Tensor, of: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    """Weighted sums of rows, ``of[starts[k]:starts[k + 1]]`` in the k-th."""
    return embedding_bag(of, rows, starts, mode="sum", per_sample_weights=weight, include_last_offset=True)


def of_selected(
    sides: Sides, state: State, of_positive: Tensor, of_fold: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and y of a whole batch.

    Args:
        state: similarity and index of the selected negatives, ``[2, B]`` each: of the rows, then of the columns.
        of_positive, of_fold: dL/dpositive ``[B]`` and dL/dfold ``[2, B]``.
    """
    _, index = state
    B, D = sides.x.rows.shape
    anchors = torch.arange(B, device=index.device).expand(2, B)
    # The pairs that a row of each side is in: with its positive, with what it selected, with what selected it.
    to, order = torch.cat([anchors, anchors, index.flip(0)], 1).sort(dim=1, stable=True)
    of = torch.cat([anchors, index, anchors], 1).gather(1, order)
    weight = torch.cat([of_positive.expand(2, B), of_fold, of_fold.flip(0)], 1).gather(1, order)
    starts = torch.searchsorted(to, torch.arange(B + 1, device=index.device).repeat(2, 1))
    weight = weight * sides.inverse.gather(1, to) * sides.inverse.flip(0).gather(1, of)
    gradients: list[Tensor | None] = []
    for k, (side, other) in enumerate(((sides.x, sides.y), (sides.y, sides.x))):
        if not wanted[k]:
            gradients.append(None)
            continue
        widths = _widths(side)
        if len(widths) == 1:
            gradient = _summed(other.columns(widths[0]), of[k], weight[k], starts[k])
        else:
            gradient = weight.new_empty(B, D)
            for columns in widths:
                gradient[:, columns] = _summed(other.columns(columns), of[k], weight[k], starts[k])
        for block in blocks(slice(0, B), max(1, ENTRIES // D)):
            scale = None if side.scale is None else side.scale[block]
            normalisation_backward(gradient[block], side.block(block), sides.inverse[k, block], scale)
        gradients.append(gradient.to(side.rows.dtype))
    return gradients[0], gradients[1]


def add_selected(sides: Sides, state: State, coefficients: Tensor, visit: Visit, of_x: Tensor | None) -> None:
    """Add what the selected pairs among the rows held and all columns give to the sums of the gradients.

    Args:
        state: similarity and index of the selected negatives, ``[2, B]`` each: of the rows held, and of all columns.
        coefficients: their weights, ``[2, B]``.
    """
    _, index = state
    I = sides.own  # noqa: E741
    rows = torch.arange(I.stop - I.start, device=index.device)
    for J, rows_of_y, of_y in visit:
        y = sides.columns(J, rows_of_y)
        columns = torch.arange(J.stop - J.start, device=index.device)
        row_of = index[1, J] - I.start
        column_of = index[0, I] - J.start
        # Selected pairs that lie elsewhere stay, with weight 0 and some other partner: how many there are is not asked.
        column_counts = (row_of >= 0) & (row_of < len(rows))
        row_counts = (column_of >= 0) & (column_of < len(columns))
        i = torch.cat([rows, torch.where(column_counts, row_of, columns % len(rows))])
        j = torch.cat([torch.where(row_counts, column_of, rows % len(columns)), columns])
        weight = torch.cat([coefficients[0, I] * row_counts, coefficients[1, J] * column_counts])
        weight = weight * sides.inverse[0, I][i] * sides.inverse[1, J][j]
        for total, side, other, to, of in ((of_x, sides.x, y, i, j), (of_y, y, sides.x, j, i)):
            if total is None:
                continue
            to, order = to.sort(stable=True)
            starts = torch.searchsorted(to, torch.arange(len(total) + 1, device=to.device))
            for width in _widths(side):
                total[:, width] += _summed(other.columns(width), of[order], weight[order], starts)
