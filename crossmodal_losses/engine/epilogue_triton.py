"""The epilogue on CUDA: a Triton kernel for the states of a tile, and one for its gradient. Each reads the tile once.

A program takes a block of the tile. Of the inner products p there it makes

    s_ij = p_ij / (|x_i| |y_j|), EXCLUDED where j is no negative of i or lies beyond the edge of the tile,

and aggregates s along its rows (over j), along its columns (over i), or both:

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
from crossmodal_losses.engine.objective import Directions

# A block: 16 entries a thread, which its registers hold.
BLOCK_ROWS, BLOCK_COLUMNS, WARPS = 64, 64, 8

# Whether these are multiples of 16 makes no faster kernel, only more of them to compile. It does for the length of a
# row, ``columns``, of which four entries are loaded at once.
NOT_SPECIALISED = ("rows", "of_row", "of_column", "anchor_row", "anchor_column", "state_row", "state_column")

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
def _places(AXIS: tl.constexpr, LENGTH: tl.constexpr):
    """Rows or columns of this program's block in the tile; in 64 bits: a tile may have more than 2^31 entries."""
    return tl.program_id(AXIS).to(tl.int64) * LENGTH + tl.arange(0, LENGTH)


@triton.jit
def _block(
    products, inv_norm_x, inv_norm_y, ids_x, ids_y, of_row, of_column, rows, columns, i, j, EXCLUDE: tl.constexpr
):
    """Compute s of rows i and columns j of the tile; load inverse norms."""
    inv_norm_i = tl.load(inv_norm_x + of_row + i, mask=i < rows, other=0.0)
    inv_norm_j = tl.load(inv_norm_y + of_column + j, mask=j < columns, other=0.0)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    p = tl.load(products + i[:, None] * columns + j[None, :], mask=inside, other=0.0)
    s = p * inv_norm_i[:, None] * inv_norm_j[None, :]
    negative = inside
    if EXCLUDE == "diagonal":
        negative = inside & (i[:, None] != j[None, :])
    if EXCLUDE == "ids":
        id_i = tl.load(ids_x + of_row + i, mask=i < rows, other=0.0)
        id_j = tl.load(ids_y + of_column + j, mask=j < columns, other=0.0)
        negative = inside & (id_i[:, None] != id_j[None, :])
    return tl.where(negative, s, _EXCLUDED), inv_norm_i, inv_norm_j


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
    inv_norm_x,
    inv_norm_y,
    ids_x,
    ids_y,
    positive,
    settings,
    of_row,
    of_column,
    anchor_row,
    anchor_column,
    rows,
    columns,
    of_rows,
    of_columns,
    KIND: tl.constexpr,
    EXCLUDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    i, j = _places(0, BLOCK_ROWS), _places(1, BLOCK_COLUMNS)
    s, _, _ = _block(products, inv_norm_x, inv_norm_y, ids_x, ids_y, of_row, of_column, rows, columns, i, j, EXCLUDE)
    setting = tl.load(settings)
    prepared = _prepare(s, setting, KIND)
    if of_rows is not None:
        positive_i = tl.load(positive + anchor_row + i, mask=i < rows, other=0.0)
        _store_states(prepared, positive_i, setting, of_rows, i, rows, columns, 1, KIND)
    if of_columns is not None:  # pragma: no branch - the interpreter hides the end of a kernel
        positive_j = tl.load(positive + anchor_column + j, mask=j < columns, other=0.0)
        _store_states(prepared, positive_j, setting, of_columns, j, columns, rows, 0, KIND)


@triton.jit
def _grad_along(
    prepared, positive, setting, state, factors, anchor, at, index, count, AXIS: tl.constexpr, KIND: tl.constexpr
):
    """Aggregation.grad_tile, of the anchors ``anchor + index`` of the batch, whose state begins at ``at``."""
    inside = index < count
    factor = tl.expand_dims(tl.load(factors + at + index, mask=inside, other=0.0), AXIS)
    if KIND == "hinges":
        positive = tl.load(positive + anchor + index, mask=inside, other=0.0)
        grad = tl.where(_hinges(prepared, positive, setting, AXIS) > 0, factor, 0.0)
    elif KIND == "exponentials":
        grad = prepared * factor
    else:
        logarithm = tl.load(state + at + index, mask=inside, other=0.0)
        grad = tl.exp(prepared - tl.expand_dims(logarithm, AXIS)) * factor
    return grad


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def _grad(
    products,
    inv_norm_x,
    inv_norm_y,
    ids_x,
    ids_y,
    positive,
    settings,
    of_row,
    of_column,
    anchor_row,
    anchor_column,
    rows,
    columns,
    state,
    factors,
    state_row,
    state_column,
    grad_products,
    grad_parameters,
    KIND: tl.constexpr,
    EXCLUDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    i, j = _places(0, BLOCK_ROWS), _places(1, BLOCK_COLUMNS)
    s, inv_norm_i, inv_norm_j = _block(
        products, inv_norm_x, inv_norm_y, ids_x, ids_y, of_row, of_column, rows, columns, i, j, EXCLUDE
    )
    setting = tl.load(settings)
    prepared = _prepare(s, setting, KIND)
    grad = tl.zeros_like(s)
    if ROWS:
        grad += _grad_along(prepared, positive, setting, state, factors, anchor_row, state_row, i, rows, 1, KIND)
    if COLUMNS:
        grad += _grad_along(
            prepared, positive, setting, state, factors, anchor_column, state_column, j, columns, 0, KIND
        )
    if grad_parameters is not None:
        place = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(grad_parameters + place, -tl.sum(prepared * grad))
    grad = grad * inv_norm_i[:, None] * inv_norm_j[None, :]
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

    def __init__(self, aggregation: Aggregation, directions: Directions, positive: Tensor, dtype: torch.dtype) -> None:
        super().__init__(aggregation, directions, positive, dtype)
        self.kind, setting = _kind(aggregation)
        # On the device, whether a number or a tensor: then nothing has to wait for its value.
        self.setting = (
            setting.detach().to(positive) if isinstance(setting, Tensor) else positive.new_full((), float(setting))
        )

    @property
    def _grid(self) -> tuple[int, int]:
        rows, columns = self.products.shape
        return triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)

    def _launch(self, kernel: Any, *others: Tensor | int | None, **constants: Any) -> None:
        row, I, column, J, _, diagonal = self.place  # noqa: E741
        with_ids = row.ids is not None and column.ids is not None
        exclude = "ids" if with_ids else "diagonal" if diagonal else "nothing"
        ids = (row.ids, column.ids) if with_ids else (None, None)
        tensors = self.products, row.inv_norm, column.inv_norm, *ids, self.positive, self.setting
        numbers = row.local(I).start, column.local(J).start, I.start, J.start, *self.products.shape
        blocks = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS, "num_warps": WARPS}
        with torch.cuda.device_of(self.products):  # triton goes by the current device
            kernel[self._grid](*tensors, *numbers, *others, KIND=self.kind, EXCLUDE=exclude, **constants, **blocks)

    def states(self) -> list[State]:
        parts = 2 if self.kind in ("hardest", "hinges") else 1
        (row_blocks, column_blocks), (rows, columns) = self._grid, self.products.shape
        shapes = (parts, column_blocks, rows), (parts, row_blocks, columns)
        directions = self.place.directions
        partials = {k: self.products.new_empty(shapes[k]) for k in directions}
        self._launch(_states, partials.get(0), partials.get(1))
        return [_combine(partials[k], self.kind, self.place.first_candidate(k)) for k in directions]

    def grad_products(self, state: State, factors: Tensor) -> Tensor:
        if self.aggregation.selects:
            raise NotImplementedError("expected a fold of many pairs: one that selects a pair has no tile of weights")
        factors, directions, slots = factors.contiguous(), self.place.directions, self.directions.slots
        grad_products = torch.empty_like(self.products, dtype=self.dtype)
        grad_parameters = None if self.aggregation.parameter is None else self.products.new_empty(self._grid)
        # Without a running maximum the gradient does not depend on the state.
        logarithm = state[0].contiguous() if self.kind == "logarithm" else factors
        at = [slots.get(k, 0) * factors.shape[1] + self.place.anchors(k).start for k in (0, 1)]
        used = {"ROWS": 0 in directions, "COLUMNS": 1 in directions}
        self._launch(_grad, logarithm, factors, *at, grad_products, grad_parameters, **used)
        if grad_parameters is not None:
            self._grad_parameter = grad_parameters.sum()
        return grad_products

    def any_gradient(self) -> bool:
        return True

    def grad_parameter(self) -> Tensor:
        return self._grad_parameter
