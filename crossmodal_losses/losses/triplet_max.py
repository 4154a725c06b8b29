"""Equation 3: only the hardest negative of each anchor costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crossmodal_losses.checks import Reduction, check_margin
from crossmodal_losses.engine.objective import Formula
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.losses.base import PairLoss
from crossmodal_losses.losses.hardest import HardestObjective


@dataclass(frozen=True)
class TripletMaxObjective(HardestObjective):
    """[m + max_j n_j - p]_+."""

    margin: float

    checks: ClassVar = {"margin": check_margin}

    def anchor_loss(self, positive: Tensor, hardest: Tensor) -> Tensor:
        return (self.margin + hardest - positive).relu()

    def derivatives(self, positive: Tensor, hardest: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """-1 and 1 where the hinge is above 0."""
        violating = loss.sign()
        return -violating, violating

    @property
    def formula(self) -> Formula:
        """-p and m + n, as polynomials."""
        return Formula("polynomials", (0.0, -1.0, 0.0, self.margin, 1.0, 0.0))


def triplet_max(
    S: Tensor,
    *,
    margin: float = 0.2,
    direction_weights: Sequence[float] = (1.0, 1.0),
    ids: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Triplet loss of the hardest negative.

    .. math:: L = \frac{1}{B} \sum_i \max_{j \neq i} [m + s_{ij} - s_{ii}]_+ + \max_{j \neq i} [m + s_{ji} - s_{ii}]_+

    Mei et al. 2022, equation 3; Faghri et al. 2018 (VSE++).

    Args:
        S: similarities, floating ``[B, B]``; the positives are on the diagonal.
        margin: m, finite and >= 0.
        direction_weights: (w_x, w_y), factors of the sum over the rows and of that over the columns.
        ids: integers ``[B]``; j is no negative of i if their ids are equal. None: every j != i is a negative.
        reduction: "mean" is the formula above; "sum" leaves out 1/B; "none" gives the ``[B]`` terms of the sum.

    Returns:
        A scalar (``[B]`` for "none"), float64 if S is, else float32.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Note:
        Of equal hardest negatives the lowest index takes the whole gradient. [z]_+ has gradient 0 at z = 0.
        If all similarities are equal (the model has collapsed) the loss is 2 m, whatever B; see ``diagnose``.

    >>> import torch
    >>> triplet_max(torch.full((4, 4), 0.5))
    tensor(0.4000)
    """
    return reference_loss(
        TripletMaxObjective(margin), S, ids=ids, reduction=reduction, direction_weights=direction_weights
    )


class TripletMax(PairLoss):
    """:func:`triplet_max` of the cosine similarities of two batches of embeddings.

    Settings are those of :func:`triplet_max`; the others those of every :class:`PairLoss`.

    >>> import torch
    >>> TripletMax(margin=0.5)(torch.eye(3), torch.eye(3).flip(0))  # two of three pairs are swapped
    tensor(2.)
    """

    objective_type = TripletMaxObjective
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
