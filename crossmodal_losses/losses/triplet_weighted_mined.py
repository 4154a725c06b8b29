"""The polynomial loss with a mining rule, as its published implementations compute it (Wei et al. 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crossmodal_losses.checks import Reduction, check_coefficients, check_margin
from crossmodal_losses.engine.objective import Formula
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.losses.base import PairLoss
from crossmodal_losses.losses.hardest import HardestObjective
from crossmodal_losses.losses.triplet_weighted import (
    NEGATIVE_COEFFICIENTS,
    POSITIVE_COEFFICIENTS,
    derivative,
    of_degree_2,
    polynomial,
)

# The published code drops an anchor whose positive is this close to 1.
PERFECT = 1 - 1e-5


@dataclass(frozen=True)
class TripletWeightedMinedObjective(HardestObjective):
    """[G_pos(p)]_+ + [G_neg(n)]_+, n = max_j n_j, of the anchors with n + m > p and p < 1 - 1e-5."""

    margin: float
    positive_coefficients: Sequence[float]
    negative_coefficients: Sequence[float]

    checks: ClassVar = {
        "margin": check_margin,
        "positive_coefficients": check_coefficients,
        "negative_coefficients": check_coefficients,
    }

    def _counts(self, positive: Tensor, hardest: Tensor) -> Tensor:
        return (hardest + self.margin > positive) & (positive < PERFECT)

    def anchor_loss(self, positive: Tensor, hardest: Tensor) -> Tensor:
        g_pos = polynomial(self.positive_coefficients, positive)
        g_neg = polynomial(self.negative_coefficients, hardest)
        return (g_pos.relu() + g_neg.relu()) * self._counts(positive, hardest)

    def derivatives(self, positive: Tensor, hardest: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """G_pos'(p) and G_neg'(n) where their hinges are above 0, of the anchors that count."""
        counts = loss.sign()  # 0 also where both hinges are

        def hinged(coefficients: Sequence[float], s: Tensor) -> Tensor:
            above = polynomial(coefficients, s) > 0
            return counts * above * polynomial(derivative(coefficients), s)

        return hinged(self.positive_coefficients, positive), hinged(self.negative_coefficients, hardest)

    @property
    def formula(self) -> Formula | None:
        numbers = of_degree_2(self.positive_coefficients, self.negative_coefficients)
        return None if numbers is None else Formula("mined polynomials", (*numbers, self.margin, PERFECT))


def triplet_weighted_mined(
    S: Tensor,
    *,
    margin: float = 0.2,
    positive_coefficients: Sequence[float] = POSITIVE_COEFFICIENTS,
    negative_coefficients: Sequence[float] = NEGATIVE_COEFFICIENTS,
    direction_weights: Sequence[float] = (1.0, 1.0),
    ids: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Polynomial loss of those anchors whose hardest negative comes within the margin of the positive.

    .. math::
        L = \frac{1}{B} \sum_i \ell(s_{ii}, \max_{j \neq i} s_{ij}) + \ell(s_{ii}, \max_{j \neq i} s_{ji}) \\
        \ell(p, n) = [G_{pos}(p)]_+ + [G_{neg}(n)]_+ \text{ if } n + m > p \text{ and } p < 1 - 10^{-5}, \text{ else } 0

    Wei et al. 2020, as published implementations compute it; G_pos and G_neg are equations 4 and 5 of Mei et al. 2022,
    whose equation 6 is :func:`triplet_weighted`: no mining, and one hinge around both polynomials.

    Args:
        S: similarities, floating ``[B, B]``; the positives are on the diagonal.
        margin: m, finite and >= 0.
        positive_coefficients: (a_0, a_1, ...), constant term first; at least one finite number.
        negative_coefficients: (b_0, b_1, ...), likewise.
        direction_weights: (w_x, w_y), factors of the sum over the rows and of that over the columns.
        ids: integers ``[B]``; j is no negative of i if their ids are equal. None: every j != i is a negative.
        reduction: "mean" is the formula above; "sum" leaves out 1/B; "none" gives the ``[B]`` terms of the sum.

    Returns:
        A scalar (``[B]`` for "none"), float64 if S is, else float32.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Note:
        The mean is over all anchors, counted or not. The mining is a choice, not a function: it has no gradient, and
        the loss jumps where an anchor starts to count. Of equal hardest negatives the lowest index takes the gradient.

    >>> import torch
    >>> triplet_weighted_mined(torch.full((4, 4), 0.5))
    tensor(0.5100)
    """
    objective = TripletWeightedMinedObjective(margin, positive_coefficients, negative_coefficients)
    return reference_loss(objective, S, ids=ids, reduction=reduction, direction_weights=direction_weights)


class TripletWeightedMined(PairLoss):
    """:func:`triplet_weighted_mined` of the cosine similarities of two batches of embeddings.

    Settings are those of :func:`triplet_weighted_mined`; the others those of every
    :class:`PairLoss`.

    >>> import torch
    >>> TripletWeightedMined()(torch.eye(3), torch.eye(3))  # no negative within the margin
    tensor(0.)
    """

    objective_type = TripletWeightedMinedObjective
    margin: float
    positive_coefficients: Sequence[float]
    negative_coefficients: Sequence[float]

    def __init__(
        self,
        *,
        margin: float = 0.2,
        positive_coefficients: Sequence[float] = POSITIVE_COEFFICIENTS,
        negative_coefficients: Sequence[float] = NEGATIVE_COEFFICIENTS,
        direction_weights: Sequence[float] = (1.0, 1.0),
        reduction: Reduction = "mean",
        tile_size: int | None = None,
    ) -> None:
        polynomials = {"positive_coefficients": positive_coefficients, "negative_coefficients": negative_coefficients}
        super().__init__(
            margin=margin, direction_weights=direction_weights, reduction=reduction, tile_size=tile_size, **polynomials
        )
