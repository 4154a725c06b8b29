"""What the losses of the hardest negative have in common."""

from abc import abstractmethod

import torch
from torch import Tensor

from crossmodal_losses.engine.aggregation import EXCLUDED, HardestNegative, along
from crossmodal_losses.engine.dense import FEWEST_TO_GATHER
from crossmodal_losses.engine.objective import Objective
from crossmodal_losses.engine.square import Saved, Square, exclude


class HardestObjective(Objective):
    """A function of the positive and the hardest negative."""

    aggregation = HardestNegative()

    @abstractmethod
    def derivatives(self, positive: Tensor, hardest: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Both are tensors: every such loss depends on the positive directly."""

    @property
    def square(self) -> Square:
        return SquareOfHardest(self)


class SquareOfHardest(Square):
    """Each direction adds one entry a row, or one a column, to a matrix of zeros."""

    largest = FEWEST_TO_GATHER - 1

    def __init__(self, objective: HardestObjective) -> None:
        self.objective = objective

    def losses(self, S: Tensor, same: Tensor | None) -> tuple[Tensor, Saved]:
        positive = S.diagonal().clone()
        exclude(S, same, EXCLUDED)
        # Of equal ones, the first.
        (of_rows, index_of_rows), (of_columns, index_of_columns) = S.max(1, keepdim=True), S.max(0, keepdim=True)
        hardest = torch.cat([of_rows.mT, of_columns])
        if same is None and S.shape[0] > 1:
            losses = self.objective.anchor_loss(positive, hardest)
        else:
            lonely = hardest == EXCLUDED
            hardest.masked_fill_(lonely, 0)
            losses = self.objective.anchor_loss(positive, hardest).masked_fill_(lonely, 0)
        return losses, (positive, hardest, index_of_rows, index_of_columns, losses)

    def grad_S(self, saved: Saved, upstream: Tensor, divisor: float) -> Tensor:
        positive, hardest, index_of_rows, index_of_columns, losses = saved
        of_positive, of_hardest = self.objective.derivatives(positive, hardest, losses)
        upstream = upstream / divisor
        if upstream.dim():  # that of every anchor
            of_positive, of_hardest = of_positive * upstream, of_hardest * upstream
        of_rows, of_columns = of_hardest.unbind()
        grad = upstream.new_zeros(2 * positive.shape)
        grad.scatter_(1, index_of_rows, along(of_rows, 1)).scatter_add_(0, index_of_columns, along(of_columns, 0))
        grad.diagonal().add_(of_positive.sum(0))
        return grad if upstream.dim() else grad.mul_(upstream)
