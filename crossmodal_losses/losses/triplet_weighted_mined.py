"""The polynomial loss with a mining rule, as its published implementations compute it (Wei et al. 2020)."""

from collections.abc import Sequence

from torch import Tensor

from crossmodal_losses.checks import Reduction, check_coefficients, check_margin
from crossmodal_losses.engine.objective import Hardest
from crossmodal_losses.engine.reference import bidirectional
from crossmodal_losses.engine.rules import Rule
from crossmodal_losses.losses.base import PairLoss
from crossmodal_losses.losses.triplet_weighted import (
    NEGATIVE_COEFFICIENTS,
    POSITIVE_COEFFICIENTS,
    derivative,
    polynomial,
)

# The published code drops an anchor whose positive is this close to 1.
PERFECT = 1 - 1e-5


class TripletWeightedMinedRule(Rule):
    """[G_pos(p)]_+ + [G_neg(n)]_+, n = max_j n_j, of the anchors with n + m > p"""

    def __init__(
        self, margin: float, positive_coefficients: Sequence[float], negative_coefficients: Sequence[float]
    ) -> None:
        self.margin = margin
        self.positive_coefficients = positive_coefficients
        self.negative_coefficients = negative_coefficients

    @property
    def fold(self) -> Hardest:
        return Hardest()

    def _counts(self, positive: Tensor, folded: Tensor) -> Tensor:
        return (folded + self.margin > positive) & (positive < PERFECT)

    def of_anchor(self, positive: Tensor, folded: Tensor) -> Tensor:
        g_pos = polynomial(self.positive_coefficients, positive)
        g_neg = polynomial(self.negative_coefficients, folded)
        return (g_pos.relu() + g_neg.relu()) * self._counts(positive, folded)

    def slopes(self, positive: Tensor, folded: Tensor) -> tuple[Tensor, Tensor]:
        counts = self._counts(positive, folded)

        def hinged(coefficients: Sequence[float], s: Tensor) -> Tensor:
            above = polynomial(coefficients, s).relu_().sign_()
            return counts * above * polynomial(derivative(coefficients), s)

        return hinged(self.positive_coefficients, positive), hinged(self.negative_coefficients, folded)

    def numbers(self) -> list[float]:
        return [self.margin, len(self.positive_coefficients), *self.positive_coefficients, *self.negative_coefficients]

    @classmethod
    def from_numbers(cls, numbers: list[float], parameter: Tensor | None) -> "TripletWeightedMinedRule":
        first_negative = 2 + int(numbers[1])
        return cls(numbers[0], numbers[2:first_negative], numbers[first_negative:])


def triplet_weighted_mined(
    S: Tensor,
    *,
    margin: float = 0.2,
    positive_coefficients: Sequence[float] = POSITIVE_COEFFICIENTS,
    negative_coefficients: Sequence[float] = NEGATIVE_COEFFICIENTS,
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
    check_margin(margin)
    check_coefficients("positive_coefficients", positive_coefficients)
    check_coefficients("negative_coefficients", negative_coefficients)
    rule = TripletWeightedMinedRule(margin, positive_coefficients, negative_coefficients)
    return bidirectional(rule, S, ids=ids, reduction=reduction)


class TripletWeightedMined(PairLoss):
    """:func:`triplet_weighted_mined` of the cosine similarities of two batches of embeddings.

    Its settings; ``reduction`` and ``tile_size`` are those of every :class:`PairLoss`.

    >>> import torch
    >>> TripletWeightedMined()(torch.eye(3), torch.eye(3))  # no negative within the margin
    tensor(0.)
    """

    def __init__(
        self,
        *,
        margin: float = 0.2,
        positive_coefficients: Sequence[float] = POSITIVE_COEFFICIENTS,
        negative_coefficients: Sequence[float] = NEGATIVE_COEFFICIENTS,
        reduction: Reduction = "mean",
        tile_size: int | None = None,
    ) -> None:
        super().__init__(reduction=reduction, tile_size=tile_size)
        check_margin(margin)
        check_coefficients("positive_coefficients", positive_coefficients)
        check_coefficients("negative_coefficients", negative_coefficients)
        self.margin = margin
        self.positive_coefficients = tuple(positive_coefficients)
        self.negative_coefficients = tuple(negative_coefficients)

    @property
    def rule(self) -> TripletWeightedMinedRule:
        return TripletWeightedMinedRule(self.margin, self.positive_coefficients, self.negative_coefficients)

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, positive_coefficients={self.positive_coefficients}, "
            f"negative_coefficients={self.negative_coefficients}, reduction={self.reduction!r}, "
            f"tile_size={self.tile_size}"
        )
