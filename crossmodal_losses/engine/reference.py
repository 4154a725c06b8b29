"""A loss as plain differentiable torch over the whole of S: the definition that every engine equals.

One direction is written once, and read along the rows of S and along those of its transpose.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal_losses.checks import (
    Batch,
    Reduction,
    check_direction_weights,
    check_ids,
    check_reduction,
    check_similarities,
)
from crossmodal_losses.engine.objective import Objective, Total
from crossmodal_losses.similarity import at_least_float32, is_negative, similarities


def reference_loss(
    objective: Objective,
    S: Tensor,
    *,
    ids: Tensor | None,
    reduction: Reduction,
    direction_weights: Sequence[float] = (1.0, 1.0),
) -> Tensor:
    """Add the loss over the rows of S and over its columns, reduced over the anchors, ``[B, B] -> []`` or ``[B]``.

    An anchor without negatives contributes exactly 0 and a zero gradient. An anchor whose row or column holds a NaN or
    an inf contributes NaN, and so does its gradient.
    """
    S = check_similarities(S)
    ids = check_ids(ids, S)
    check_reduction(reduction)
    total = Total(reduction, check_direction_weights(direction_weights))
    return _loss(objective, at_least_float32(S), None, None, Batch(S, S, ids=ids), total)


def reference_loss_of_batch(batch: Batch, objective: Objective, total: Total) -> Tensor:
    """The same of a batch that is checked already."""
    x, y, negatives_x, negatives_y = batch.embeddings
    S = similarities(x, y)
    with_negatives_y = None if negatives_y is None else similarities(x, negatives_y)
    with_negatives_x = None if negatives_x is None else similarities(y, negatives_x)
    return _loss(objective, S, with_negatives_y, with_negatives_x, batch, total)


def _loss(
    objective: Objective,
    S: Tensor,
    with_negatives_y: Tensor | None,  # similarities of x with these, [B, N]
    with_negatives_x: Tensor | None,  # of y with these, [B, M]
    batch: Batch,
    total: Total,
) -> Tensor:
    ids = batch.ids
    objective = objective.without_ids() if ids is None else objective
    in_batch = is_negative(ids, S)
    of_x, of_y = (
        _others(with_negatives_y, ids, batch.negative_ids_y),
        _others(with_negatives_x, ids, batch.negative_ids_x),
    )

    def over_rows(*blocks: tuple[Tensor, Tensor]) -> Tensor:
        similarities, negatives = zip(*blocks, strict=True)
        S, negative = (part[0] if len(part) == 1 else torch.cat(part, 1) for part in (similarities, negatives))
        positive = S.diagonal()
        anchors = objective.anchor_loss(positive, objective.aggregation.over_rows(S, negative))
        if objective.needs_negatives:
            anchors = torch.where(negative.any(1), anchors, 0)
        # A factor of 1 or NaN. Through the positive it reaches the gradient too, past every hinge and mask.
        nan_factor = torch.where(S.isfinite().all(1), S.new_ones(()), torch.nan)
        return (anchors + 0 * positive) * nan_factor

    if objective.pairs_once:
        anchors = over_rows((S, in_batch), *of_x, *of_y)
    else:
        directions = ((S, in_batch), *of_x), ((S.T, in_batch), *of_y)
        parts = [over_rows(*blocks) * w for blocks, w in zip(directions, total.weights, strict=True) if w]
        anchors = sum(parts[1:], parts[0])
    if total.reduction == "none":
        return anchors
    return anchors.mean() if total.reduction == "mean" else anchors.sum()


def _others(S: Tensor | None, ids: Tensor | None, other_ids: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Similarities of the anchors with candidates without a partner, if there are any, and which are negatives."""
    if S is None:
        return []
    if ids is None or other_ids is None:
        return [(S, torch.ones_like(S, dtype=torch.bool))]
    return [(S, ids[:, None] != other_ids)]
