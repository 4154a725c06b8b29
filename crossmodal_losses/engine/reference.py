"""A loss as plain differentiable torch over the whole of S: the definition that every engine equals.

One direction is written once, and read along the rows of S and along those of its transpose.
"""

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction, check_ids, check_reduction, check_similarities
from crossmodal_losses.engine.objective import Objective
from crossmodal_losses.similarity import at_least_float32, is_negative


def reference_loss(objective: Objective, S: Tensor, *, ids: Tensor | None, reduction: Reduction) -> Tensor:
    """Add the loss over the rows of S and over its columns, reduced over the anchors, ``[B, B] -> []`` or ``[B]``.

    An anchor without negatives contributes exactly 0 and a zero gradient. An anchor whose row or column holds a NaN or
    an inf contributes NaN, and so does its gradient.
    """
    S = check_similarities(S)
    ids = check_ids(ids, S)
    check_reduction(reduction)
    S = at_least_float32(S)
    negative = is_negative(ids, S)
    has_negative = negative.any(1)

    def over_rows(S: Tensor) -> Tensor:
        positive = S.diagonal()
        anchors = objective.anchor_loss(positive, objective.aggregation.over_rows(S, negative))
        # A factor of 1 or NaN. Through the positive it reaches the gradient too, past every hinge and mask.
        nan_factor = torch.where(S.isfinite().all(1), S.new_ones(()), torch.nan)
        return (torch.where(has_negative, anchors, 0) + 0 * positive) * nan_factor

    anchors = over_rows(S) + over_rows(S.T)
    if reduction == "none":
        return anchors
    return anchors.mean() if reduction == "mean" else anchors.sum()
