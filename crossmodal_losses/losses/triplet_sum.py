"""Equation 2: every negative that comes within the margin of the positive costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction, check_margin
from crossmodal_losses.engine.aggregation import EXCLUDED, HingeSum, along
from crossmodal_losses.engine.objective import Formula, Objective
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.engine.square import Saved, Square, exclude
from crossmodal_losses.losses.base import PairLoss


@dataclass(frozen=True)
class TripletSumObjective(Objective):
    """sum_j [m + n_j - p]_+."""

    margin: float

    checks: ClassVar = {"margin": check_margin}

    @property
    def aggregation(self) -> HingeSum:
        return HingeSum(self.margin)

    def anchor_loss(self, positive: Tensor, hinge_sum: Tensor) -> Tensor:
        return hinge_sum

    def derivatives(self, positive: Tensor, hinge_sum: Tensor, loss: Tensor) -> tuple[None, Tensor]:
        """0 in p beyond the sum, 1 in the sum."""
        return None, torch.ones_like(hinge_sum)

    @property
    def square(self) -> Square:
        return SquareOfHinges(self.margin)

    @property
    def formula(self) -> Formula:
        return Formula("hinges", (self.margin,))


class SquareOfHinges(Square):
    """The hinges of the rows and those of the columns are kept; those above 0 have a gradient."""

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def losses(self, S: Tensor, same: Tensor | None) -> tuple[Tensor, Saved]:
        gap = self.margin - S.diagonal()
        exclude(S, same, EXCLUDED)
        of_rows, of_columns = torch.add(S, along(gap, 1)).relu_(), S.add_(along(gap, 0)).relu_()
        return torch.stack((of_rows.sum(1), of_columns.sum(0))), (of_rows, of_columns)

    def grad_S(self, saved: Saved, upstream: Tensor, divisor: float) -> Tensor:
        upstream = upstream / divisor
        of_rows, of_columns = saved[0].sign(), saved[1].sign()
        if upstream.dim():  # that of every anchor
            of_rows, of_columns = of_rows.mul_(along(upstream, 1)), of_columns.mul_(along(upstream, 0))
        of_positives = of_rows.sum(1).add_(of_columns.sum(0))
        grad = of_rows.add_(of_columns)
        grad.diagonal().sub_(of_positives)
        return grad if upstream.dim() else grad.mul_(upstream)


def triplet_sum(
    S: Tensor,
    *,
    margin: float = 0.2,
    direction_weights: Sequence[float] = (1.0, 1.0),
    ids: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Triplet loss, summed over all negatives.

    .. math:: L = \frac{1}{B} \sum_i \sum_{j \neq i} [m + s_{ij} - s_{ii}]_+ + [m + s_{ji} - s_{ii}]_+

    Mei et al. 2022, equation 2.

    Args:
        S: similarities, floating ``[B, B]``; the positives are on the diagonal.
        margin: m, finite and >= 0.
        direction_weights: (w_x, w_y), factors of the sum over the rows and of that over the columns.
        ids: integers ``[B]``; j is no negative of i if their ids are equal. None: every j != i is a negative.
        reduction: "mean" is the formula above; "sum" leaves out 1/B; "none" gives the ``[B]`` terms of the outer sum.

    Returns:
        A scalar (``[B]`` for "none"), float64 if S is, else float32.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Note:
        The sum over negatives is not divided by their number: the loss grows with B. [z]_+ has gradient 0 at z = 0.
        If all similarities are equal (the model has collapsed) the loss is 2 m (B - 1).

    >>> import torch
    >>> triplet_sum(torch.tensor([[0.5, 0.4], [0.0, 0.5]]))
    tensor(0.1000)
    """
    return reference_loss(
        TripletSumObjective(margin), S, ids=ids, reduction=reduction, direction_weights=direction_weights
    )


class TripletSum(PairLoss):
    """:func:`triplet_sum` of the cosine similarities of two batches of embeddings.

    Settings are those of :func:`triplet_sum`; the others those of every :class:`PairLoss`.

    >>> import torch
    >>> loss = TripletSum(margin=0.2)
    >>> loss(torch.eye(3), torch.eye(3))  # perfectly aligned
    tensor(0.)
    """

    objective_type = TripletSumObjective
    margin: float

    def __init__(
        self,
        *,
        margin: float = 0.2,
        direction_weights: Sequence[float] = (1.0, 1.0),
        reduction: Reduction = "mean",
        tile_size: int | None = None,
    ) -> None:
        super().__init__(margin=margin, direction_weights=direction_weights, reduction=reduction, tile_size=tile_size)
