"""What every loss shares: one direction, written once, read along the rows of S and along those of its transpose."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossmodal_losses.checks import Reduction, check_embeddings, check_ids, check_reduction, check_similarities
from crossmodal_losses.similarity import at_least_float32, cosine_similarity, is_negative

# (S [B, B], negative [B, B] bool) -> [B], the loss of each row as an anchor. Rows without negatives are overwritten.
Direction = Callable[[Tensor, Tensor], Tensor]


def bidirectional(direction: Direction, S: Tensor, *, ids: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce ``direction(S) + direction(S.T)`` over the anchors, ``[B, B] -> []`` (``[B]`` for "none").

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
        loss = torch.where(has_negative, direction(S, negative), 0)
        # A factor of 1 or NaN. Through the positive it reaches the gradient too, past every hinge and mask.
        return (loss + 0 * S.diagonal()) * torch.where(S.isfinite().all(1), S.new_ones(()), torch.nan)

    anchors = rows(S) + rows(S.T)
    if reduction == "none":
        return anchors
    return anchors.mean() if reduction == "mean" else anchors.sum()


class PairLoss(nn.Module, ABC):
    """A loss over two batches of embeddings whose i-th rows are a pair. It holds settings; its function does the work.

    A subclass says what it does to S in :meth:`of_similarities`, and is entered in ``LOSSES``.
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    @abstractmethod
    def of_similarities(self, S: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """The loss as a function of the similarities S, ``[B, B]``, with the settings of this module."""

    def forward(self, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            x, y: floating ``[B, D]``, not necessarily normalised, on one device; half precision is computed in float32.
            ids: integers ``[B]``; pairs (i, j) of one id are no negatives. None: every j != i is a negative.

        Returns:
            A scalar, or ``[B]`` for ``reduction="none"``; float64 if x or y is, else float32.
        """
        check_embeddings(x, y)
        check_ids(ids, x)
        return self.of_similarities(cosine_similarity(x, y), ids=ids)

    __call__: Callable[..., Tensor]
