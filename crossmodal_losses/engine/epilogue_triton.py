"""The epilogue on CUDA: a Triton kernel for the states of a tile, and one for its gradient. Each reads the tile once.

A program takes a block of the tile. Of the inner products p there it makes

    s_ij = p_ij / (|x_i| |y_j|), EXCLUDED where j is no negative of i or lies beyond the edge of the tile,

and aggregates s along its rows (over j) and along its columns (over i):

    hardest        max_j s_ij, and the lowest j that attains it
    hinges         sum_j [m + s_ij - s_ii]_+, and how many hinges are above 0
    exponentials   sum_j exp(s_ij / t)
    logarithm      log sum_j exp(s_ij / t), shifted by the largest exponent of the block

Every program writes its results to separate places, and torch combines the blocks in a fixed order: no two programs
add to the same number, so that a result is the same every time.

Only this module imports triton, and the engine imports it only for tensors on CUDA.
"""
# Kernels are written in triton's own language, which has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmodal_losses.engine.aggregation import EXCLUDED, Aggregation, HardestNegative, HingeSum, LogSumExp, State
from crossmodal_losses.engine.epilogue import Epilogue

# A block: 16 entries a thread, which its registers hold.
BLOCK_ROWS, BLOCK_COLUMNS, WARPS = 64, 64, 8

# Whether these are multiples of 16 makes no faster kernel, only more of them to compile. It does for the length of a
# row, ``columns``, of which four entries are loaded at once.
NOT_SPECIALISED = ("B", "first_row", "first_column", "rows")

_EXCLUDED = tl.constexpr(EXCLUDED)
_LOWEST = tl.constexpr(-3e38)


def supports(dtype: torch.dtype, aggregation: Aggregation) -> bool:
    """Return whether there are kernels for an aggregation over tiles of inner products of that dtype."""
    return dtype == torch.float32 and type(aggregation) in (HardestNegative, HingeSum, LogSumExp)


def _kind(aggregation: Aggregation) -> tuple[str, float | Tensor]:
    """The name of an aggregation in the list above, and its setting: m or t."""
    if isinstance(aggregation, HingeSum):
        return "hinges", aggregation.margin
    if isinstance(aggregation, LogSumExp):
        return "exponentials" if aggregation.is_warm else "logarithm", aggregation.temperature
    return "hardest", 0.0


# Below, an anchor's candidates lie along AXIS 1 of the block if it is a row, and along AXIS 0 if it is a column, as in
# aggregation.py. The grid has the axes of the block.


@triton.jit
def _anchors(inv_norm, group, positive, first, index, count):
    """Inverse norm, group and positive of the anchors ``first + index`` of the batch."""
    inside = index < count
    return (
        tl.load(inv_norm + first + index, mask=inside, other=0.0),
        tl.load(group + first + index, mask=inside, other=0),
        tl.load(positive + first + index, mask=inside, other=0.0),
    )


@triton.jit
def _places(AXIS: tl.constexpr, LENGTH: tl.constexpr):
    """Rows or columns of this program's block in the tile; in 64 bits: a tile may have more than 2^31 entries."""
    return tl.program_id(AXIS).to(tl.int64) * LENGTH + tl.arange(0, LENGTH)


@triton.jit
def _block(products, inv_norm, group, positive, B, first_row, first_column, rows, columns, i, j):
    """Compute s of rows i and columns j of the tile; load inverse norms and positives."""
    inv_norm_x, group_x, positive_x = _anchors(inv_norm, group, positive, first_row, i, rows)
    inv_norm_y, group_y, positive_y = _anchors(inv_norm + B, group, positive, first_column, j, columns)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    p = tl.load(products + i[:, None] * columns + j[None, :], mask=inside, other=0.0)
    s = p * inv_norm_x[:, None] * inv_norm_y[None, :]
    s = tl.where(inside & (group_x[:, None] != group_y[None, :]), s, _EXCLUDED)
    return s, inv_norm_x, inv_norm_y, positive_x, positive_y


@triton.jit
def _prepare(s, setting, KIND: tl.constexpr):
    """Aggregation.prepare."""
    if KIND == "logarithm" or KIND == "exponentials":
        s = s / setting
    if KIND == "exponentials":
        s = tl.exp(s)
    return s


@triton.jit
def _hinges(s, positive, margin, AXIS: tl.constexpr):
    hinges = s + tl.expand_dims(margin - positive, AXIS)
    return tl.where(hinges <= 0, 0.0, hinges)  # a NaN stays one


@triton.jit
def _store(values, part, partials, anchor, anchors, AXIS: tl.constexpr):
    """Store in ``partials[part, place of the block along AXIS, anchor]``."""
    place = (part * tl.num_programs(AXIS) + tl.program_id(AXIS)).to(tl.int64)
    tl.store(partials + place * anchors + anchor, values, mask=anchor < anchors)


@triton.jit
def _store_states(
    prepared, positive, setting, partials, anchor, anchors, candidates, AXIS: tl.constexpr, KIND: tl.constexpr
):
    """Aggregation.tile_state, over the candidates in the block."""
    if KIND == "hardest":
        hardest, index = tl.max(prepared, AXIS, return_indices=True, return_indices_tie_break_left=True)
        index += tl.program_id(AXIS) * prepared.shape[AXIS]
        # Beside a NaN the maximum may be one beyond the edge. A float holds every index of a tile that fits in memory.
        index = tl.minimum(index, candidates - 1).to(tl.float32)
        _store(hardest, 0, partials, anchor, anchors, AXIS)
        _store(index, 1, partials, anchor, anchors, AXIS)
    elif KIND == "hinges":
        hinges = _hinges(prepared, positive, setting, AXIS)
        _store(tl.sum(hinges, AXIS), 0, partials, anchor, anchors, AXIS)
        _store(tl.sum((hinges > 0).to(tl.float32), AXIS), 1, partials, anchor, anchors, AXIS)
    elif KIND == "exponentials":
        _store(tl.sum(prepared, AXIS), 0, partials, anchor, anchors, AXIS)
    else:
        # All pairs of a block may be excluded: -inf if the temperature is tiny, and -inf minus -inf would be NaN.
        largest = tl.maximum(tl.max(prepared, AXIS), _LOWEST)
        total = tl.sum(tl.exp(prepared - tl.expand_dims(largest, AXIS)), AXIS)
        _store(tl.log(total) + largest, 0, partials, anchor, anchors, AXIS)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def _states(
    products,
    inv_norm,
    group,
    positive,
    settings,
    B,
    first_row,
    first_column,
    rows,
    columns,
    of_rows,
    of_columns,
    KIND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    i, j = _places(0, BLOCK_ROWS), _places(1, BLOCK_COLUMNS)
    s, _, _, positive_x, positive_y = _block(
        products, inv_norm, group, positive, B, first_row, first_column, rows, columns, i, j
    )
    setting = tl.load(settings)
    prepared = _prepare(s, setting, KIND)
    _store_states(prepared, positive_x, setting, of_rows, i, rows, columns, 1, KIND)
    _store_states(prepared, positive_y, setting, of_columns, j, columns, rows, 0, KIND)


@triton.jit
def _grad_along(
    prepared, positive, setting, state, factors, first, index, count, AXIS: tl.constexpr, KIND: tl.constexpr
):
    """Aggregation.grad_tile, of the anchors ``first + index`` of the batch."""
    factor = tl.expand_dims(tl.load(factors + first + index, mask=index < count, other=0.0), AXIS)
    if KIND == "hinges":
        grad = tl.where(_hinges(prepared, positive, setting, AXIS) > 0, factor, 0.0)
    elif KIND == "exponentials":
        grad = prepared * factor
    else:
        logarithm = tl.load(state + first + index, mask=index < count, other=0.0)
        grad = tl.exp(prepared - tl.expand_dims(logarithm, AXIS)) * factor
    return grad


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def _grad(
    products,
    inv_norm,
    group,
    positive,
    settings,
    B,
    first_row,
    first_column,
    rows,
    columns,
    state,
    factors,
    grad_products,
    grad_parameters,
    KIND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    i, j = _places(0, BLOCK_ROWS), _places(1, BLOCK_COLUMNS)
    s, inv_norm_x, inv_norm_y, positive_x, positive_y = _block(
        products, inv_norm, group, positive, B, first_row, first_column, rows, columns, i, j
    )
    setting = tl.load(settings)
    prepared = _prepare(s, setting, KIND)
    grad_rows = _grad_along(prepared, positive_x, setting, state, factors, first_row, i, rows, 1, KIND)
    grad_columns = _grad_along(prepared, positive_y, setting, state + B, factors + B, first_column, j, columns, 0, KIND)
    grad = grad_rows + grad_columns
    if grad_parameters is not None:
        place = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(grad_parameters + place, -tl.sum(prepared * grad))
    grad = grad * inv_norm_x[:, None] * inv_norm_y[None, :]
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    tl.store(grad_products + i[:, None] * columns + j[None, :], grad.to(grad_products.dtype.element_ty), mask=inside)


def _combine(partials: Tensor, kind: str, start: int) -> State:
    """Combine the states of a tile's blocks, ``[parts, blocks, anchors]``; its first candidate has index start."""
    if kind == "hardest":
        hardest, block = partials[0].max(0)  # the first of equal ones
        return hardest, partials[1].gather(0, block.unsqueeze(0)).squeeze(0).long() + start
    if kind == "logarithm":
        return (partials[0].logsumexp(0),)
    return partials.sum(1).unbind()


class Fused(Epilogue):
    """Fused kernels, for what :func:`supports`; leave the contiguous tile as it is, and need one for its gradient."""

    def __init__(
        self, inv_norm: Tensor, ids: Tensor | None, aggregation: Aggregation, positive: Tensor, dtype: torch.dtype
    ) -> None:
        super().__init__(inv_norm, ids, aggregation, positive, dtype)
        # A pair of equal numbers is no negative.
        self.group = torch.arange(len(positive), device=positive.device) if self.ids is None else self.ids
        self.kind, setting = _kind(aggregation)
        # On the device, whether a number or a tensor: then nothing has to wait for its value.
        self.setting = (
            setting.detach().to(positive) if isinstance(setting, Tensor) else positive.new_full((), float(setting))
        )

    @property
    def _grid(self) -> tuple[int, int]:
        rows, columns = self.tile.shape
        return triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)

    def _launch(self, kernel: Any, *others: Tensor | None) -> None:
        tensors = self.tile, self.inv_norm, self.group, self.positive, self.setting
        numbers = len(self.positive), self.I.start, self.J.start, *self.tile.shape
        blocks = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS, "num_warps": WARPS}
        with torch.cuda.device_of(self.tile):  # triton goes by the current device
            kernel[self._grid](*tensors, *numbers, *others, KIND=self.kind, **blocks)

    def states(self) -> tuple[State, State]:
        parts = 2 if self.kind in ("hardest", "hinges") else 1
        (row_blocks, column_blocks), (rows, columns) = self._grid, self.tile.shape
        of_rows = self.tile.new_empty(parts, column_blocks, rows)
        of_columns = self.tile.new_empty(parts, row_blocks, columns)
        self._launch(_states, of_rows, of_columns)
        return _combine(of_rows, self.kind, self.J.start), _combine(of_columns, self.kind, self.I.start)

    def grad_products(self, state: State, factors: Tensor) -> Tensor:
        if self.aggregation.selects:
            raise NotImplementedError("expected a fold of many pairs: one that selects a pair has no tile of weights")
        factors = factors.contiguous()
        grad_products = torch.empty_like(self.tile, dtype=self.dtype)
        grad_parameters = None if self.aggregation.parameter is None else self.tile.new_empty(self._grid)
        # Without a running maximum the gradient does not depend on the state.
        logarithm = state[0].contiguous() if self.kind == "logarithm" else factors
        self._launch(_grad, logarithm, factors, grad_products, grad_parameters)
        if grad_parameters is not None:
            self._grad_parameter = grad_parameters.sum()
        return grad_products

    def any_gradient(self) -> bool:
        return True

    def grad_parameter(self) -> Tensor:
        return self._grad_parameter
