"""Gradients where every anchor has only its positive and one hardest negative: rows are gathered and summed.

O(B D), in a fixed order of summation on every device.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from crossmodal_losses.engine.communication import Columns
from crossmodal_losses.engine.objective import Directions
from crossmodal_losses.engine.operands import Operand, Operands, blocks

# Where rows have to be scaled or widened, so many entries at a time, but at least so many columns: on a CPU they stay
# in its cache; on CUDA, where every launch costs, they take 256 MiB in float32.
ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 26}
NARROWEST = 32

# On CUDA one thread adds up all rows of a sum. If a model collapses all anchors may have one hardest negative: then
# sums are split into pieces of at most so many rows.
LONGEST_SUM = {"cuda": 128}


def _entries(device: torch.device) -> int:
    return ENTRIES.get(device.type, ENTRIES["cpu"])


def _widths(operand: Operand) -> list[slice]:
    """Dimensions of the embeddings to work on at a time."""
    count, D = operand.rows.shape
    at_once = operand.scale is None and operand.rows.device.type not in LONGEST_SUM
    return blocks(slice(0, D), D if at_once else max(NARROWEST, _entries(operand.rows.device) // max(1, count)))


class _Sums(NamedTuple):
    """Weighted sums of rows: those of ``gathered[starts[k]:starts[k + 1]]``."""

    gathered: Tensor
    weight: Tensor
    starts: Tensor
    pieces: Tensor | None = None  # the k-th of the sums asked for has the pieces[k]-th to the pieces[k + 1]-th of these

    @classmethod
    def of(cls, index: Tensor, weight: Tensor, starts: Tensor) -> "_Sums":
        """The sums, in pieces where they must not be long."""
        longest, count, device = LONGEST_SUM.get(index.device.type), len(index), index.device
        if longest is None:
            return cls(index, weight, starts)
        bounds = torch.cat([starts, torch.arange(longest, max(longest, count), longest, device=device)]).sort().values
        pieces = torch.searchsorted(bounds, starts)
        pieces[-1:].fill_(len(bounds) - 1)
        return cls(index, weight, bounds, pieces)

    def of_rows(self, rows: Tensor) -> Tensor:
        """The sums of some rows."""
        sums = embedding_bag(
            self.gathered, rows, self.starts, mode="sum", per_sample_weights=self.weight, include_last_offset=True
        )
        if self.pieces is None:
            return sums
        every = torch.arange(len(sums), device=sums.device)
        return embedding_bag(every, sums, self.pieces, mode="sum", include_last_offset=True)


def hardest_gradients(
    operands: Operands, index: Tensor, grad_positive: Tensor, grad_aggregate: Tensor, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of x and y of a whole batch of pairs, where needed.

    Given the indices of the hardest negatives, ``[2, B]``, of the rows, then of the columns, dL/dpositive, ``[B]``, and
    dL/daggregate, ``[2, B]``.
    """
    B, D = operands.x.rows.shape
    anchors = torch.arange(B, device=index.device).expand(2, B)
    # The pairs of every row of each modality: its positive, its hardest negative, the anchors whose hardest it is.
    to, order = torch.cat([anchors, anchors, index.flip(0)], 1).sort(dim=1, stable=True)
    other_index = torch.cat([anchors, index, anchors], 1).gather(1, order)
    weight = torch.cat([grad_positive.expand(2, B), grad_aggregate, grad_aggregate.flip(0)], 1).gather(1, order)
    inv_norm = torch.stack([operands.x.inv_norm, operands.y.inv_norm])
    weight = weight * inv_norm.gather(1, to) * inv_norm.flip(0).gather(1, other_index)
    starts = torch.searchsorted(to, torch.arange(B + 1, device=index.device).repeat(2, 1))
    gradients: list[Tensor | None] = [None, None]
    for k, (operand, other) in enumerate(((operands.x, operands.y), (operands.y, operands.x))):
        if not needs_grad[k]:
            continue
        widths, sums = _widths(other), _Sums.of(other_index[k], weight[k], starts[k])
        if len(widths) == 1:
            grad = sums.of_rows(other.dimensions())
        else:
            grad = weight.new_empty(B, D)
            for width in widths:
                grad[:, width] = sums.of_rows(other.dimensions(width))
        for block in blocks(slice(0, B), max(1, _entries(grad.device) // D)):
            operand.normalisation_backward(grad, block)
        gradients[k] = grad.to(operand.rows.dtype)
    return gradients[0], gradients[1]


def add_hardest(
    operands: Operands,
    directions: Directions,
    index: Tensor,
    factors: Tensor,
    columns: Iterable[Columns],
    grad_of_rows: Mapping[int, Tensor],
) -> None:
    """Add the hardest negatives among the local rows and all columns, in one pass over these, to the sums of gradients.

    Index and factors, dL/daggregate, are those of all anchors, ``[k, B]``.
    """
    for part, J, rows_of_y, grad_y in columns:
        if not len(rows_of_y):
            continue
        y = operands.columns(part, J, rows_of_y)
        for which, x, of_tile in directions.rows_beside(part, operands):
            found = []
            for k in of_tile:
                own, other = (x, y) if k == 0 else (y, x)
                slot = directions.slots[k]
                to, candidate, weight = _of_anchors(own, other, index[slot, own.whole], factors[slot, own.whole])
                found.append((to, candidate, weight) if k == 0 else (candidate, to, weight))
            i, j, weight = (torch.cat(values) for values in zip(*found, strict=True))
            weight = weight * x.inv_norm[i] * y.inv_norm[j]
            _add_rows(grad_of_rows.get(which), y, i, j, weight)
            _add_rows(grad_y, x, j, i, weight)


def _of_anchors(own: Operand, other: Operand, index: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of anchors and of their hardest negatives among the rows of other, and the weights of these pairs.

    Pairs that lie elsewhere stay, with weight 0 and some other partner: counting them would take waiting.
    """
    anchors = torch.arange(own.rows.shape[0], device=index.device)
    count = other.rows.shape[0]
    position = index - other.start
    here = (position >= 0) & (position < count)
    return anchors, torch.where(here, position, anchors % count), factors * here


def _add_rows(grad: Tensor | None, other: Operand, to: Tensor, other_index: Tensor, weight: Tensor) -> None:
    """Add weighted rows of other to the sums of gradients, if they are needed."""
    if grad is None:
        return
    to, order = to.sort(stable=True)
    starts = torch.searchsorted(to, torch.arange(len(grad) + 1, device=to.device))
    sums = _Sums.of(other_index[order], weight[order], starts)
    for width in _widths(other):
        grad[:, width] += sums.of_rows(other.dimensions(width))
