"""The two sides of a batch as matrix products want them: rows scaled where they have to be, and 1 / their lengths."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.products import can_widen
from crossmodal_losses.similarity import HALF, at_least_float32

# Rows of a length in this range are multiplied as they are; others are divided by about their largest entry first.
SHORTEST, LONGEST = 1e-12, 1e12


def blocks(size: int, step: int) -> list[slice]:
    """Slices of at most step that cover size."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast lowers nothing here."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class Side:
    """The embeddings of one side, ``[B, D]``, and 1 / their lengths, ``[B]``.

    Args:
        largest: the power of two that every row is divided by, ``[B]``, lest its length over- or underflow, in the
            dtype of the computation. None: the rows can be used as they are.
        operand: the dtype in which blocks enter a matrix product.
    """

    def __init__(self, rows: Tensor, inverse: Tensor, largest: Tensor | None, operand: torch.dtype) -> None:
        self.rows, self.inverse, self.largest, self.operand = rows, inverse, largest, operand
        self.buffer: Tensor | None = None
        self.held: slice | None = None

    def all(self) -> Tensor:
        """Every row."""
        return self.rows if self.largest is None else self.rows.to(self.largest.dtype) / self.largest[:, None]

    def block(self, block: slice) -> Tensor:
        """Some rows; valid until the next call."""
        if self.largest is None:
            return self.rows[block]
        count = block.stop - block.start
        if self.buffer is None:
            shape = (count, self.rows.shape[1])  # the first block is the longest
            self.buffer = self.largest.new_empty(shape, dtype=self.operand)
        if self.held is None or self.held != block:
            torch.div(self.rows[block], self.largest[block, None], out=self.buffer[:count])
            self.held = block
        return self.buffer[:count]

    def columns(self, columns: slice) -> Tensor:
        """Some columns of every row."""
        if self.largest is None:
            return self.rows[:, columns]
        return self.rows[:, columns].to(self.largest.dtype) / self.largest[:, None]


class Sides:
    """Both sides.

    Attributes:
        inverse: 1 / the lengths of the rows of x and of y, ``[2, B]``; 0 for a row of zeros.
        poison: 1, or NaN if x or y holds a NaN or an inf. None stands for 1.
    """

    def __init__(self, x: Tensor, y: Tensor, step: int) -> None:
        self.poison: Tensor | None = None
        if x.device.type == "cpu" and x.dtype == y.dtype and x.dtype not in HALF:
            lengths = torch.stack([torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(y, dim=1)])
            # Where asking does not take waiting for the device. There may be zeros and NaNs, too.
            shortest, longest = lengths.aminmax()
            if float(shortest) > SHORTEST and float(longest) < LONGEST:
                self.inverse = lengths.reciprocal_()
                of_x, of_y = self.inverse.unbind()
                self.x, self.y = Side(x, of_x, None, x.dtype), Side(y, of_y, None, y.dtype)
                return
        dtype = torch.promote_types(at_least_float32(x).dtype, at_least_float32(y).dtype)
        self.inverse = x.new_empty(2, len(x), dtype=dtype)
        operand = x.dtype if can_widen(x, y) else dtype
        self.x, self.y = (
            self._scaled(rows, inverse, operand, step) for rows, inverse in zip((x, y), self.inverse, strict=True)
        )
        self.poison = 1 + 0 * self.inverse.sum()

    @staticmethod
    def _scaled(rows: Tensor, inverse: Tensor, operand: torch.dtype, step: int) -> Side:
        largest = torch.maximum(rows.amax(1), rows.amin(1).neg_()).to(inverse.dtype)
        largest.masked_fill_(largest == 0, 1)
        # The power of two below it, division by which does not round. NaN and inf become NaN.
        largest = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1) + 0 * largest
        side = Side(rows, inverse, largest, operand)
        for block in blocks(len(rows), step):
            length = torch.linalg.vector_norm(side.block(block), dim=1, dtype=inverse.dtype)
            inverse[block] = length.reciprocal().masked_fill_(length == 0, 0)
        return side
