"""The work on a tile of S between the matrix products, in plain torch, on every device."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal_losses.engine.aggregation import EXCLUDED, Aggregation, State, along
from crossmodal_losses.engine.compat import can_look


def numbered(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Number the ids so that a float holds them: comparing floats into floats is ten times faster."""
    in_order, order = ids.sort()
    number = torch.zeros_like(order)
    number[1:] = (in_order[1:] != in_order[:-1]).cumsum(0)
    return torch.empty_like(in_order, dtype=dtype).scatter_(0, order, number.to(dtype))


class Epilogue(ABC):
    """States and gradients of a tile, given the inner products of rows I of x and J of y.

    Inverse norms ``[2, B]``, ids and positives ``[B]`` are those of all pairs; dtype is that of the operands of the
    matrix products, in which the gradient of a tile is returned.
    """

    def __init__(
        self, inv_norm: Tensor, ids: Tensor | None, aggregation: Aggregation, positive: Tensor, dtype: torch.dtype
    ) -> None:
        self.inv_norm, self.aggregation, self.positive, self.dtype = inv_norm, aggregation, positive, dtype
        self.ids = None if ids is None else numbered(ids, inv_norm.dtype)

    def take(self, products: Tensor, I: slice, J: slice) -> None:  # noqa: E741
        """Set the tile that the other methods work on; it may be overwritten."""
        self.tile, self.I, self.J = products, I, J

    @abstractmethod
    def states(self) -> tuple[State, State]:
        """Compute the states of the tile's rows as anchors, and of its columns."""

    @abstractmethod
    def grad_products(self, state: State, factors: Tensor) -> Tensor:
        """Compute dL/ds_ij / (|x_i| |y_j|), the gradient of the tile's inner products; ends the work on the tile.

        State (empty for one pass) and factors are those of all anchors, each part ``[2, B]``.
        """

    @abstractmethod
    def any_gradient(self) -> bool:
        """Return whether a pair of the tile has a gradient; true where looking would take waiting for the device."""

    @abstractmethod
    def grad_parameter(self) -> Tensor:
        """Contribution of the tile to the gradient of the aggregation's parameter."""


class Plain(Epilogue):
    """Plain torch epilogue; needs two more t x t buffers."""

    _buffers: Sequence[Tensor] = ()

    def take(self, products: Tensor, I: slice, J: slice) -> None:  # noqa: E741
        """Turn the inner products into similarities, exclude pairs that are no negatives, and prepare the tile."""
        super().take(products, I, J)
        if not self._buffers or len(self._buffers[0]) < products.numel():
            self._buffers = ()  # freed before the larger ones are made
            self._buffers = [products.new_empty(products.numel()) for _ in range(2)]
        self.grad, self.scratch = (buffer[: products.numel()].view_as(products) for buffer in self._buffers)
        self._divide_by_norms(products)
        if self.ids is not None:
            same = torch.eq(along(self.ids[I], 1), self.ids[J], out=self.scratch)
            products.add_(same, alpha=EXCLUDED)
        elif I == J:
            products.fill_diagonal_(EXCLUDED)
        self.tile = self.aggregation.prepare(products)

    def _divide_by_norms(self, values: Tensor) -> None:
        values.mul_(along(self.inv_norm[0, self.I], 1)).mul_(self.inv_norm[1, self.J])

    def states(self) -> tuple[State, State]:
        I, J = self.I, self.J  # noqa: E741
        return (
            self.aggregation.tile_state(self.tile, 1, J.start, self.positive[I], self.scratch),
            self.aggregation.tile_state(self.tile, 0, I.start, self.positive[J], self.scratch),
        )

    def grad_products(self, state: State, factors: Tensor) -> Tensor:
        grad, scratch = self.grad, self.scratch
        directions = ((1, self.I, self.J.start, grad), (0, self.J, self.I.start, scratch))
        for k, (dim, anchors, start, out) in enumerate(directions):
            of_anchors = tuple(part[k, anchors] for part in state), self.positive[anchors], factors[k, anchors]
            self.aggregation.grad_tile(self.tile, dim, start, *of_anchors, out)
        grad.add_(scratch)
        if self.aggregation.parameter is not None:
            self._grad_parameter = self.aggregation.grad_parameter(self.tile, grad, scratch)
        self._divide_by_norms(grad)
        return grad.to(self.dtype)

    def any_gradient(self) -> bool:
        return not can_look(self.grad) or bool(self.grad.any())

    def grad_parameter(self) -> Tensor:
        return self._grad_parameter
