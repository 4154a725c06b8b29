"""Every loss as a naive loop, to be read beside the paper. Slow on purpose; imports nothing of ours.

An oracle takes S, float64 [B, B], the ids (a list or None) and the settings of its loss, and returns [B]: what each
anchor adds to the sum over i in the equation, both directions. Only single entries of S are touched, one at a time.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Ids = Sequence[int] | None


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Equation 1; a row of zeros has similarity 0 to everything."""
    rows = []
    for a in x:
        row = []
        for b in y:
            dot = sum(p * q for p, q in zip(a, b, strict=True))
            length_a = math.sqrt(sum(float(p) ** 2 for p in a))
            length_b = math.sqrt(sum(float(q) ** 2 for q in b))
            row.append(float(dot) / (length_a * length_b) if length_a > 0 and length_b > 0 else 0.0)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def negatives(i: int, size: int, ids: Ids) -> list[int]:
    return [j for j in range(size) if j != i and (ids is None or ids[j] != ids[i])]


def hinge(z: Tensor) -> Tensor:
    return z if z > 0 else 0 * z


def hardest(similarities: list[Tensor]) -> Tensor:
    """Return the largest similarity; among equal ones the first."""
    best = similarities[0]
    for s in similarities[1:]:
        if s > best:
            best = s
    return best


def power_sum(coefficients: Sequence[float], s: Tensor) -> Tensor:
    """Equations 4 and 5."""
    total = 0 * s
    for power, coefficient in enumerate(coefficients):
        total = total + coefficient * s**power
    return total


def triplet_sum(S: Tensor, ids: Ids = None, margin: float = 0.2) -> Tensor:
    """Equation 2."""
    anchors = []
    for i in range(len(S)):
        anchor = 0 * S[i, i]
        for j in negatives(i, len(S), ids):
            anchor = anchor + hinge(margin + S[i, j] - S[i, i])
            anchor = anchor + hinge(margin + S[j, i] - S[i, i])
        anchors.append(anchor)
    return torch.stack(anchors)


def triplet_max(S: Tensor, ids: Ids = None, margin: float = 0.2) -> Tensor:
    """Equation 3."""
    anchors = []
    for i in range(len(S)):
        anchor = 0 * S[i, i]
        others = negatives(i, len(S), ids)
        if others:
            anchor = anchor + hinge(margin + hardest([S[i, j] for j in others]) - S[i, i])
            anchor = anchor + hinge(margin + hardest([S[j, i] for j in others]) - S[i, i])
        anchors.append(anchor)
    return torch.stack(anchors)


def triplet_weighted(
    S: Tensor,
    ids: Ids = None,
    positive_coefficients: Sequence[float] = (0.5, -0.7, 0.2),
    negative_coefficients: Sequence[float] = (0.03, -0.4, 0.9),
) -> Tensor:
    """Equation 6."""
    anchors = []
    for i in range(len(S)):
        anchor = 0 * S[i, i]
        others = negatives(i, len(S), ids)
        if others:
            for n in (hardest([S[i, j] for j in others]), hardest([S[j, i] for j in others])):
                anchor = anchor + hinge(power_sum(positive_coefficients, S[i, i]) + power_sum(negative_coefficients, n))
        anchors.append(anchor)
    return torch.stack(anchors)


def triplet_weighted_mined(
    S: Tensor,
    ids: Ids = None,
    margin: float = 0.2,
    positive_coefficients: Sequence[float] = (0.5, -0.7, 0.2),
    negative_coefficients: Sequence[float] = (0.03, -0.4, 0.9),
) -> Tensor:
    """Wei et al. 2020, the rule of the published code."""
    anchors = []
    for i in range(len(S)):
        anchor = 0 * S[i, i]
        others = negatives(i, len(S), ids)
        if others:
            for n in (hardest([S[i, j] for j in others]), hardest([S[j, i] for j in others])):
                if n + margin > S[i, i] and S[i, i] < 1 - 1e-5:
                    anchor = anchor + hinge(power_sum(positive_coefficients, S[i, i]))
                    anchor = anchor + hinge(power_sum(negative_coefficients, n))
        anchors.append(anchor)
    return torch.stack(anchors)


def nt_xent(S: Tensor, ids: Ids = None, temperature: float = 0.07) -> Tensor:
    """Equation 7; the positive stays in both denominators, other pairs of one id leave them."""
    anchors = []
    for i in range(len(S)):
        in_row = in_column = torch.exp(S[i, i] / temperature)
        for j in negatives(i, len(S), ids):
            in_row = in_row + torch.exp(S[i, j] / temperature)
            in_column = in_column + torch.exp(S[j, i] / temperature)
        positive = torch.exp(S[i, i] / temperature)
        anchors.append(-torch.log(positive / in_row) - torch.log(positive / in_column))
    return torch.stack(anchors)


ORACLES: dict[str, Callable[..., Tensor]] = {
    "triplet_sum": triplet_sum,
    "triplet_max": triplet_max,
    "triplet_weighted": triplet_weighted,
    "triplet_weighted_mined": triplet_weighted_mined,
    "nt_xent": nt_xent,
}
