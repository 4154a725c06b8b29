"""The operands of the matrix products: rows of embeddings, scaled where they have to be, and their inverse norms.

The rows of each modality are numbered: first those of the B pairs, then the candidates without a partner.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from crossmodal_losses.checks import Batch
from crossmodal_losses.engine.compat import HAS_TRITON, can_look, multiplies_into_float32, without_autocast
from crossmodal_losses.similarity import HALF, computation_dtype

# Rows of a length in this range are multiplied as they are; others are divided by a scale first.
SHORTEST, LONGEST = 1e-12, 1e12

# All rows of an operand are scaled at once, once for a pass, if they take no more bytes. On a CPU a block at a time
# stays in its cache, and few rows are so long or short that they have to be scaled. On CUDA nothing can look at lengths
# without waiting: rows of any dtype are scaled, those of bfloat16 too, whose products may overflow as in float32.
SCALED_AT_ONCE = {"cuda": 1 << 28}


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


class Statistics(NamedTuple):
    """What is known of some rows, each part ``[n]``."""

    inv_norm: Tensor  # inverse norms of the scaled rows; 0 for a row of zeros
    # The power of two that a row is divided by, in the dtype of the computation, lest its length over- or underflow.
    scale: Tensor | None = None  # None: the rows are used as they are
    ids: Tensor | None = None  # None: no row has the id of another

    def of(self, rows: slice) -> "Statistics":
        """The statistics of some of the rows."""
        return Statistics(*(None if values is None else values[rows] for values in self))  # type: ignore[arg-type]


class Operand:
    """Some rows of one modality, ``[n, D]``, as they enter matrix products in ``dtype``; the first has number start."""

    def __init__(self, rows: Tensor, statistics: Statistics, dtype: torch.dtype, start: int = 0) -> None:
        self.rows, self.dtype, self.start = rows, dtype, start
        self.inv_norm, self.scale, self.ids = statistics
        self._buffer: Tensor | None = None
        self._buffered: slice | None = None

    @property
    def whole(self) -> slice:
        """The numbers of the rows."""
        return slice(self.start, self.start + self.rows.shape[0])

    def local(self, block: slice) -> slice:
        """Convert numbers of rows to positions."""
        return slice(block.start - self.start, block.stop - self.start)

    def block(self, block: slice) -> Tensor:
        """Rows by their numbers; valid until the next call."""
        local = self.local(block)
        if self.scale is None:
            return self.rows[local]
        kept = self._buffered
        if self._buffer is None or kept is None or block.start < kept.start or block.stop > kept.stop:
            at_once = self.rows.numel() * self.dtype.itemsize <= SCALED_AT_ONCE.get(self.rows.device.type, 0)
            kept = self._buffered = self.whole if at_once else block
            count, scaled = kept.stop - kept.start, self.local(kept)
            if self._buffer is None or len(self._buffer) < count:
                self._buffer = self.scale.new_empty(count, self.rows.shape[1], dtype=self.dtype)
            torch.div(self.rows[scaled], self.scale[scaled, None], out=self._buffer[:count])
        return self._buffer[block.start - kept.start : block.stop - kept.start]

    def dimensions(self, dimensions: slice = slice(None)) -> Tensor:
        """Some dimensions of every row, or all, ``[n, width]``."""
        if self.scale is None:
            return self.rows[:, dimensions]
        return self.rows[:, dimensions].to(self.scale.dtype) / self.scale[:, None]

    def normalisation_backward(self, grad: Tensor, block: slice) -> None:
        r"""Turn the gradient of normalised rows into the gradient of the rows, in place.

        .. math:: dL/dx = (g - (g \cdot \hat{x}) \hat{x}) / |x|, \qquad \hat{x} = x / |x|

        grad is g / |x|, ``[n, D]``; g is the finished sum over all pairs of a row, its positive included. Rows outside
        of the block stay as they are.
        """
        local = self.local(block)
        grad, inv_norm = grad[local], self.inv_norm[local]
        if self.scale is not None and _has_kernels(self.rows, grad.dtype):
            from crossmodal_losses.engine.rows_fused import normalisation_backward

            normalisation_backward(grad, self.rows[local], inv_norm, self.scale[local])
            return
        rows = self.block(block)
        grad_dot_x = (grad * rows).sum(1).mul_(inv_norm).mul_(inv_norm)
        grad.addcmul_(rows, grad_dot_x[:, None], value=-1)
        if self.scale is not None:
            grad.div_(self.scale[local, None])


COUNT_OF_TENSORS = 16  # of operands: four times rows, and three statistics

# Of x, of y, of the candidates without a partner among x, and of those among y.
Rows = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
AllStatistics = tuple[Statistics, Statistics, Statistics | None, Statistics | None]


class Operands:
    """The local rows of both modalities.

    Args:
        rows: embeddings.
        statistics: of all processes for y and its further candidates, of the local rows for x and its own.
        starts: the numbers of the first rows.
    """

    def __init__(self, rows: Rows, statistics: AllStatistics, starts: Sequence[int] | None = None) -> None:
        B = statistics[1].inv_norm.shape[0]
        self.rows, self.statistics, self.starts = rows, statistics, (0, 0, B, B) if starts is None else tuple(starts)
        self.dtype = rows[0].dtype if multiplies_into_float32(rows) else statistics[0].inv_norm.dtype
        self.x = Operand(rows[0], statistics[0], self.dtype, self.starts[0])
        self.y = self.columns(0, slice(self.starts[1], self.starts[1] + rows[1].shape[0]), rows[1])
        self.negatives_x = self.negatives_y = None
        if rows[2] is not None and statistics[2] is not None:
            self.negatives_x = Operand(rows[2], statistics[2], self.dtype, self.starts[2])
        if rows[3] is not None:
            self.negatives_y = self.columns(1, slice(self.starts[3], self.starts[3] + rows[3].shape[0]), rows[3])

    @property
    def parts(self) -> tuple[Operand, Operand, Operand | None, Operand | None]:
        """The operand of each of the rows."""
        return self.x, self.y, self.negatives_x, self.negatives_y

    @property
    def pairs(self) -> int:
        """B, the number of pairs of all processes."""
        return self.statistics[1].inv_norm.shape[0]

    def columns(self, part: int, columns: slice, rows: Tensor) -> Operand:
        """The operand of some rows of y (part 0), or of its further candidates (part 1), of any process."""
        known: Operand | None = vars(self).get("negatives_y" if part else "y")
        if known is not None and known.rows is rows:
            return known  # with what it scaled
        first = part * self.pairs
        statistics = cast(Statistics, self.statistics[1 + 2 * part])
        if columns.stop - columns.start != statistics.inv_norm.shape[0]:
            statistics = statistics.of(slice(columns.start - first, columns.stop - first))
        return Operand(rows, statistics, self.dtype, columns.start)

    @property
    def nan_factor(self) -> Tensor | None:
        """NaN if an embedding holds a NaN or an inf, else 1; None stands for 1."""
        if self.statistics[0].scale is None:
            return None
        total = torch.cat([statistics.inv_norm for statistics in self.statistics if statistics is not None]).sum()
        return torch.rsub(total, 1, alpha=0)  # 1 - 0 total

    def tensors(self) -> list[Tensor | None]:
        """All tensors, for :meth:`of_tensors`."""
        return [*self.rows, *(values for statistics in self.statistics for values in statistics or (None,) * 3)]

    @classmethod
    def of_tensors(cls, tensors: Sequence[Tensor | None], starts: Sequence[int]) -> "Operands":
        """The operands that have these tensors."""
        statistics = [None if tensors[k] is None else Statistics(*tensors[k : k + 3]) for k in range(4, 16, 3)]  # type: ignore[arg-type]
        return cls(tuple(tensors[:4]), tuple(statistics), starts)  # type: ignore[arg-type]


@torch.no_grad()
def measure_norms(batch: Batch, step: int) -> Operands:
    """Choose scales and compute the inverse norms, step rows at a time."""
    ids, ids_x, ids_y = batch.all_ids
    given = [
        (rows, of) for rows, of in zip(batch.embeddings, (ids, ids, ids_x, ids_y), strict=True) if rows is not None
    ]
    dtype, device = computation_dtype(*(rows for rows, _ in given)), batch.x.device
    statistics: list[Statistics] = []
    with without_autocast(device):
        if device.type == "cpu" and all(rows.dtype == dtype for rows, _ in given):
            norms = torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows, _ in given])
            shortest, longest = norms.aminmax()  # there may be zeros and NaNs
            if can_look(norms) and float(shortest) > SHORTEST and float(longest) < LONGEST:
                inv_norms = norms.reciprocal_().split([rows.shape[0] for rows, _ in given])
                statistics = [Statistics(part, None, of) for part, (_, of) in zip(inv_norms, given, strict=True)]
        if not statistics:
            statistics = [_scaled_statistics(rows, of, dtype, step) for rows, of in given]
    found = iter(statistics)
    parts = tuple(None if rows is None else next(found) for rows in batch.embeddings)
    return Operands(batch.embeddings, cast(AllStatistics, parts))


def _has_kernels(rows: Tensor, dtype: torch.dtype) -> bool:
    """Return whether there are fused kernels for rows, in a computation in dtype."""
    return HAS_TRITON and rows.is_cuda and dtype == torch.float32


def _scaled_statistics(rows: Tensor, ids: Tensor | None, dtype: torch.dtype, step: int) -> Statistics:
    if _has_kernels(rows, dtype):
        from crossmodal_losses.engine.rows_fused import measure

        return Statistics(*measure(rows), ids)
    statistics = Statistics(rows.new_zeros(rows.shape[0], dtype=dtype), _scale(rows, dtype), ids)
    operand = Operand(rows, statistics, dtype)
    for block in blocks(operand.whole, step):
        norm = torch.linalg.vector_norm(operand.block(block), dim=1, dtype=dtype)
        statistics.inv_norm[block] = norm.reciprocal().masked_fill_(norm == 0, 0)
    return statistics


def _scale(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The power of two below the largest entry of each row, division by which does not round; NaN for NaN and inf."""
    largest = torch.maximum(rows.amax(1), rows.amin(1).neg_()).to(dtype)
    largest.masked_fill_(largest == 0, 1)
    return torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1).add_(0 * largest)
