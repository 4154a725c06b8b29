"""The polynomial loss with a mining rule, as its published implementations compute it (Wei et al. 2020)."""

from collections.abc import Sequence

from torch import Tensor

from crossmodal_losses.checks import Reduction, check_coefficients, check_margin
from crossmodal_losses.losses.bidirectional import PairLoss, bidirectional
from crossmodal_losses.losses.triplet_weighted import NEGATIVE_COEFFICIENTS, POSITIVE_COEFFICIENTS, polynomial
from crossmodal_losses.similarity import hardest_negative

# The published code drops an anchor whose positive is this close to 1.
PERFECT = 1 - 1e-5


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

    def direction(S: Tensor, negative: Tensor) -> Tensor:
        positive, hardest = S.diagonal(), hardest_negative(S, negative)
        counts = (hardest + margin > positive) & (positive < PERFECT)
        g_pos = polynomial(positive_coefficients, positive)
        g_neg = polynomial(negative_coefficients, hardest)
        return (g_pos.relu() + g_neg.relu()) * counts

    return bidirectional(direction, S, ids=ids, reduction=reduction)


class TripletWeightedMined(PairLoss):
    """:func:`triplet_weighted_mined` of the cosine similarities of two batches of embeddings.

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
    ) -> None:
        super().__init__(reduction=reduction)
        check_margin(margin)
        check_coefficients("positive_coefficients", positive_coefficients)
        check_coefficients("negative_coefficients", negative_coefficients)
        self.margin = margin
        self.positive_coefficients = tuple(positive_coefficients)
        self.negative_coefficients = tuple(negative_coefficients)

    def of_similarities(self, S: Tensor, *, ids: Tensor | None = None) -> Tensor:
        return triplet_weighted_mined(
            S,
            margin=self.margin,
            positive_coefficients=self.positive_coefficients,
            negative_coefficients=self.negative_coefficients,
            ids=ids,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, positive_coefficients={self.positive_coefficients}, "
            f"negative_coefficients={self.negative_coefficients}, reduction={self.reduction!r}"
        )
