"""What a batch looks like to a loss: how hard its negatives are, and whether the model has collapsed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crossmodal_losses.checks import check_embeddings, check_ids, check_margin
from crossmodal_losses.similarity import cosine_similarity, hardest_negative, is_negative

# The range of similarities below which a batch has collapsed. Those of unrelated embeddings in 1024 dimensions range
# over ten times as much.
COLLAPSED = 0.02


@dataclass(frozen=True)
class Diagnosis:
    """Tensors without dimensions, on the device of the embeddings; read them with ``float()`` when you log them.

    Attributes:
        positive: mean similarity of the B positives.
        hardest_negative: mean similarity of the hardest negatives, over all anchors of both directions that have
            one; NaN if none has.
        similarity: mean of all B x B similarities.
        spread: their standard deviation.
        violating: fraction, in [0, 1], of all (anchor, negative) of both directions with m + s_negative > s_positive;
            NaN if there is no negative.
        recall_x_to_y: in-batch R@1, in [0, 1]: the fraction of x whose positive beats all their negatives. A tie
            counts as a miss.
        recall_y_to_x: the same for y.
        collapsed: bool; all similarities lie within 0.02 of each other. triplet_max then stays at 2 m, triplet_sum at
            2 m (B - 1), and triplet_weighted falls to 0.51 with all similarities at 0.5. False where there is no
            negative, and where there is a NaN.
    """

    positive: Tensor
    hardest_negative: Tensor
    similarity: Tensor
    spread: Tensor
    violating: Tensor
    recall_x_to_y: Tensor
    recall_y_to_x: Tensor
    collapsed: Tensor


def _along_rows(S: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows as anchors: the sum of their hardest negatives, the number of violations, who found its positive."""
    positive, hardest, has_negative = S.diagonal(), hardest_negative(S, negative), negative.any(1)
    violating = (margin + S > positive[:, None]) & negative
    return torch.where(has_negative, hardest, 0).sum(), violating.sum(), (positive > hardest) | ~has_negative


@torch.no_grad()
def diagnose(x: Tensor, y: Tensor, ids: Tensor | None = None, *, margin: float = 0.2) -> Diagnosis:
    """Look at a batch through its similarities; costs one dense loss without gradient and does not synchronise.

    Args:
        x, y: floating ``[B, D]``, not necessarily normalised, on one device.
        ids: integers ``[B]``; pairs (i, j) of one id are no negatives. None: every j != i is a negative.
        margin: m, finite and >= 0.

    Raises:
        TypeError, ValueError: an argument is not as described.

    >>> float(diagnose(torch.eye(4), torch.eye(4)).recall_x_to_y)
    1.0
    >>> bool(diagnose(torch.ones(4, 2), torch.ones(4, 2)).collapsed)
    True
    """
    check_margin(margin)
    check_embeddings(x, y)
    check_ids(ids, x)
    S = cosine_similarity(x, y)
    negative = is_negative(ids, S)
    has_negative = negative.any(1)
    hardest_y, violating_y, found_y = _along_rows(S, negative, margin)
    hardest_x, violating_x, found_x = _along_rows(S.T, negative, margin)
    finite = torch.where(
        S.isfinite().all(), S.new_ones(()), torch.nan
    )  # comparisons would make plausible numbers of NaN
    return Diagnosis(
        positive=S.diagonal().mean(),
        hardest_negative=(hardest_y + hardest_x) / (2 * has_negative.sum()),
        similarity=S.mean(),
        spread=S.std(correction=0),
        violating=(violating_y + violating_x).to(S.dtype) / (2 * negative.sum()) * finite,
        recall_x_to_y=found_y.to(S.dtype).mean() * finite,
        recall_y_to_x=found_x.to(S.dtype).mean() * finite,
        collapsed=(S.amax() - S.amin() <= COLLAPSED) & has_negative.any(),
    )
