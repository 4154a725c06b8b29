"""Every loss as a naive loop, and the metrics, to be read beside the paper. Slow on purpose; imports nothing of ours.

A loop takes the similarities of one anchor, float64, as single numbers: that of its pair, those of its negatives, and
those of other candidates of its id; and the settings of its loss. It returns what the anchor adds to the sum over i in
the equation, in one direction.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Similarities = list[Tensor]


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


def hardest(similarities: Similarities) -> Tensor:
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


def triplet_sum(pair: Tensor, negatives: Similarities, same: Similarities, margin: float = 0.2) -> Tensor:
    """Equation 2."""
    total = 0 * pair
    for n in negatives:
        total = total + hinge(margin + n - pair)
    return total


def triplet_max(pair: Tensor, negatives: Similarities, same: Similarities, margin: float = 0.2) -> Tensor:
    """Equation 3."""
    return hinge(margin + hardest(negatives) - pair) if negatives else 0 * pair


def triplet_weighted(
    pair: Tensor,
    negatives: Similarities,
    same: Similarities,
    positive_coefficients: Sequence[float] = (0.5, -0.7, 0.2),
    negative_coefficients: Sequence[float] = (0.03, -0.4, 0.9),
) -> Tensor:
    """Equation 6."""
    if not negatives:
        return 0 * pair
    return hinge(power_sum(positive_coefficients, pair) + power_sum(negative_coefficients, hardest(negatives)))


def triplet_weighted_mined(
    pair: Tensor,
    negatives: Similarities,
    same: Similarities,
    margin: float = 0.2,
    positive_coefficients: Sequence[float] = (0.5, -0.7, 0.2),
    negative_coefficients: Sequence[float] = (0.03, -0.4, 0.9),
) -> Tensor:
    """Wei et al. 2020, the rule of the published code."""
    if not negatives or hardest(negatives) + margin <= pair or pair >= 1 - 1e-5:
        return 0 * pair
    return hinge(power_sum(positive_coefficients, pair)) + hinge(power_sum(negative_coefficients, hardest(negatives)))


def nt_xent(pair: Tensor, negatives: Similarities, same: Similarities, temperature: float = 0.07) -> Tensor:
    """Equation 7; the pair stays in the denominator, others of its id leave it."""
    denominator = torch.exp(pair / temperature)
    for n in negatives:
        denominator = denominator + torch.exp(n / temperature)
    return -torch.log(torch.exp(pair / temperature) / denominator)


def sup_con(pair: Tensor, negatives: Similarities, same: Similarities, temperature: float = 0.07) -> Tensor:
    """Khosla et al. 2020, L_out: the mean over the positives, the pair and others of its id."""
    denominator = 0 * pair
    for s in [pair, *same, *negatives]:
        denominator = denominator + torch.exp(s / temperature)
    total = 0 * pair
    for p in [pair, *same]:
        total = total - torch.log(torch.exp(p / temperature) / denominator)
    return total / (1 + len(same))


def sigmoid(
    pair: Tensor, negatives: Similarities, same: Similarities, temperature: float = 0.1, bias: float = -10.0
) -> Tensor:
    """Zhai et al. 2023; -log sigma(z) = log(1 + exp(-z))."""
    if not negatives:
        return 0 * pair
    total = torch.log1p(torch.exp(-(pair / temperature + bias)))
    for n in negatives:
        total = total + torch.log1p(torch.exp(n / temperature + bias))
    return total


LOOPS: dict[str, Callable[..., Tensor]] = {
    "triplet_sum": triplet_sum,
    "triplet_max": triplet_max,
    "triplet_weighted": triplet_weighted,
    "triplet_weighted_mined": triplet_weighted_mined,
    "nt_xent": nt_xent,
    "sup_con": sup_con,
    "sigmoid": sigmoid,
}
# Every pair (x_i, y_j) counts once, in the sum of x_i, not once for each of the two.
PAIRS_ONCE = {"sigmoid"}


class Others(NamedTuple):
    """Candidates without a partner: their similarities with every anchor, [B, N], and perhaps their ids."""

    S: Tensor
    ids: Tensor | None = None


def candidates_without_a_partner(
    i: int, ids: Tensor | None, others: Others | None
) -> tuple[Similarities, Similarities]:
    """Return the similarities of anchor i with those that are negatives, and with those of its id."""
    negatives: Similarities = []
    same: Similarities = []
    for j in range(0 if others is None else others.S.shape[1]):
        assert others is not None
        if ids is not None and others.ids is not None and int(others.ids[j]) == int(ids[i]):
            same.append(others.S[i, j])
        else:
            negatives.append(others.S[i, j])
    return negatives, same


def candidates(i: int, S: Tensor, ids: Tensor | None, others: Others | None) -> tuple[Similarities, Similarities]:
    """Return the similarities of anchor i, a row of S, with all its negatives, and with other candidates of its id."""
    more_negatives, more_same = candidates_without_a_partner(i, ids, others)
    in_batch = negatives(i, len(S), None if ids is None else ids.tolist())
    same = [S[i, j] for j in range(len(S)) if j != i and j not in in_batch]
    return [S[i, j] for j in in_batch] + more_negatives, same + more_same


def oracle(
    name: str,
    S: Tensor,
    ids: Tensor | None = None,
    reduction: str = "none",
    of_x: Others | None = None,
    of_y: Others | None = None,
    direction_weights: tuple[float, float] = (1.0, 1.0),
    **settings: Any,
) -> Tensor:
    """Return the loss called name of S, float64 [B, B], and of further candidates of the anchors x and y."""
    loop, anchors = LOOPS[name], []
    for i in range(len(S)):
        in_row, same_in_row = candidates(i, S, ids, of_x)
        if name in PAIRS_ONCE:
            without_partner, _ = candidates_without_a_partner(i, ids, of_y)
            anchors.append(loop(S[i, i], in_row + without_partner, same_in_row, **settings))
            continue
        in_column, same_in_column = candidates(i, S.T, ids, of_y)
        of_row, of_column = direction_weights
        anchors.append(
            of_row * loop(S[i, i], in_row, same_in_row, **settings)
            + of_column * loop(S[i, i], in_column, same_in_column, **settings)
        )
    losses = torch.stack(anchors)
    return {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]


def retrieval_metrics(S: Tensor, relevance: Sequence[Sequence[bool]], k: int) -> dict[str, Any]:
    """Sort the candidates of every query, a row of S; of equal similarities the relevant ones come last."""
    ranks, precisions = [], []
    for q, relevant in enumerate(relevance):
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
