"""Both directions of a loss from the whole of S, in the fewest operators.

At the batch sizes of the paper, calling an operator takes longer than what it computes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.engine.operands import LONGEST, SHORTEST

Saved = tuple[Tensor, ...]


class SquareBatch(NamedTuple):
    """Pairs, and their lengths."""

    x: Tensor  # [B, D]
    y: Tensor
    norms: Tensor  # [2, B]

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "SquareBatch | None":
        """None where lengths may over- or underflow, or are not numbers."""
        norms = torch.stack((torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(y, dim=1)))
        shortest, longest = norms.aminmax()
        if not (float(shortest) > SHORTEST and float(longest) < LONGEST):
            return None
        return cls(x, y, norms)

    def divide_by_norms(self, values: Tensor) -> Tensor:
        """Divide ``[B, B]`` by the lengths of rows and columns, in place."""
        norm_x, norm_y = self.norms.unbind()
        return values.div_(norm_x.unsqueeze(1)).div_(norm_y)

    @property
    def S(self) -> Tensor:
        """All similarities."""
        return self.divide_by_norms(torch.mm(self.x, self.y.T))

    @property
    def keeps_similarities(self) -> bool:
        """Whether the backward pass takes S, because it has fewer entries than x or y."""
        return self.x.shape[0] < self.x.shape[1]

    def gradients(
        self, grad_S: Tensor, S: Tensor | None, needs_grad: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        r"""dL/dx, dL/dy and dL(c S)/dc at c = 1, where needed, given dL/dS, which is overwritten; and S, if it is kept.

        With g the gradient of x as if its length were fixed,

        .. math:: dL/dx_i = g_i - (g_i \cdot x_i) x_i / |x_i|^2, \quad g_i \cdot x_i = \sum_j s_{ij} dL/ds_{ij}, \quad
            dL(cS)/dc = \sum_{ij} s_{ij} dL/ds_{ij}
        """
        x, y, norms = self
        needs_x, needs_y, needs_scale = needs_grad
        if S is not None:
            products = torch.mul(S, grad_S)
            dots = [products.sum(1), products.sum(0)]
        grad_products = self.divide_by_norms(grad_S)
        # If the parameter alone needs a gradient, that of x is computed for its dot products, unless S is kept.
        grad_x = torch.mm(grad_products, y) if needs_x or (S is None and not needs_y) else None
        grad_y = torch.mm(grad_products.T, x) if needs_y else None
        if S is None:
            dots = [(grad * rows).sum(1) for grad, rows in ((grad_x, x), (grad_y, y)) if grad is not None]
        # Where there is one gradient, its row of products fills both rows, and the other is not used.
        dot = torch.stack(dots if len(dots) == 2 else 2 * dots)
        grad_scale = dot[0].sum() if needs_scale else None
        of_x, of_y = dot.div_(norms).div_(norms).unsqueeze(2).unbind()
        if grad_x is not None:
            grad_x.addcmul_(x, of_x, value=-1)
        if grad_y is not None:
            grad_y.addcmul_(y, of_y, value=-1)
        return grad_x if needs_x else None, grad_y, grad_scale


class Square(ABC):
    """The losses of all anchors of both directions, given S, and dL/dS. Directions are rows of S, and its columns."""

    largest: ClassVar[float] = math.inf  # B, up to which this is faster than the form for every batch
    shifts: ClassVar[bool] = False  # whether the parameter adds to S, too

    @abstractmethod
    def losses(self, S: Tensor, same: Tensor | None) -> tuple[Tensor, Saved]:
        """The losses of the anchors, ``[2, B]`` (``[1, B]`` if every pair counts once), and what the derivative needs.

        ``same``, bool ``[B, B]``, says which pairs have one id; None: only those on the diagonal. An anchor without a
        negative costs exactly 0. S may be overwritten.
        """

    @abstractmethod
    def grad_S(self, saved: Saved, upstream: Tensor, divisor: float) -> Tensor:
        """dL/dS, where the gradient of the losses of all anchors, of either direction, is upstream / divisor.

        Upstream is ``[]`` or ``[B]``.
        """

    def grad_parameter(self, grad_scale: Tensor, grad_shift: Tensor | None) -> Tensor:
        """The gradient of the aggregation's parameter, given dL(c S)/dc at c = 1; if it shifts, dL(S + c)/dc at 0."""
        raise NotImplementedError


def exclude(S: Tensor, same: Tensor | None, value: float) -> Tensor:
    """Put a value in the place of pairs that are no negatives."""
    return S.fill_diagonal_(value) if same is None else S.masked_fill_(same, value)
