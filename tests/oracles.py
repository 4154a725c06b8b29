"""Every loss as a naive loop, and the metrics, to be read beside the paper. Slow on purpose; imports nothing of ours.

A loop takes S, float64 [B, B], an anchor i, its negatives j, and the settings of its loss, and returns what the anchor
adds to the sum over i in the equation, both directions. Only single entries of S are touched, one at a time.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


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


def negatives(i: int, size: int, ids: Sequence[int] | None) -> list[int]:
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


def hardest_of_both(S: Tensor, i: int, negatives: list[int]) -> list[Tensor]:
    """Return the hardest of the row and that of the column, if there is a negative."""
    return [hardest([T[i, j] for j in negatives]) for T in (S, S.T) if negatives]


def power_sum(coefficients: Sequence[float], s: Tensor) -> Tensor:
    """Equations 4 and 5."""
    total = 0 * s
    for power, coefficient in enumerate(coefficients):
        total = total + coefficient * s**power
    return total


def triplet_sum(S: Tensor, i: int, negatives: list[int], margin: float = 0.2) -> Tensor:
    """Equation 2."""
    total = 0 * S[i, i]
    for j in negatives:
        total = total + hinge(margin + S[i, j] - S[i, i]) + hinge(margin + S[j, i] - S[i, i])
    return total


def triplet_max(S: Tensor, i: int, negatives: list[int], margin: float = 0.2) -> Tensor:
    """Equation 3."""
    total = 0 * S[i, i]
    for n in hardest_of_both(S, i, negatives):
        total = total + hinge(margin + n - S[i, i])
    return total


def triplet_weighted(
    S: Tensor,
    i: int,
    negatives: list[int],
    positive_coefficients: Sequence[float] = (0.5, -0.7, 0.2),
    negative_coefficients: Sequence[float] = (0.03, -0.4, 0.9),
) -> Tensor:
    """Equation 6."""
    total = 0 * S[i, i]
    for n in hardest_of_both(S, i, negatives):
        total = total + hinge(power_sum(positive_coefficients, S[i, i]) + power_sum(negative_coefficients, n))
    return total


def triplet_weighted_mined(
    S: Tensor,
    i: int,
    negatives: list[int],
    margin: float = 0.2,
    positive_coefficients: Sequence[float] = (0.5, -0.7, 0.2),
    negative_coefficients: Sequence[float] = (0.03, -0.4, 0.9),
) -> Tensor:
    """Wei et al. 2020, the rule of the published code."""
    total = 0 * S[i, i]
    for n in hardest_of_both(S, i, negatives):
        if n + margin > S[i, i] and S[i, i] < 1 - 1e-5:
            total = total + hinge(power_sum(positive_coefficients, S[i, i]))
            total = total + hinge(power_sum(negative_coefficients, n))
    return total


def nt_xent(S: Tensor, i: int, negatives: list[int], temperature: float = 0.07) -> Tensor:
    """Equation 7; the positive stays in both denominators, other pairs of one id leave them."""
    positive = in_row = in_column = torch.exp(S[i, i] / temperature)
    for j in negatives:
        in_row = in_row + torch.exp(S[i, j] / temperature)
        in_column = in_column + torch.exp(S[j, i] / temperature)
    return -torch.log(positive / in_row) - torch.log(positive / in_column)


LOOPS: dict[str, Callable[..., Tensor]] = {
    "triplet_sum": triplet_sum,
    "triplet_max": triplet_max,
    "triplet_weighted": triplet_weighted,
    "triplet_weighted_mined": triplet_weighted_mined,
    "nt_xent": nt_xent,
}


def oracle(name: str, S: Tensor, ids: Tensor | None = None, reduction: str = "none", **settings: Any) -> Tensor:
    """Return the loss called name of S, float64 [B, B]."""
    known = None if ids is None else ids.tolist()
    anchors = torch.stack([LOOPS[name](S, i, negatives(i, len(S), known), **settings) for i in range(len(S))])
    return {"mean": anchors.mean(), "sum": anchors.sum(), "none": anchors}[reduction]


def retrieval_metrics(S: Tensor, query_ids: Sequence[int], candidate_ids: Sequence[int], k: int) -> dict[str, Any]:
    """Sort the candidates of every query, a row of S; of equal similarities the relevant ones come last."""
    ranks, precisions = [], []
    for q in range(len(S)):
        relevant = [candidate == query_ids[q] for candidate in candidate_ids]
        order = sorted(range(len(relevant)), key=lambda c: (-float(S[q, c]), relevant[c]))
        places = [place for place, c in enumerate(order, start=1) if relevant[c]]
        ranks.append(places[0])
        hits = [(n, place) for n, place in enumerate(places, start=1) if place <= k]
        precisions.append(sum(n / place for n, place in hits) / min(k, len(places)))
    return {
        "recall": sum(rank <= k for rank in ranks) / len(ranks),
        "map": sum(precisions) / len(precisions),
        "median_rank": statistics.median(ranks),
        "mean_rank": sum(ranks) / len(ranks),
        "ranks": ranks,
    }
