"""Equations 4 to 6: a polynomial weight for the positive and one for the hardest negative."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction, check_coefficients
from crossmodal_losses.engine.objective import Formula
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.losses.base import PairLoss
from crossmodal_losses.losses.hardest import HardestObjective

# Section 3.2 of the paper, after Wei et al. 2020; constant term first.
POSITIVE_COEFFICIENTS = (0.5, -0.7, 0.2)
NEGATIVE_COEFFICIENTS = (0.03, -0.4, 0.9)


def polynomial(coefficients: Sequence[float], s: Tensor) -> Tensor:
    """Equations 4 and 5: ``c[0] + c[1] s + c[2] s^2 + ...``, for every entry of s."""
    if len(coefficients) == 1:
        return torch.full_like(s, coefficients[0])
    *rest, linear, leading = coefficients
    value = torch.rsub(s, linear, alpha=-leading)  # linear + leading s, in one operator
    for coefficient in reversed(rest):
        value = value * s + coefficient
    return value


def derivative(coefficients: Sequence[float]) -> list[float]:
    """Coefficients of the derivative of a polynomial, constant term first."""
    return [power * coefficient for power, coefficient in enumerate(coefficients)][1:] or [0.0]


def of_degree_2(*polynomials: Sequence[float]) -> tuple[float, ...] | None:
    """Three coefficients for each polynomial; None if one is of a higher degree."""
    if any(len(coefficients) > 3 for coefficients in polynomials):
        return None
    return tuple(number for coefficients in polynomials for number in (*coefficients, 0.0, 0.0)[:3])


@dataclass(frozen=True)
class TripletWeightedObjective(HardestObjective):
    """[G_pos(p) + G_neg(max_j n_j)]_+."""

    positive_coefficients: Sequence[float]
    negative_coefficients: Sequence[float]

    checks: ClassVar = {"positive_coefficients": check_coefficients, "negative_coefficients": check_coefficients}

    def anchor_loss(self, positive: Tensor, hardest: Tensor) -> Tensor:
        g_pos = polynomial(self.positive_coefficients, positive)
        g_neg = polynomial(self.negative_coefficients, hardest)
        return (g_pos + g_neg).relu()

    def derivatives(self, positive: Tensor, hardest: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """G_pos'(p) and G_neg'(n) where the hinge is above 0."""
        counts = loss.sign()
        return (
            counts * polynomial(derivative(self.positive_coefficients), positive),
            counts * polynomial(derivative(self.negative_coefficients), hardest),
        )

    @property
    def formula(self) -> Formula | None:
        numbers = of_degree_2(self.positive_coefficients, self.negative_coefficients)
        return None if numbers is None else Formula("polynomials", numbers)


def triplet_weighted(
    S: Tensor,
    *,
    positive_coefficients: Sequence[float] = POSITIVE_COEFFICIENTS,
    negative_coefficients: Sequence[float] = NEGATIVE_COEFFICIENTS,
    direction_weights: Sequence[float] = (1.0, 1.0),
    ids: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Maximum polynomial loss: the positive and the hardest negative, each weighted by a polynomial.

    .. math::
        L = \frac{1}{B} \sum_i [G_{pos}(s_{ii}) + G_{neg}(\max_{j \neq i} s_{ij})]_+
                             + [G_{pos}(s_{ii}) + G_{neg}(\max_{j \neq i} s_{ji})]_+ \\
        G_{pos}(s) = a_0 + a_1 s + a_2 s^2 + \dots, \qquad G_{neg}(s) = b_0 + b_1 s + b_2 s^2 + \dots

    Mei et al. 2022, equations 4 to 6; Wei et al. 2020.

    Args:
        S: similarities, floating ``[B, B]``; the positives are on the diagonal.
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
        "The max term in the equation will select the hardest negative pair": the polynomial is that of the hardest
        negative's similarity, which equals the maximum power by power wherever all similarities are >= 0. Of equal
        hardest negatives the lowest index takes the whole gradient. With the paper's coefficients G_neg falls until
        s = 2/9, so weak hard negatives are drawn closer; and the loss of a collapsed model, all similarities equal, is
        least at similarity 0.5, where it is 0.51.

    >>> triplet_weighted(torch.full((4, 4), 0.5))
    tensor(0.5100)
    """
    objective = TripletWeightedObjective(positive_coefficients, negative_coefficients)
    return reference_loss(objective, S, ids=ids, reduction=reduction, direction_weights=direction_weights)


class TripletWeighted(PairLoss):
    """:func:`triplet_weighted` of the cosine similarities of two batches of embeddings.

    Settings are those of :func:`triplet_weighted`; the others those of every :class:`PairLoss`.

    >>> TripletWeighted()(torch.eye(3), torch.eye(3))  # G_pos(1) + G_neg(0) = 0.03, both ways
    tensor(0.0600)
    """

    objective_type = TripletWeightedObjective
    positive_coefficients: Sequence[float]
    negative_coefficients: Sequence[float]

    def __init__(
        self,
        *,
        positive_coefficients: Sequence[float] = POSITIVE_COEFFICIENTS,
        negative_coefficients: Sequence[float] = NEGATIVE_COEFFICIENTS,
        direction_weights: Sequence[float] = (1.0, 1.0),
        reduction: Reduction = "mean",
        tile_size: int | None = None,
    ) -> None:
        polynomials = {"positive_coefficients": positive_coefficients, "negative_coefficients": negative_coefficients}
        super().__init__(direction_weights=direction_weights, reduction=reduction, tile_size=tile_size, **polynomials)
