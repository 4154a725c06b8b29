"""The work on a tile of S between the matrix products, in plain torch, on every device."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.engine.aggregation import Aggregation, State, Tile, along
from crossmodal_losses.engine.compat import can_look
from crossmodal_losses.engine.objective import Directions
from crossmodal_losses.engine.operands import Operand


class Place(NamedTuple):
    """Where a tile lies in S: rows I of an operand, columns J of another; and the directions in which it counts."""

    row: Operand
    I: slice  # noqa: E741
    column: Operand
    J: slice
    directions: tuple[int, ...]
    # Whether positives are in it, those of equal numbers: on its diagonal, unless the epilogue takes wide tiles.
    diagonal: bool

    def anchors(self, direction: int) -> slice:
        """The numbers of the anchors."""
        return self.J if direction else self.I

    def first_candidate(self, direction: int) -> int:
        """The number of the first candidate."""
        start: int = self.I.start if direction else self.J.start
        return start

    def of_rows_and_columns(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """A statistic of the rows and of the columns."""
        rows, columns = getattr(self.row, name), getattr(self.column, name)
        return (
            None if rows is None else rows[self.row.local(self.I)],
            None if columns is None else columns[self.column.local(self.J)],
        )


def in_memory(count: int, alignment: int) -> int:
    """The rows, or columns, of whole blocks that cover so many."""
    return -(-count // alignment) * alignment


def tile_memory(memory: Tensor, shape: Sequence[int], alignment: int) -> tuple[Tensor, Tensor]:
    """Memory for a tile, the given one if it is large enough, and the tile in it.

    It is covered by whole blocks of alignment x alignment, and so is every row by itself.
    """
    rows, columns = (in_memory(count, alignment) for count in shape)
    if len(memory) < rows * columns:
        memory = memory.new_empty(rows * columns)
    tile = memory[: rows * columns].view(rows, columns)
    return memory, tile if (rows, columns) == tuple(shape) else tile[: shape[0], : shape[1]]


class Epilogue(ABC):
    """States and gradients of a tile, given the inner products of its rows and columns.

    Positives, ``[B]``, are those of all pairs; dtype is that of the operands of the matrix products, in which the
    gradient of a tile is returned.
    """

    alignment = 1  # of the memory that a tile needs
    wide = False  # whether a tile may have more columns than rows of S, and positives beside its diagonal

    def __init__(self, aggregation: Aggregation, directions: Directions, positive: Tensor, dtype: torch.dtype) -> None:
        self.aggregation, self.directions, self.positive, self.dtype = aggregation, directions, positive, dtype

    def take(self, products: Tensor, place: Place, *, may_overwrite: bool = True) -> None:
        """Set the tile that the other methods work on."""
        self.products, self.place, self.may_overwrite = products, place, may_overwrite

    @abstractmethod
    def add_states(self) -> None:
        """Compute the states of the tile's anchors, in each of its directions, and merge them with those before."""

    @abstractmethod
    def state_of(self, direction: int) -> State | None:
        """The merged state of all anchors of a direction that have met a tile, in order; None if none has."""

    def one_pass(self, factors: Tensor) -> Tensor:
        """:meth:`add_states` and :meth:`grad_products`, where the gradient does not depend on the state."""
        self.add_states()
        return self.grad_products((), factors)

    @abstractmethod
    def grad_products(self, state: State, factors: Tensor) -> Tensor:
        """Compute dL/ds_ij / (|x_i| |y_j|), the gradient of the tile's inner products; ends the work on the tile.

        State (empty for one pass) and factors are those of all anchors, each part ``[k, B]``.
        """

    @abstractmethod
    def any_gradient(self) -> bool:
        """Return whether a pair of the tile has a gradient; true where looking would take waiting for the device."""

    @abstractmethod
    def grad_parameter(self) -> Tensor:
        """Contribution of the tile to the gradient of the aggregation's parameter."""


class Plain(Epilogue):
    """Plain torch epilogue; needs two or three more t x t buffers."""

    _memory: Tensor | None = None

    def __init__(self, aggregation: Aggregation, directions: Directions, positive: Tensor, dtype: torch.dtype) -> None:
        super().__init__(aggregation, directions, positive, dtype)
        self._states: tuple[dict[int, State], dict[int, State]] = {}, {}  # of both directions, by their first anchor

    def take(self, products: Tensor, place: Place, *, may_overwrite: bool = True) -> None:
        assert may_overwrite
        super().take(products, place)
        if self._memory is None or self._memory.shape[1] < products.numel():
            self._memory = products.new_empty(3, products.numel())
        self.grad, self.scratch, same = (part[: products.numel()].view_as(products) for part in self._memory)
        self._divide_by_norms(products)
        ids_of_rows, ids_of_columns = place.of_rows_and_columns("ids")
        if ids_of_rows is None or ids_of_columns is None:
            self.tile = self.aggregation.prepare(Tile(products, None, place.diagonal))
        else:
            torch.eq(along(ids_of_rows, 1), ids_of_columns, out=same)
            self.tile = self.aggregation.prepare(Tile(products, same, place.diagonal))

    def _divide_by_norms(self, values: Tensor) -> None:
        of_rows, of_columns = self.place.of_rows_and_columns("inv_norm")
        assert of_rows is not None
        assert of_columns is not None
        values.mul_(along(of_rows, 1)).mul_(of_columns)

    def add_states(self) -> None:
        place = self.place
        for k in place.directions:
            anchors, states = place.anchors(k), self._states[k]
            first, of_anchors = place.first_candidate(k), self.positive[anchors]
            state = self.aggregation.tile_state(self.tile, 1 - k, first, of_anchors, self.scratch)
            before = states.get(anchors.start)
            states[anchors.start] = state if before is None else self.aggregation.merge(before, state)

    def state_of(self, direction: int) -> State | None:
        states = self._states[direction]
        if not states:
            return None
        return tuple(torch.cat(parts) for parts in zip(*(states[start] for start in sorted(states)), strict=True))

    def grad_products(self, state: State, factors: Tensor) -> Tensor:
        place, grad = self.place, self.grad
        for k, out in zip(place.directions, (grad, self.scratch), strict=False):
            slot, anchors = self.directions.slots[k], place.anchors(k)
            of_anchors = tuple(part[slot, anchors] for part in state), self.positive[anchors], factors[slot, anchors]
            self.aggregation.grad_tile(self.tile, 1 - k, place.first_candidate(k), *of_anchors, out)
        if len(place.directions) == 2:
            grad.add_(self.scratch)
        if self.aggregation.parameter is not None:
            self._grad_parameter = self.aggregation.grad_parameter(self.tile, grad, self.scratch)
        self._divide_by_norms(grad)
        grad_products: Tensor = grad.to(self.dtype)
        return grad_products

    def any_gradient(self) -> bool:
        return not can_look(self.grad) or bool(self.grad.any())

    def grad_parameter(self) -> Tensor:
        return self._grad_parameter
