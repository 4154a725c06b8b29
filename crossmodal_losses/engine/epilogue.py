"""What is done with a tile of S between the matrix products, in plain torch, on every device."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from crossmodal_losses.engine.objective import EXCLUDED, Fold, State, along


def numbered(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Equal ids as equal small whole numbers, which a float holds: comparing floats into floats is ten times faster."""
    in_order, order = ids.sort()
    number = torch.zeros_like(order)
    number[1:] = (in_order[1:] != in_order[:-1]).cumsum(0)
    return torch.empty_like(in_order, dtype=dtype).scatter_(0, order, number.to(dtype))


class Epilogue(ABC):
    """Given a tile as the product leaves it, the inner products of rows I of x and J of y: states, and weights.

    Args:
        inverse: 1 / the lengths of all rows of x and of y, ``[2, B]``.
        ids, positive: of all pairs, ``[B]``.
        operand: the dtype of what is multiplied, and of the weights.
    """

    def __init__(self, inverse: Tensor, ids: Tensor | None, fold: Fold, positive: Tensor, operand: torch.dtype) -> None:
        self.inverse, self.fold, self.positive, self.operand = inverse, fold, positive, operand
        self.ids = None if ids is None else numbered(ids, inverse.dtype)

    def take(self, products: Tensor, I: slice, J: slice) -> None:  # noqa: E741
        """The tile to work on from now on; it may be overwritten."""
        self.tile, self.I, self.J = products, I, J

    @abstractmethod
    def states(self) -> tuple[State, State]:
        """Of the tile's rows as anchors, and of its columns."""

    @abstractmethod
    def weigh(self, state: State, coefficients: Tensor) -> Tensor:
        """dL/ds of the tile's pairs, divided by the lengths of their x and y, in the dtype of the products' operands;
        and with it what the next two methods return.

        Args:
            state: of all anchors, ``[2, B]`` each part; empty for a fold of one pass.
            coefficients: what the fold makes of dL/dfold, ``[2, B]``.
        """

    @abstractmethod
    def any_weight(self) -> bool:
        """Whether a pair of the tile has a weight; true where finding out would take waiting for the device."""

    @abstractmethod
    def slope(self) -> Tensor:
        """What the tile adds to the derivative in the fold's parameter."""


class Plain(Epilogue):
    """Plain torch epilogue; needs two more t x t buffers."""

    def __init__(self, inverse: Tensor, ids: Tensor | None, fold: Fold, positive: Tensor, operand: torch.dtype) -> None:
        super().__init__(inverse, ids, fold, positive, operand)
        self.memory: list[Tensor] = []

    def take(self, products: Tensor, I: slice, J: slice) -> None:  # noqa: E741
        super().take(products, I, J)
        if not self.memory or len(self.memory[0]) < products.numel():
            self.memory = []  # before there is more
            self.memory = [products.new_empty(products.numel()) for _ in range(2)]
        self.weights, self.scratch = (m[: products.numel()].view_as(products) for m in self.memory)
        self._scale(products)
        if self.ids is not None:
            same = torch.eq(along(self.ids[I], 1), self.ids[J], out=self.scratch)
            products.add_(same, alpha=EXCLUDED)
        elif I == J:
            products.fill_diagonal_(EXCLUDED)
        self.prepared = self.fold.prepare(products)

    def _scale(self, values: Tensor) -> None:
        values.mul_(along(self.inverse[0, self.I], 1)).mul_(self.inverse[1, self.J])

    def states(self) -> tuple[State, State]:
        I, J = self.I, self.J  # noqa: E741
        return (
            self.fold.of_tile(self.prepared, 1, J.start, self.positive[I], self.scratch),
            self.fold.of_tile(self.prepared, 0, I.start, self.positive[J], self.scratch),
        )

    def weigh(self, state: State, coefficients: Tensor) -> Tensor:
        weights, scratch = self.weights, self.scratch
        directions = ((1, self.I, self.J, weights), (0, self.J, self.I, scratch))
        for k, (dim, anchors, candidates, out) in enumerate(directions):
            of_anchors = tuple(part[k, anchors] for part in state)
            self.fold.weigh(
                self.prepared, dim, candidates.start, of_anchors, self.positive[anchors], coefficients[k, anchors], out
            )
        weights.add_(scratch)
        if self.fold.parameter is not None:
            self._slope = self.fold.slope(self.prepared, weights, scratch)
        self._scale(weights)
        return weights.to(self.operand)

    def any_weight(self) -> bool:
        return self.weights.device.type != "cpu" or bool(self.weights.any())

    def slope(self) -> Tensor:
        return self._slope
