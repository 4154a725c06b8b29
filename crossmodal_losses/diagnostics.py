"""Statistics of a batch: how hard its negatives are, and whether its embeddings have collapsed."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmodal_losses.checks import check_batch, check_margin
from crossmodal_losses.engine.aggregation import along
from crossmodal_losses.engine.compat import without_autocast
from crossmodal_losses.engine.dispatch import tile_of
from crossmodal_losses.engine.operands import Operand, Operands, blocks, measure_norms, multiply

# A batch has collapsed if its similarities range over no more than this. Similarities of unrelated embeddings in 1024
# dimensions range over ten times as much.
COLLAPSED = 0.02


@dataclass(frozen=True)
class Diagnosis:
    """Statistics of a batch, as tensors without dimensions on the device of the embeddings.

    Similarities are those of every anchor with all its candidates: B x B, and those of candidates without a partner.
    ``float()`` of a statistic synchronises with the device.

    Attributes:
        positive: mean similarity of the B positives.
        hardest_negative: mean similarity of the hardest negatives, over all anchors of both directions that have
            negatives; NaN if there is no negative.
        similarity: mean of all similarities.
        spread: standard deviation of all similarities.
        violating: fraction, in [0, 1], of all (anchor, negative) of both directions with m + s_negative > s_positive;
            NaN if there is no negative.
        recall_x_to_y: R@1 within the batch, in [0, 1]: the fraction of anchors x_i whose positive is more similar than
            all their negatives. A tie counts as a miss.
        recall_y_to_x: the same for the anchors y_i.
        collapsed: bool; all similarities lie within 0.02 of each other. triplet_max then stays at 2 m, triplet_sum at
            2 m (B - 1), and triplet_weighted falls to 0.51 with all similarities at 0.5. False if there is no
            negative, or a NaN.
    """

    positive: Tensor
    hardest_negative: Tensor
    similarity: Tensor
    spread: Tensor
    violating: Tensor
    recall_x_to_y: Tensor
    recall_y_to_x: Tensor
    collapsed: Tensor


class _Similarities:
    """Mean, variance and range of all similarities, a tile at a time (Chan, Golub and LeVeque 1983)."""

    def __init__(self, zero: Tensor) -> None:
        self.count, self.mean, self.squares = 0, zero, zero  # squares: the sum of (s - mean)^2
        self.least, self.largest = zero + torch.inf, zero - torch.inf

    def add(self, S: Tensor) -> None:
        variance, mean = torch.var_mean(S, correction=0)
        count, difference = self.count + S.numel(), mean - self.mean
        self.squares = self.squares + S.numel() * (variance + difference**2 * (self.count / count))
        self.mean = self.mean + difference * (S.numel() / count)
        self.count = count
        self.least, self.largest = torch.minimum(self.least, S.amin()), torch.maximum(self.largest, S.amax())


class _Anchors:
    """The negatives of one direction's anchors, a tile at a time."""

    def __init__(self, positive: Tensor) -> None:
        self.positive, self.hardest = positive, torch.full_like(positive, -torch.inf)
        self.negatives = self.violating = positive.new_zeros((), dtype=torch.int64)

    def add(self, anchors: slice, S: Tensor, negative: Tensor, dim: int, margin: float) -> None:
        """Add a tile in which the candidates of the anchors lie along dim."""
        hardest = S.masked_fill(~negative, -torch.inf).amax(dim)
        self.hardest[anchors] = torch.maximum(self.hardest[anchors], hardest)
        violating = margin + S > along(self.positive[anchors], dim)
        self.negatives = self.negatives + negative.sum()
        self.violating = self.violating + (violating & negative).sum()

    @property
    def recall(self) -> Tensor:
        return (self.positive > self.hardest).to(self.positive.dtype).mean()


def _tiles(row: Operand, column: Operand, step: int) -> Iterator[tuple[slice, slice]]:
    """The tiles of two operands; those on the diagonal, which hold the positives, come first."""
    rows, columns = blocks(row.whole, step), blocks(column.whole, step)
    yield from ((block, block) for block in rows if block in columns)
    yield from ((I, J) for I in rows for J in columns if I != J)  # noqa: E741


def _negative(row: Operand, I: slice, column: Operand, J: slice) -> Tensor:  # noqa: E741
    """The mask of the negatives in a tile, bool ``[I, J]``. Rows of two operands have a number in common in a pair."""
    if row.ids is None or column.ids is None:
        device = row.inv_norm.device
        rows, columns = (torch.arange(block.start, block.stop, device=device) for block in (I, J))
    else:
        rows, columns = row.ids[row.local(I)], column.ids[column.local(J)]
    return rows[:, None] != columns


@torch.no_grad()
def diagnose(
    x: Tensor,
    y: Tensor,
    ids: Tensor | None = None,
    *,
    negatives_x: Tensor | None = None,
    negatives_y: Tensor | None = None,
    negative_ids_x: Tensor | None = None,
    negative_ids_y: Tensor | None = None,
    margin: float = 0.2,
) -> Diagnosis:
    """Compute statistics of a batch's similarities, at the cost of one matrix product.

    The similarities are computed in tiles and never stored as a whole: memory beyond the inputs is O(t^2 + t D + B),
    with tiles of t x t, t = 1024 on a CPU. The device is not synchronised.

    Args:
        x, y: floating ``[B, D]``, not necessarily normalised, on one device.
        ids: integers ``[B]``; pairs (i, j) of one id are no negatives. None: every j != i is a negative.
        negatives_x, negatives_y: further candidates of the anchors y and x, floating ``[any, D]``, as in a loss.
        negative_ids_x, negative_ids_y: their ids, one for each row. None: they are negatives of every anchor.
        margin: m, finite and >= 0.

    Returns:
        Statistics in float64 if an embedding is float64, else in float32, which half precision is converted to.

    Raises:
        TypeError, ValueError: an argument is not as described.

    >>> float(diagnose(torch.eye(4), torch.eye(4)).recall_x_to_y)
    1.0
    >>> float(diagnose(torch.eye(4), torch.eye(4), negatives_y=torch.eye(4)[:1]).recall_x_to_y)
    0.75
    >>> bool(diagnose(torch.ones(4, 2), torch.ones(4, 2)).collapsed)
    True
    """
    margin = check_margin("margin", margin)
    batch = check_batch(x, y, ids, negatives_x, negatives_y, negative_ids_x, negative_ids_y)
    step = tile_of(None, batch.x.device)[0]
    with without_autocast(batch.x.device):
        return _diagnosis(measure_norms(batch, step), margin, step)


def _diagnosis(operands: Operands, margin: float, step: int) -> Diagnosis:
    x, y, negatives_x, negatives_y = operands.parts
    # Positives are those of the tiles, so that equal rows have equal similarities where the platform's product has.
    positive = torch.zeros_like(x.inv_norm)
    anchors = _Anchors(positive), _Anchors(positive)
    similarities = _Similarities(positive.new_zeros(()))
    for row, column, directions in ((x, y, (0, 1)), (x, negatives_y, (0,)), (negatives_x, y, (1,))):
        if row is None or column is None:
            continue
        for I, J in _tiles(row, column, step):  # noqa: E741
            S = positive.new_empty(I.stop - I.start, J.stop - J.start)
            multiply(row.block(I), column.block(J).T, out=S)
            S.mul_(row.inv_norm[row.local(I), None]).mul_(column.inv_norm[column.local(J)])
            if I == J:
                positive[I] = S.diagonal()
            similarities.add(S)
            negative = _negative(row, I, column, J)
            for direction in directions:
                anchors[direction].add((I, J)[direction], S, negative, 1 - direction, margin)

    # A factor for statistics that come from comparisons, which would make plausible numbers of NaN.
    nan_factor = torch.where(similarities.mean.isfinite(), positive.new_ones(()), torch.nan)
    hardest = torch.cat([anchors[0].hardest, anchors[1].hardest])
    has_negative = hardest > -torch.inf
    negatives, violating = anchors[0].negatives + anchors[1].negatives, anchors[0].violating + anchors[1].violating
    return Diagnosis(
        positive=positive.mean(),
        hardest_negative=hardest.where(has_negative, 0).sum() / has_negative.sum() * nan_factor,
        similarity=similarities.mean,
        spread=(similarities.squares / similarities.count).sqrt(),
        violating=violating.to(positive.dtype) / negatives * nan_factor,
        recall_x_to_y=anchors[0].recall * nan_factor,
        recall_y_to_x=anchors[1].recall * nan_factor,
        collapsed=(similarities.largest - similarities.least <= COLLAPSED) & has_negative.any(),
    )
