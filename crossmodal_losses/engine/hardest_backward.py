"""Gradients where every anchor has only its positive and one hardest negative: rows are gathered and summed.

O(B D), in a fixed order of summation on every device.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from crossmodal_losses.engine.communication import Columns
from crossmodal_losses.engine.operands import Operand, Operands, blocks

# Where rows have to be scaled or widened, so many entries at a time, but at least so many columns.
ENTRIES, NARROWEST = 1 << 20, 32


def _widths(operand: Operand) -> list[slice]:
    """Dimensions of the embeddings to work on at a time."""
    count, D = operand.rows.shape
    return blocks(slice(0, D), D if operand.scale is None else max(NARROWEST, ENTRIES // count))


def _sum_rows(rows: Tensor, index: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    """Weighted sums of rows, ``index[starts[k]:starts[k + 1]]`` in the k-th."""
    return embedding_bag(index, rows, starts, mode="sum", per_sample_weights=weight, include_last_offset=True)


def hardest_gradients(
    operands: Operands, index: Tensor, grad_positive: Tensor, grad_aggregate: Tensor, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of x and y of a whole batch, where needed.

    Given the indices of the hardest negatives, ``[2, B]``, of the rows, then of the columns, dL/dpositive, ``[B]``, and
    dL/daggregate, ``[2, B]``.
    """
    B, D = operands.x.rows.shape
    anchors = torch.arange(B, device=index.device).expand(2, B)
    # The pairs of every row of each modality: its positive, its hardest negative, the anchors whose hardest it is.
    to, order = torch.cat([anchors, anchors, index.flip(0)], 1).sort(dim=1, stable=True)
    other_index = torch.cat([anchors, index, anchors], 1).gather(1, order)
    weight = torch.cat([grad_positive.expand(2, B), grad_aggregate, grad_aggregate.flip(0)], 1).gather(1, order)
    weight = weight * operands.inv_norm.gather(1, to) * operands.inv_norm.flip(0).gather(1, other_index)
    starts = torch.searchsorted(to, torch.arange(B + 1, device=index.device).repeat(2, 1))
    gradients: list[Tensor | None] = [None, None]
    for k, (operand, other) in enumerate(((operands.x, operands.y), (operands.y, operands.x))):
        if not needs_grad[k]:
            continue
        widths = _widths(other)
        if len(widths) == 1:
            grad = _sum_rows(other.dimensions(), other_index[k], weight[k], starts[k])
        else:
            grad = weight.new_empty(B, D)
            for width in widths:
                grad[:, width] = _sum_rows(other.dimensions(width), other_index[k], weight[k], starts[k])
        for block in blocks(slice(0, B), max(1, ENTRIES // D)):
            operand.normalisation_backward(grad, operands.inv_norm[k], block)
        gradients[k] = grad.to(operand.rows.dtype)
    return gradients[0], gradients[1]


def add_hardest(
    operands: Operands, index: Tensor, factors: Tensor, columns: Iterable[Columns], grad_x: Tensor | None
) -> None:
    """Add the hardest negatives among the local rows and all columns, in one pass over these, to the sums of gradients.

    Index and factors, dL/daggregate, are ``[2, B]``: of the local rows, and of all columns.
    """
    I = operands.local_slice  # noqa: E741
    local_rows = torch.arange(I.stop - I.start, device=index.device)
    for J, y_rows, grad_y in columns:
        y = operands.of_columns(J, y_rows)
        local_columns = torch.arange(J.stop - J.start, device=index.device)
        row_of = index[1, J] - I.start
        column_of = index[0, I] - J.start
        # Pairs that lie elsewhere stay, with weight 0 and some other partner: counting them would take waiting.
        row_here = (row_of >= 0) & (row_of < len(local_rows))
        column_here = (column_of >= 0) & (column_of < len(local_columns))
        i = torch.cat([local_rows, torch.where(row_here, row_of, local_columns % len(local_rows))])
        j = torch.cat([torch.where(column_here, column_of, local_rows % len(local_columns)), local_columns])
        weight = torch.cat([factors[0, I] * column_here, factors[1, J] * row_here])
        weight = weight * operands.inv_norm[0, I][i] * operands.inv_norm[1, J][j]
        for grad, other, to, other_index in ((grad_x, y, i, j), (grad_y, operands.x, j, i)):
            if grad is None:
                continue
            to, order = to.sort(stable=True)
            starts = torch.searchsorted(to, torch.arange(len(grad) + 1, device=to.device))
            for width in _widths(other):
                grad[:, width] += _sum_rows(other.dimensions(width), other_index[order], weight[order], starts)
