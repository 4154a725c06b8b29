"""Equation 2: every negative that comes within the margin of the positive costs."""

from torch import Tensor

from crossmodal_losses.checks import Reduction, check_margin
from crossmodal_losses.losses.bidirectional import PairLoss, bidirectional


def triplet_sum(S: Tensor, *, margin: float = 0.2, ids: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    r"""Triplet loss, summed over all negatives.

    .. math:: L = \frac{1}{B} \sum_i \sum_{j \neq i} [m + s_{ij} - s_{ii}]_+ + [m + s_{ji} - s_{ii}]_+

    Mei et al. 2022, equation 2.

    Args:
        S: similarities, floating ``[B, B]``; the positives are on the diagonal.
        margin: m, finite and >= 0.
        ids: integers ``[B]``; j is no negative of i if their ids are equal. None: every j != i is a negative.
        reduction: "mean" is the formula above; "sum" leaves out 1/B; "none" gives the ``[B]`` terms of the outer sum.

    Returns:
        A scalar (``[B]`` for "none"), float64 if S is, else float32.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Note:
        The sum over negatives is not divided by their number: the loss grows with B. [z]_+ has gradient 0 at z = 0.
        If all similarities are equal (the model has collapsed) the loss is 2 m (B - 1).

    >>> import torch
    >>> triplet_sum(torch.tensor([[0.5, 0.4], [0.0, 0.5]]))
    tensor(0.1000)
    """
    check_margin(margin)

    def direction(S: Tensor, negative: Tensor) -> Tensor:
        positive = S.diagonal()[:, None]
        return ((margin + S - positive).relu() * negative).sum(1)

    return bidirectional(direction, S, ids=ids, reduction=reduction)


class TripletSum(PairLoss):
    """:func:`triplet_sum` of the cosine similarities of two batches of embeddings.

    >>> import torch
    >>> loss = TripletSum(margin=0.2)
    >>> loss(torch.eye(3), torch.eye(3))  # perfectly aligned
    tensor(0.)
    """

    def __init__(self, *, margin: float = 0.2, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        check_margin(margin)
        self.margin = margin

    def of_similarities(self, S: Tensor, *, ids: Tensor | None = None) -> Tensor:
        return triplet_sum(S, margin=self.margin, ids=ids, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, reduction={self.reduction!r}"
