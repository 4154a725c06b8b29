"""Statistics of a batch: how hard its negatives are, and whether its embeddings have collapsed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crossmodal_losses.checks import check_batch, check_margin
from crossmodal_losses.similarity import cosine_similarity, hardest_negative, is_negative

# A batch has collapsed if its similarities range over no more than this. Similarities of unrelated embeddings in 1024
# dimensions range over ten times as much.
COLLAPSED = 0.02


@dataclass(frozen=True)
class Diagnosis:
    """Statistics of a batch, as tensors without dimensions on the device of the embeddings.

    ``float()`` of one of them synchronises with the device.

    Attributes:
        positive: mean similarity of the B positives.
        hardest_negative: mean similarity of the hardest negatives, over all anchors of both directions that have
            negatives; NaN if there is no negative.
        similarity: mean of all B x B similarities.
        spread: standard deviation of all B x B similarities.
        violating: fraction, in [0, 1], of all (anchor, negative) of both directions with m + s_negative > s_positive;
            NaN if there is no negative.
        recall_x_to_y: R@1 within the batch, in [0, 1]: the fraction of anchors x_i whose positive is more similar than
            all their negatives. A tie counts as a miss.
        recall_y_to_x: the same for the anchors y_i.
        collapsed: bool; all similarities lie within 0.02 of each other. triplet_max then stays at 2 m, triplet_sum at
            2 m (B - 1), and triplet_weighted falls to 0.51 with all similarities at 0.5. False if there is no
            negative, or a NaN.
    """

    positive: Tensor
    hardest_negative: Tensor
    similarity: Tensor
    spread: Tensor
    violating: Tensor
    recall_x_to_y: Tensor
    recall_y_to_x: Tensor
    collapsed: Tensor


def _statistics_of_rows(S: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the rows' hardest negatives, the number of violating ones, and the rows that find their positive."""
    positive, hardest, has_negative = S.diagonal(), hardest_negative(S, negative), negative.any(1)
    violating = (margin + S > positive[:, None]) & negative
    return torch.where(has_negative, hardest, 0).sum(), violating.sum(), (positive > hardest) | ~has_negative


@torch.no_grad()
def diagnose(x: Tensor, y: Tensor, ids: Tensor | None = None, *, margin: float = 0.2) -> Diagnosis:
    """Compute statistics of a batch's similarities, at the cost of one dense loss without gradient.

    The device is not synchronised.

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
    margin = check_margin("margin", margin)
    x, y, *_, ids, _, _ = check_batch(x, y, ids)
    S = cosine_similarity(x, y)
    negative = is_negative(ids, S)
    has_negative = negative.any(1)
    hardest_y, violating_y, found_y = _statistics_of_rows(S, negative, margin)
    hardest_x, violating_x, found_x = _statistics_of_rows(S.T, negative, margin)
    # A factor for statistics that come from comparisons, which would make plausible numbers of NaN.
    nan_factor = torch.where(S.isfinite().all(), S.new_ones(()), torch.nan)
    return Diagnosis(
        positive=S.diagonal().mean(),
        hardest_negative=(hardest_y + hardest_x) / (2 * has_negative.sum()),
        similarity=S.mean(),
        spread=S.std(correction=0),
        violating=(violating_y + violating_x).to(S.dtype) / (2 * negative.sum()) * nan_factor,
        recall_x_to_y=found_y.to(S.dtype).mean() * nan_factor,
        recall_y_to_x=found_x.to(S.dtype).mean() * nan_factor,
        collapsed=(S.amax() - S.amin() <= COLLAPSED) & has_negative.any(),
    )
