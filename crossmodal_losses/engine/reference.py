"""A loss as plain differentiable torch over S: what the engines equal, and what they fall back on.

One direction, written once, is read along the rows of S and along those of its transpose.
"""

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction, check_ids, check_reduction, check_similarities
from crossmodal_losses.engine.rules import Rule
from crossmodal_losses.similarity import at_least_float32, is_negative


def bidirectional(rule: Rule, S: Tensor, *, ids: Tensor | None, reduction: Reduction) -> Tensor:
    """The rule over the rows of S plus that over its columns, reduced over the anchors, ``[B, B] -> []`` or ``[B]``.

    An anchor without negatives contributes exactly 0 and a zero gradient. An anchor whose row or column holds a NaN or
    an inf contributes NaN, and so does its gradient.
    """
    check_similarities(S)
    check_ids(ids, S)
    check_reduction(reduction)
    S = at_least_float32(S)
    negative = is_negative(ids, S)
    has_negative = negative.any(1)

    def rows(S: Tensor) -> Tensor:
        positive = S.diagonal()
        loss = torch.where(has_negative, rule.of_anchor(positive, rule.fold.of_rows(S, negative)), 0)
        # A factor of 1 or NaN. Through the positive it reaches the gradient too, past every hinge and mask.
        return (loss + 0 * positive) * torch.where(S.isfinite().all(1), S.new_ones(()), torch.nan)

    anchors = rows(S) + rows(S.T)
    if reduction == "none":
        return anchors
    return anchors.mean() if reduction == "mean" else anchors.sum()
