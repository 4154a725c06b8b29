"""The two sides of a batch as matrix products want them: rows scaled where they have to be, and 1 / their lengths."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.engine.products import can_widen
from crossmodal_losses.similarity import computation_dtype

# Rows of a length in this range are multiplied as they are; others are divided by a scale first.
SHORTEST, LONGEST = 1e-12, 1e12


def blocks(whole: slice, step: int) -> list[slice]:
    """Slices of at most step that cover the whole."""
    return [slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, step)]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast lowers nothing here."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def normalisation_backward(gradient: Tensor, rows: Tensor, inverse: Tensor, scale: Tensor | None) -> Tensor:
    r"""Turn the gradient of normalised rows into that of the rows, in place.

    .. math:: dL/dx = (g - (g \cdot \hat{x}) \hat{x}) / |x|, \qquad \hat{x} = x / |x|

    Args:
        gradient: g / |x|, ``[n, D]``, the finished sum over all pairs of a row, its positive included.
        rows: x, ``[n, D]``, as they enter the matrix products: divided by their scale.
        inverse: 1 / |x| of these rows, ``[n]``; 0 for a row of zeros.
        scale: the power of two by which each row was divided, ``[n]``. None: 1.
    """
    along_row = (gradient * rows).sum(1).mul_(inverse).mul_(inverse)
    gradient.addcmul_(rows, along_row[:, None], value=-1)
    return gradient if scale is None else gradient.div_(scale[:, None])


class Side:
    """The embeddings of one side, ``[B, D]``, or some of them.

    Args:
        scale: the power of two that each of the rows is divided by, lest its length over- or underflow, in the dtype
            of the computation. None: the rows can be used as they are.
        operand: the dtype in which blocks enter a matrix product.
        start: the index in the batch of the first of the rows.
    """

    def __init__(self, rows: Tensor, scale: Tensor | None, operand: torch.dtype, start: int = 0) -> None:
        self.rows, self.scale, self.operand, self.start = rows, scale, operand, start
        self.buffer: Tensor | None = None
        self.held: slice | None = None

    def here(self, block: slice) -> slice:
        """Where the rows lie that have these indices in the batch."""
        return slice(block.start - self.start, block.stop - self.start)

    def all(self) -> Tensor:
        """Every row."""
        return self.rows if self.scale is None else self.rows.to(self.scale.dtype) / self.scale[:, None]

    def block(self, block: slice) -> Tensor:
        """Some rows, by their indices in the batch; valid until the next call."""
        here = self.here(block)
        if self.scale is None:
            return self.rows[here]
        count = block.stop - block.start
        if self.buffer is None or len(self.buffer) < count:
            self.buffer = self.scale.new_empty(count, self.rows.shape[1], dtype=self.operand)
        if self.held is None or self.held != block:
            torch.div(self.rows[here], self.scale[here, None], out=self.buffer[:count])
            self.held = block
        return self.buffer[:count]

    def columns(self, columns: slice) -> Tensor:
        """Some columns of every row."""
        if self.scale is None:
            return self.rows[:, columns]
        return self.rows[:, columns].to(self.scale.dtype) / self.scale[:, None]


class Sides:
    """Both sides; of a batch over several processes, what this one holds of it.

    Attributes:
        inverse: 1 / the lengths of all rows of x and of y, ``[2, B]``; 0 for a row of zeros.
        scales: what the rows held are divided by before anything else, ``[2, rows]``. None: they are used as they are.
        scales_of_y: those of all rows of y, ``[B]``.
        own: the indices in the batch of the rows held.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        inverse: Tensor,
        scales: Tensor | None,
        start: int = 0,
        scales_of_y: Tensor | None = None,
    ) -> None:
        self.inverse, self.scales, self.own = inverse, scales, slice(start, start + len(x))
        scale_x, scale_y = (None, None) if scales is None else scales.unbind()
        self.scales_of_y = scale_y if scales_of_y is None else scales_of_y
        operand = x.dtype if can_widen(x, y) else inverse.dtype
        self.x, self.y = Side(x, scale_x, operand, start), Side(y, scale_y, operand, start)

    @property
    def poison(self) -> Tensor | None:
        """NaN if x or y holds a NaN or an inf, else 1; None stands for 1."""
        return None if self.scales is None else 1 + 0 * self.inverse.sum()

    def columns(self, columns: slice, rows: Tensor) -> Side:
        """Some columns of S, given their rows of y, as a side."""
        if columns == self.own:
            return self.y
        scale = None if self.scales_of_y is None else self.scales_of_y[columns]
        return Side(rows, scale, self.y.operand, columns.start)


def measured(x: Tensor, y: Tensor, step: int) -> Sides:
    """Both sides, step rows at a time."""
    dtype = computation_dtype(x, y)
    if x.device.type == "cpu" and x.dtype == y.dtype == dtype:
        lengths = torch.stack([torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(y, dim=1)])
        # Where asking does not take waiting for the device. There may be zeros and NaNs, too.
        shortest, longest = lengths.aminmax()
        if float(shortest) > SHORTEST and float(longest) < LONGEST:
            return Sides(x, y, lengths.reciprocal_(), None)
    inverse, scales = x.new_empty(2, 2, len(x), dtype=dtype)
    for rows, scale in ((x, scales[0]), (y, scales[1])):
        largest = torch.maximum(rows.amax(1), rows.amin(1).neg_()).to(dtype)
        largest.masked_fill_(largest == 0, 1)
        # The power of two below it, division by which does not round. NaN and inf become NaN.
        torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1, out=scale).add_(0 * largest)
    sides = Sides(x, y, inverse, scales)
    for side, inverse_of_side in ((sides.x, inverse[0]), (sides.y, inverse[1])):
        for block in blocks(sides.own, step):
            length = torch.linalg.vector_norm(side.block(block), dim=1, dtype=dtype)
            inverse_of_side[block] = length.reciprocal().masked_fill_(length == 0, 0)
    return sides
