"""The epilogue on CUDA: one Triton kernel for the states of a tile, one for its weights. Each reads the tile once.

A program takes a block of the tile. Of the inner products p there it makes

    s_ij = p_ij / (|x_i| |y_j|), EXCLUDED where j is no negative of i or lies beyond the edge of the tile,

and folds s along its rows (over j) and along its columns (over i):

    hardest        max_j s_ij, and the lowest j that attains it
    hinges         sum_j [m + s_ij - s_ii]_+, and how many hinges are above 0
    exponentials   sum_j exp(s_ij / t)
    logarithm      log sum_j exp(s_ij / t), shifted by the largest exponent of the block

What it finds goes to places of its own, and torch puts the blocks together, in a fixed order: nothing is added up by
several programs at once, so that a result is the same every time.

Only this module imports triton, and the engine imports it only for tensors on CUDA.
"""
# What triton compiles is not typed: it is a language of its own.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmodal_losses.engine.epilogue import Epilogue
from crossmodal_losses.engine.objective import EXCLUDED, Fold, Hardest, HingeSum, LogSumExp, State

# A block: 16 entries a thread, which its registers hold.
BLOCK_ROWS, BLOCK_COLUMNS, WARPS = 64, 64, 8

# Whether these are multiples of 16 makes no faster kernel, only more of them to compile. It does for the length of a
# row, ``columns``, of which four entries are loaded at once.
NOT_SPECIALISED = ("B", "first_row", "first_column", "rows")

_EXCLUDED = tl.constexpr(EXCLUDED)
_LOWEST = tl.constexpr(-3e38)


def supports(dtype: torch.dtype, fold: Fold) -> bool:
    """Whether there are kernels for a fold over tiles of inner products of that dtype."""
    return dtype == torch.float32 and type(fold) in (Hardest, HingeSum, LogSumExp)


def _kind(fold: Fold) -> tuple[str, float | Tensor]:
    """Which of the folds above it is, and its setting: m or t."""
    if isinstance(fold, HingeSum):
        return "hinges", fold.margin
    if isinstance(fold, LogSumExp):
        return "exponentials" if fold.is_warm else "logarithm", fold.temperature
    return "hardest", 0.0


# Below, an anchor's candidates lie along AXIS 1 of the block if it is a row, and along AXIS 0 if it is a column, as in
# folds.py. The grid has the axes of the block.


@triton.jit
def _anchors(inverse, group, positive, first, index, count):
    """What is known of the anchors ``first + index`` of the batch."""
    known = index < count
    return (
        tl.load(inverse + first + index, mask=known, other=0.0),
        tl.load(group + first + index, mask=known, other=0),
        tl.load(positive + first + index, mask=known, other=0.0),
    )


@triton.jit
def _similarities(products, inverse_x, inverse_y, group_x, group_y, i, j, rows, columns):
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    p = tl.load(products + i[:, None] * columns + j[None, :], mask=inside, other=0.0)
    s = p * inverse_x[:, None] * inverse_y[None, :]
    return tl.where(inside & (group_x[:, None] != group_y[None, :]), s, _EXCLUDED)


@triton.jit
def _block(
    products, inverse, group, positive, B, first_row, first_column, rows, columns,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """s of this program's block, where in the tile that lies, and what is known of its anchors."""
    # In 64 bits: a tile may have more than 2^31 entries.
    i = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    j = tl.program_id(1).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inverse_x, group_x, positive_x = _anchors(inverse, group, positive, first_row, i, rows)
    inverse_y, group_y, positive_y = _anchors(inverse + B, group, positive, first_column, j, columns)
    s = _similarities(products, inverse_x, inverse_y, group_x, group_y, i, j, rows, columns)
    return s, i, j, inverse_x, inverse_y, positive_x, positive_y


@triton.jit
def _prepare(s, setting, FOLD: tl.constexpr):
    """Fold.prepare."""
    if FOLD == "logarithm" or FOLD == "exponentials":
        s = s / setting
    if FOLD == "exponentials":
        s = tl.exp(s)
    return s


@triton.jit
def _hinges(s, positive, margin, AXIS: tl.constexpr):
    hinges = s + tl.expand_dims(margin - positive, AXIS)
    return tl.where(hinges <= 0, 0.0, hinges)  # a NaN stays one


@triton.jit
def _put(values, part, partials, anchor, anchors, AXIS: tl.constexpr):
    """Into ``partials[part, place of the block along AXIS, anchor]``."""
    place = (part * tl.num_programs(AXIS) + tl.program_id(AXIS)).to(tl.int64)
    tl.store(partials + place * anchors + anchor, values, mask=anchor < anchors)


@triton.jit
def _put_states(
    prepared, positive, setting, partials, anchor, anchors, candidates, AXIS: tl.constexpr, FOLD: tl.constexpr
):
    """Fold.of_tile, over the candidates in the block."""
    if FOLD == "hardest":
        hardest, index = tl.max(prepared, AXIS, return_indices=True, return_indices_tie_break_left=True)
        index += tl.program_id(AXIS) * prepared.shape[AXIS]
        # Beside a NaN the maximum may be one beyond the edge. A float holds every index of a tile that fits in memory.
        index = tl.minimum(index, candidates - 1).to(tl.float32)
        _put(hardest, 0, partials, anchor, anchors, AXIS)
        _put(index, 1, partials, anchor, anchors, AXIS)
    elif FOLD == "hinges":
        hinges = _hinges(prepared, positive, setting, AXIS)
        _put(tl.sum(hinges, AXIS), 0, partials, anchor, anchors, AXIS)
        _put(tl.sum((hinges > 0).to(tl.float32), AXIS), 1, partials, anchor, anchors, AXIS)
    elif FOLD == "exponentials":
        _put(tl.sum(prepared, AXIS), 0, partials, anchor, anchors, AXIS)
    else:
        # All pairs of a block may be excluded: -inf if the temperature is tiny, and -inf minus -inf would be NaN.
        largest = tl.maximum(tl.max(prepared, AXIS), _LOWEST)
        total = tl.sum(tl.exp(prepared - tl.expand_dims(largest, AXIS)), AXIS)
        _put(tl.log(total) + largest, 0, partials, anchor, anchors, AXIS)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def _states(
    products, inverse, group, positive, settings, B, first_row, first_column, rows, columns,
    of_rows, of_columns,
    FOLD: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    s, i, j, _, _, positive_x, positive_y = _block(
        products, inverse, group, positive, B, first_row, first_column, rows, columns, BLOCK_ROWS, BLOCK_COLUMNS
    )
    setting = tl.load(settings)
    prepared = _prepare(s, setting, FOLD)
    _put_states(prepared, positive_x, setting, of_rows, i, rows, columns, 1, FOLD)
    _put_states(prepared, positive_y, setting, of_columns, j, columns, rows, 0, FOLD)


@triton.jit
def _weights_along(
    prepared, positive, setting, state, coefficient, first, index, count, AXIS: tl.constexpr, FOLD: tl.constexpr
):
    """Fold.weigh: dL/ds as far as the anchors ``first + index`` of the batch see it."""
    of_anchors = tl.expand_dims(tl.load(coefficient + first + index, mask=index < count, other=0.0), AXIS)
    if FOLD == "hinges":
        weights = tl.where(_hinges(prepared, positive, setting, AXIS) > 0, of_anchors, 0.0)
    elif FOLD == "exponentials":
        weights = prepared * of_anchors
    else:
        folded = tl.load(state + first + index, mask=index < count, other=0.0)
        weights = tl.exp(prepared - tl.expand_dims(folded, AXIS)) * of_anchors
    return weights


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def _weights(
    products, inverse, group, positive, settings, B, first_row, first_column, rows, columns,
    state, coefficients, weights, slopes,
    FOLD: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    s, i, j, inverse_x, inverse_y, positive_x, positive_y = _block(
        products, inverse, group, positive, B, first_row, first_column, rows, columns, BLOCK_ROWS, BLOCK_COLUMNS
    )
    setting = tl.load(settings)
    prepared = _prepare(s, setting, FOLD)
    of_rows = _weights_along(prepared, positive_x, setting, state, coefficients, first_row, i, rows, 1, FOLD)
    of_columns = _weights_along(
        prepared, positive_y, setting, state + B, coefficients + B, first_column, j, columns, 0, FOLD
    )
    w = of_rows + of_columns
    if slopes is not None:
        place = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(slopes + place, -tl.sum(prepared * w))
    w = w * inverse_x[:, None] * inverse_y[None, :]
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    tl.store(weights + i[:, None] * columns + j[None, :], w.to(weights.dtype.element_ty), mask=inside)


def _together(partials: Tensor, kind: str, start: int) -> State:
    """The states over all blocks of a tile, ``[parts, blocks, anchors]``, whose first candidate has index start."""
    if kind == "hardest":
        hardest, block = partials[0].max(0)  # the first of equal ones
        return hardest, partials[1].gather(0, block.unsqueeze(0)).squeeze(0).long() + start
    if kind == "logarithm":
        return (partials[0].logsumexp(0),)
    return partials.sum(1).unbind()


class Fused(Epilogue):
    """Leaves the tile, which is contiguous, as it is; weighing makes one more, in the dtype of the products' operands.

    For folds and dtypes that are supported: :func:`supports`.
    """

    def __init__(self, inverse: Tensor, ids: Tensor | None, fold: Fold, positive: Tensor, operand: torch.dtype) -> None:
        super().__init__(inverse, ids, fold, positive, operand)
        # A pair of equal numbers is no negative.
        self.group = torch.arange(len(positive), device=positive.device) if self.ids is None else self.ids
        self.kind, setting = _kind(fold)
        # On the device, whether a number or a tensor: then nothing has to wait for its value.
        self.setting = (
            setting.detach().to(positive) if isinstance(setting, Tensor) else positive.new_full((), float(setting))
        )

    @property
    def _grid(self) -> tuple[int, int]:
        rows, columns = self.tile.shape
        return triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(columns, BLOCK_COLUMNS)

    def _partials(self, parts: int) -> tuple[Tensor, Tensor]:
        """For the rows and for the columns: ``[parts, blocks of candidates, anchors]``."""
        row_blocks, column_blocks = self._grid
        rows, columns = self.tile.shape
        return self.tile.new_empty(parts, column_blocks, rows), self.tile.new_empty(parts, row_blocks, columns)

    def _launch(self, kernel: Any, *others: Tensor | None) -> None:
        with torch.cuda.device_of(self.tile):  # triton goes by the current device
            kernel[self._grid](
                self.tile, self.inverse, self.group, self.positive, self.setting,
                len(self.positive), self.I.start, self.J.start, *self.tile.shape,
                *others,
                FOLD=self.kind, BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=BLOCK_COLUMNS, num_warps=WARPS,
            )  # fmt: skip

    def states(self) -> tuple[State, State]:
        of_rows, of_columns = self._partials(2 if self.kind in ("hardest", "hinges") else 1)
        self._launch(_states, of_rows, of_columns)
        return _together(of_rows, self.kind, self.J.start), _together(of_columns, self.kind, self.I.start)

    def weigh(self, state: State, coefficients: Tensor) -> Tensor:
        if self.fold.selects:
            raise NotImplementedError("expected a fold of many pairs: one that selects a pair has no tile of weights")
        coefficients = coefficients.contiguous()
        weights = torch.empty_like(self.tile, dtype=self.operand)
        slopes = None if self.fold.parameter is None else self.tile.new_empty(self._grid)
        # Without a running maximum the weights do not depend on the state.
        folded = state[0].contiguous() if self.kind == "logarithm" else coefficients
        self._launch(_weights, folded, coefficients, weights, slopes)
        if slopes is not None:
            self._slope = slopes.sum()
        return weights

    def any_weight(self) -> bool:
        return True

    def slope(self) -> Tensor:
        return self._slope
