"""Equation 3: only the hardest negative of each anchor costs."""

from torch import Tensor

from crossmodal_losses.checks import Reduction, check_margin
from crossmodal_losses.engine.objective import Hardest
from crossmodal_losses.engine.reference import bidirectional
from crossmodal_losses.engine.rules import Rule
from crossmodal_losses.losses.base import PairLoss


class TripletMaxRule(Rule):
    """[m + max_j n_j - p]_+"""

    def __init__(self, margin: float) -> None:
        self.margin = margin

    @property
    def fold(self) -> Hardest:
        return Hardest()

    def of_anchor(self, positive: Tensor, folded: Tensor) -> Tensor:
        return (self.margin + folded - positive).relu()

    def slopes(self, positive: Tensor, folded: Tensor) -> tuple[Tensor, Tensor]:
        violating = self.of_anchor(positive, folded).sign()
        return -violating, violating

    def numbers(self) -> list[float]:
        return [self.margin]

    @classmethod
    def from_numbers(cls, numbers: list[float], parameter: Tensor | None) -> "TripletMaxRule":
        return cls(*numbers)


def triplet_max(S: Tensor, *, margin: float = 0.2, ids: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    r"""Triplet loss of the hardest negative.

    .. math:: L = \frac{1}{B} \sum_i \max_{j \neq i} [m + s_{ij} - s_{ii}]_+ + \max_{j \neq i} [m + s_{ji} - s_{ii}]_+

    Mei et al. 2022, equation 3; Faghri et al. 2018 (VSE++).

    Args:
        S: similarities, floating ``[B, B]``; the positives are on the diagonal.
        margin: m, finite and >= 0.
        ids: integers ``[B]``; j is no negative of i if their ids are equal. None: every j != i is a negative.
        reduction: "mean" is the formula above; "sum" leaves out 1/B; "none" gives the ``[B]`` terms of the sum.

    Returns:
        A scalar (``[B]`` for "none"), float64 if S is, else float32.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Note:
        Of equal hardest negatives the lowest index takes the whole gradient. [z]_+ has gradient 0 at z = 0.
        If all similarities are equal (the model has collapsed) the loss is 2 m, whatever B; see ``diagnose``.

    >>> import torch
    >>> triplet_max(torch.full((4, 4), 0.5))
    tensor(0.4000)
    """
    check_margin(margin)
    return bidirectional(TripletMaxRule(margin), S, ids=ids, reduction=reduction)


class TripletMax(PairLoss):
    """:func:`triplet_max` of the cosine similarities of two batches of embeddings.

    Its settings; ``reduction`` and ``tile_size`` are those of every :class:`PairLoss`.

    >>> import torch
    >>> TripletMax(margin=0.5)(torch.eye(3), torch.eye(3).flip(0))  # two of three pairs are swapped
    tensor(2.)
    """

    def __init__(self, *, margin: float = 0.2, reduction: Reduction = "mean", tile_size: int | None = None) -> None:
        super().__init__(reduction=reduction, tile_size=tile_size)
        check_margin(margin)
        self.margin = margin

    @property
    def rule(self) -> TripletMaxRule:
        return TripletMaxRule(self.margin)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, reduction={self.reduction!r}, tile_size={self.tile_size}"
