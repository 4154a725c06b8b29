"""The operands of the matrix products: the rows of x and y, scaled where they have to be, and their inverse norms."""

import torch
from torch import Tensor

from crossmodal_losses.engine.compat import can_look, multiplies_into_float32, without_autocast
from crossmodal_losses.similarity import HALF, computation_dtype

# Rows of a length in this range are multiplied as they are; others are divided by a scale first.
SHORTEST, LONGEST = 1e-12, 1e12


def blocks(whole: slice, step: int) -> list[slice]:
    """Cover the whole with slices of at most step."""
    return [slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, step)]


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b``, the platform's own product; half precision is accumulated, and returned, in float32."""
    if a.dtype in HALF:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a, b, out=out)


def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, likewise."""
    if a.dtype in HALF:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a, b, out=total)  # in place, but an operator that the counters of torch know


class Operand:
    """Some rows of one modality, ``[n, D]``, from ``start`` in the batch, as they enter matrix products in ``dtype``.

    Each row is divided by a power of two, ``scale``, ``[n]`` in the dtype of the computation, lest its length over- or
    underflow. None: the rows are used as they are.
    """

    def __init__(self, rows: Tensor, scale: Tensor | None, dtype: torch.dtype, start: int = 0) -> None:
        self.rows, self.scale, self.dtype, self.start = rows, scale, dtype, start
        self._buffer: Tensor | None = None
        self._buffered: slice | None = None

    def local(self, block: slice) -> slice:
        """Convert batch indices to local row indices."""
        return slice(block.start - self.start, block.stop - self.start)

    def block(self, block: slice) -> Tensor:
        """Rows by their indices in the batch; valid until the next call."""
        local = self.local(block)
        if self.scale is None:
            return self.rows[local]
        count = block.stop - block.start
        if self._buffer is None or len(self._buffer) < count:
            self._buffer = self.scale.new_empty(count, self.rows.shape[1], dtype=self.dtype)
        if self._buffered is None or self._buffered != block:
            torch.div(self.rows[local], self.scale[local, None], out=self._buffer[:count])
            self._buffered = block
        return self._buffer[:count]

    def dimensions(self, dimensions: slice = slice(None)) -> Tensor:
        """Some dimensions of every row, or all, ``[n, width]``."""
        if self.scale is None:
            return self.rows[:, dimensions]
        return self.rows[:, dimensions].to(self.scale.dtype) / self.scale[:, None]

    def normalisation_backward(self, grad: Tensor, inv_norm: Tensor, block: slice) -> None:
        r"""Turn the gradient of normalised rows into the gradient of the rows, in place.

        .. math:: dL/dx = (g - (g \cdot \hat{x}) \hat{x}) / |x|, \qquad \hat{x} = x / |x|

        grad is g / |x|, ``[n, D]``; g is the finished sum over all pairs of a row, its positive included. inv_norm is
        1 / |x| of every scaled row, ``[n]``, 0 for a row of zeros. Rows outside of the block stay as they are.
        """
        local = self.local(block)
        grad, inv_norm, rows = grad[local], inv_norm[local], self.block(block)
        grad_dot_x = (grad * rows).sum(1).mul_(inv_norm).mul_(inv_norm)
        grad.addcmul_(rows, grad_dot_x[:, None], value=-1)
        if self.scale is not None:
            grad.div_(self.scale[local, None])


class Operands:
    """Both modalities; of a batch over several processes, the local rows.

    Args:
        x, y: embeddings, ``[rows, D]``.
        inv_norm: inverse norms of all scaled rows of x and of y, ``[2, B]``; 0 for a row of zeros.
        scales: the powers of two that the local rows are divided by, ``[2, rows]``. None: they are used as they are.
        scale_y: those of all rows of y, ``[B]``; None stands for the local ones.
        start: the index in the batch of the first local row.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        inv_norm: Tensor,
        scales: Tensor | None,
        scale_y: Tensor | None = None,
        start: int = 0,
    ) -> None:
        self.inv_norm, self.scales, self.start = inv_norm, scales, start
        local_x, local_y = (None, None) if scales is None else scales.unbind()
        self.scale_y = local_y if scale_y is None else scale_y
        self.dtype = x.dtype if multiplies_into_float32(x, y) else inv_norm.dtype
        self.x, self.y = Operand(x, local_x, self.dtype, start), Operand(y, local_y, self.dtype, start)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """The first five arguments of the constructor."""
        return self.x.rows, self.y.rows, self.inv_norm, self.scales, self.scale_y

    @property
    def local_slice(self) -> slice:
        """The indices in the batch of the local rows."""
        return slice(self.start, self.start + len(self.x.rows))

    @property
    def nan_factor(self) -> Tensor | None:
        """NaN if x or y holds a NaN or an inf, else 1; None stands for 1."""
        return None if self.scales is None else 1 + 0 * self.inv_norm.sum()

    def of_columns(self, columns: slice, rows: Tensor) -> Operand:
        """The operand of some columns of S, given their rows of y."""
        if columns == self.local_slice:
            return self.y
        return Operand(rows, None if self.scale_y is None else self.scale_y[columns], self.dtype, columns.start)


@torch.no_grad()
def measure_norms(x: Tensor, y: Tensor, step: int) -> Operands:
    """Choose scales and compute the inverse norms, step rows at a time."""
    dtype = computation_dtype(x, y)
    with without_autocast(x.device):
        if x.device.type == "cpu" and x.dtype == y.dtype == dtype:
            norms = torch.stack([torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(y, dim=1)])
            shortest, longest = norms.aminmax()  # there may be zeros and NaNs
            if can_look(norms) and float(shortest) > SHORTEST and float(longest) < LONGEST:
                return Operands(x, y, norms.reciprocal_(), None)
        scales = torch.stack([_scale(x, dtype), _scale(y, dtype)])
        operands = Operands(x, y, x.new_zeros(2, len(x), dtype=dtype), scales)
        for operand, inv_norm in zip((operands.x, operands.y), operands.inv_norm, strict=True):
            for block in blocks(operands.local_slice, step):
                norm = torch.linalg.vector_norm(operand.block(block), dim=1, dtype=dtype)
                inv_norm[block] = norm.reciprocal().masked_fill_(norm == 0, 0)
    return operands


def _scale(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The power of two below the largest entry of each row, division by which does not round; NaN for NaN and inf."""
    largest = torch.maximum(rows.amax(1), rows.amin(1).neg_()).to(dtype)
    largest.masked_fill_(largest == 0, 1)
    return torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1).add_(0 * largest)
