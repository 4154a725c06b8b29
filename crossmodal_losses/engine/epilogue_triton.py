"""Triton kernels of the epilogue on CUDA, two for a tile: one reads it, the other merges what the first found.

A program of the first takes a block of the tile. Of the inner products p there it makes

    s_ij = p_ij / (|x_i| |y_j|), EXCLUDED where j is no negative of i or lies beyond the edge of the tile,

and aggregates s along its rows (over j), along its columns (over i), or both:

    hardest        max_j s_ij, and the lowest j that attains it
    hinges         sum_j [m + s_ij - s_ii]_+, and how many hinges are above 0
    exponentials   sum_j exp(s_ij / t)
    logarithm      the largest s_ij / t of the block, and sum_j exp(s_ij / t), divided by the exponential of that
    several        the same over all j but i; and the sum of s_ij / t over the j of i's id, and their number
    pairs          sum_j log(1 + exp(z_ij)), z = s / t + b, and -z_ii for the pair itself

or writes the gradients of p, or does both where one pass finds them. It computes exp(s / t) as 2^(s log2(e) / t), and
multiplies by log2(e) / t once for a row, in 1 / |x_i|; likewise exp(z).

Every program writes its results to separate places, and the second kernel combines the blocks, and what is known from
other tiles, in a fixed order: no two programs add to the same number, so that a result is the same every time.

A tile lies in memory that whole blocks cover: its loads need no mask, so that they take 16 bytes each.

epilogue_fused.py launches them.
"""
# Long because every argument of a kernel stands in a line of its own.
# Kernels are written in triton's own language, which has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from crossmodal_losses.engine.aggregation import EXCLUDED
from crossmodal_losses.engine.formulas_triton import _sigmoid_of_exp2, _softplus_of_exp2

# Whether these are multiples of 16 makes no faster kernel, only more of them to compile. It does for ``stride``, which
# always is one.
NOT_SPECIALISED = ("rows", "of_row", "of_column", "anchor_row", "anchor_column", "state_row", "state_column", "columns")

_EXCLUDED = tl.constexpr(EXCLUDED)
_LOWEST = tl.constexpr(-3e38)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_NO_INDEX = tl.constexpr(2**31 - 1)
_MERGED = tl.constexpr(32)  # so many blocks at a time

# Below, an anchor's candidates lie along AXIS 1 of the block if it is a row, and along AXIS 0 if it is a column, as in
# aggregation.py. The grid of the first kernel has the axes of the block.


@triton.jit
def _with_diagonal(values, others, anchor_row, anchor_column, i, j):
    """Put others in the place of values on the diagonal of S; blocks beside it compare nothing."""
    ahead = (anchor_row + tl.program_id(0) * values.shape[0]) - (anchor_column + tl.program_id(1) * values.shape[1])
    if (ahead < values.shape[1]) & (-ahead < values.shape[0]):
        values = tl.where((anchor_row + i)[:, None] == (anchor_column + j)[None, :], others, values)
    return values


@triton.jit
def _exclude(
    s,
    excluded,
    of_pair,
    ids_x,
    ids_y,
    of_row,
    of_column,
    anchor_row,
    anchor_column,
    rows,
    columns,
    i,
    j,
    EXCLUDE: tl.constexpr,
    KIND: tl.constexpr,
):
    """Put excluded in the place of pairs that are no negatives, and of_pair in that of a pair itself.

    Blocks inside of the tile compare only their ids.
    """
    if EXCLUDE == "ids":
        id_i = tl.load(ids_x + of_row + i, mask=i < rows, other=0)
        id_j = tl.load(ids_y + of_column + j, mask=j < columns, other=0)
        s = tl.where(id_i[:, None] != id_j[None, :], s, excluded)
    if EXCLUDE == "diagonal" or (EXCLUDE == "ids" and KIND == "pairs"):
        s = _with_diagonal(s, of_pair, anchor_row, anchor_column, i, j)
    row, column = tl.program_id(0) * s.shape[0], tl.program_id(1) * s.shape[1]
    if (row + s.shape[0] > rows) | (column + s.shape[1] > columns):
        s = tl.where((i < rows)[:, None] & (j < columns)[None, :], s, excluded)
    return s


@triton.jit
def _hinges(s, positive, margin, AXIS: tl.constexpr):
    shifted = s + tl.expand_dims(margin - positive, AXIS)
    return tl.maximum(shifted, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _one_if(condition):
    """1 where it holds, else 0; in one instruction, where a cast takes several."""
    return tl.where(condition, 1.0, 0.0)


@triton.jit
def _store(values, part, partials, anchor, AXIS: tl.constexpr, LENGTH: tl.constexpr):
    """Store in ``partials[part, place of the block along AXIS, anchor]``, where whole blocks of anchors have room."""
    place = (part * tl.num_programs(AXIS) + tl.program_id(AXIS)).to(tl.int64)
    tl.store(partials + place * (tl.num_programs(1 - AXIS) * LENGTH) + anchor, values)


@triton.jit
def _store_states(
    s, same, positive, setting, partials, anchor, candidate, candidates, AXIS: tl.constexpr, KIND: tl.constexpr
):
    """Aggregation.tile_state, over the candidates in the block."""
    LENGTH: tl.constexpr = s.shape[1 - AXIS]
    if KIND == "hardest":
        hardest = tl.max(s, AXIS)
        attains = s == tl.expand_dims(hardest, AXIS)
        index = tl.min(tl.where(attains, tl.expand_dims(candidate, 1 - AXIS), _NO_INDEX), AXIS)
        index = tl.minimum(index, candidates - 1)  # nothing equals a NaN
        _store(hardest, 0, partials, anchor, AXIS, LENGTH)
        _store(index.to(tl.float32, bitcast=True), 1, partials, anchor, AXIS, LENGTH)
    elif KIND == "hinges":
        hinges = _hinges(s, positive, setting, AXIS)
        _store(tl.sum(hinges, AXIS), 0, partials, anchor, AXIS, LENGTH)
        # The bits of a hinge, as a whole number, are above 0 where the hinge is. The compiler packs comparisons that
        # are used here and in the gradient into bits, and unpacks them.
        violating = tl.minimum(hinges.to(tl.int32, bitcast=True), 1)
        _store(tl.sum(violating, AXIS).to(tl.float32), 1, partials, anchor, AXIS, LENGTH)
    elif KIND == "exponentials":
        _store(tl.sum(s, AXIS), 0, partials, anchor, AXIS, LENGTH)
    elif KIND == "pairs":
        _store(tl.sum(_softplus_of_exp2(s), AXIS), 0, partials, anchor, AXIS, LENGTH)
    else:
        # All pairs of a block may be excluded: -inf if the temperature is tiny, and -inf minus -inf would be NaN.
        largest = tl.maximum(tl.max(s, AXIS), _LOWEST)
        _store(largest, 0, partials, anchor, AXIS, LENGTH)
        _store(tl.sum(tl.exp2(s - tl.expand_dims(largest, AXIS)), AXIS), 1, partials, anchor, AXIS, LENGTH)
        if KIND == "several":  # pragma: no branch - the interpreter hides the end of a kernel
            _store(tl.sum(tl.where(same, s, 0.0), AXIS) * _LN_2, 2, partials, anchor, AXIS, LENGTH)
            _store(tl.sum(_one_if(same), AXIS), 3, partials, anchor, AXIS, LENGTH)


@triton.jit
def _grad_along(
    s, same, positive, setting, state, shares, factors, at, index, count, AXIS: tl.constexpr, KIND: tl.constexpr
):
    """Aggregation.grad_tile, of the anchors whose state begins at ``at``."""
    inside = index < count
    factor = tl.expand_dims(tl.load(factors + at + index, mask=inside, other=0.0), AXIS)
    if KIND == "pairs":
        grad = _sigmoid_of_exp2(s) * factor
    elif KIND == "hinges":
        grad = _one_if(_hinges(s, positive, setting, AXIS) > 0) * factor
    elif KIND == "exponentials":
        grad = s * factor
    else:
        logarithm = tl.load(state + at + index, mask=inside, other=0.0) * _LOG2_E
        grad = tl.exp2(s - tl.expand_dims(logarithm, AXIS)) * factor
        if KIND == "several":
            share = tl.load(shares + at + index, mask=inside, other=0.0)
            grad -= tl.where(same, tl.expand_dims(share, AXIS), 0.0)
    return grad


# Long because every argument of a kernel stands in a line of its own.
@triton.jit(do_not_specialize=NOT_SPECIALISED)
def tile(
    products,
    stride,
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
    state,
    shares,
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
    """Write the states of the blocks of a tile, where of_rows and of_columns are given, and the tile's gradient."""
    i = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    j = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    setting = tl.load(settings)
    inv_norm_i = tl.load(inv_norm_x + of_row + i, mask=i < rows, other=0.0)
    inv_norm_j = tl.load(inv_norm_y + of_column + j, mask=j < columns, other=0.0)
    at = i.to(tl.int64)[:, None] * stride + j[None, :]  # a tile may have more than 2^31 entries
    p = tl.load(products + at)
    if KIND == "hardest" or KIND == "hinges":
        s, excluded = p * inv_norm_i[:, None] * inv_norm_j[None, :], _EXCLUDED
    else:
        scale = _LOG2_E / setting
        s, excluded = p * (inv_norm_i * scale)[:, None] * inv_norm_j[None, :], _EXCLUDED * scale
    of_pair = excluded
    if KIND == "pairs":
        s, excluded = s + tl.load(settings + 1) * _LOG2_E, _EXCLUDED
        of_pair = -s
    same = i[:, None] < 0  # of "several" the pairs of one id; else none
    if KIND == "several" and EXCLUDE == "ids":
        id_i = tl.load(ids_x + of_row + i, mask=i < rows, other=0)
        id_j = tl.load(ids_y + of_column + j, mask=j < columns, other=0)
        other = (anchor_row + i)[:, None] != (anchor_column + j)[None, :]
        other = other & (i < rows)[:, None] & (j < columns)[None, :]
        s, same = tl.where(other, s, excluded), other & (id_i[:, None] == id_j[None, :])
    else:
        s = _exclude(
            s,
            excluded,
            of_pair,
            ids_x,
            ids_y,
            of_row,
            of_column,
            anchor_row,
            anchor_column,
            rows,
            columns,
            i,
            j,
            EXCLUDE,
            KIND,
        )
    if KIND == "exponentials":
        s = tl.exp2(s)
    positive_i, positive_j = inv_norm_i, inv_norm_j
    if KIND == "hinges":
        if ROWS:
            positive_i = tl.load(positive + anchor_row + i, mask=i < rows, other=0.0)
        if COLUMNS:
            positive_j = tl.load(positive + anchor_column + j, mask=j < columns, other=0.0)
    if grad_products is not None:  # pragma: no branch - the interpreter hides the end of a kernel
        grad = tl.zeros_like(s)
        if ROWS:
            grad += _grad_along(s, same, positive_i, setting, state, shares, factors, state_row, i, rows, 1, KIND)
        if COLUMNS:
            grad += _grad_along(s, same, positive_j, setting, state, shares, factors, state_column, j, columns, 0, KIND)
        place = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        if grad_parameters is not None:
            tl.store(grad_parameters + place, -tl.sum(s * grad) * _LN_2)
        if KIND == "pairs" and EXCLUDE != "nothing":
            grad = _with_diagonal(grad, -grad, anchor_row, anchor_column, i, j)
        if KIND == "pairs" and grad_parameters is not None:
            tl.store(grad_parameters + tl.num_programs(0) * tl.num_programs(1) + place, tl.sum(grad))
        grad = grad * inv_norm_i[:, None] * inv_norm_j[None, :]
        tl.store(grad_products + at, grad.to(grad_products.dtype.element_ty))
    if of_rows is not None:
        _store_states(s, same, positive_i, setting, of_rows, i, j, columns, 1, KIND)
    if of_columns is not None:  # pragma: no branch
        _store_states(s, same, positive_j, setting, of_columns, j, i, rows, 0, KIND)


@triton.jit
def _merge_along(
    partials, blocks, values, others, counts, at, anchors, first, stride, LENGTH: tl.constexpr, KIND: tl.constexpr
):
    """Merge the states of blocks of a tile into those of its anchors, which begin at ``at``; in order of the blocks."""
    anchor = tl.program_id(0) * LENGTH + tl.arange(0, LENGTH)
    known = anchor < anchors
    to = at + anchor
    value = tl.load(values + to, mask=known, other=0.0)
    block = tl.arange(0, _MERGED)
    other_part = blocks.to(tl.int64) * stride
    if KIND == "hardest":
        index = tl.load(others + to, mask=known, other=0)
    if KIND == "hinges" or KIND == "several":
        other = tl.load(others + to, mask=known, other=0.0)
    if KIND == "several":
        count = tl.load(counts + to, mask=known, other=0.0)
    if KIND == "logarithm" or KIND == "several":
        largest = tl.maximum(value, _LOWEST)
        total = tl.exp2(value - largest)
    start = blocks * 0
    while start < blocks:
        source = partials + (start + block).to(tl.int64)[:, None] * stride + anchor[None, :]
        there = (start + block < blocks)[:, None]
        if KIND == "hardest":
            found = tl.load(source, mask=there, other=-float("inf"))
            place = tl.load(source + other_part, mask=there, other=0.0).to(tl.int32, bitcast=True)
            hardest = tl.max(found, 0)
            lowest = tl.min(tl.where(found == hardest[None, :], place, _NO_INDEX), 0).to(tl.int64) + first
            harder = (hardest > value) | ((hardest == value) & (lowest < index))
            value, index = tl.where(harder, hardest, value), tl.where(harder, lowest, index)
        elif KIND == "logarithm" or KIND == "several":
            found = tl.load(source, mask=there, other=-float("inf"))
            before, largest = largest, tl.maximum(largest, tl.max(found, 0))
            of_blocks = tl.load(source + other_part, mask=there, other=0.0) * tl.exp2(found - largest[None, :])
            total = total * tl.exp2(before - largest) + tl.sum(of_blocks, 0)
        else:
            value += tl.sum(tl.load(source, mask=there, other=0.0), 0)
        if KIND == "hinges":
            other += tl.sum(tl.load(source + other_part, mask=there, other=0.0), 0)
        if KIND == "several":
            other += tl.sum(tl.load(source + 2 * other_part, mask=there, other=0.0), 0)
            count += tl.sum(tl.load(source + 3 * other_part, mask=there, other=0.0), 0)
        start += _MERGED
    if KIND == "logarithm" or KIND == "several":
        value = tl.log2(total) + largest
    tl.store(values + to, value, mask=known)
    if KIND == "hardest":
        tl.store(others + to, index, mask=known)
    if KIND == "hinges" or KIND == "several":
        tl.store(others + to, other, mask=known)
    if KIND == "several":  # pragma: no branch
        tl.store(counts + to, count, mask=known)


@triton.jit(do_not_specialize=("B", "anchor_row", "anchor_column", "rows", "columns", "row_blocks", "column_blocks"))
def merge(
    of_rows,
    of_columns,
    values,
    others,
    counts,
    B,
    anchor_row,
    anchor_column,
    rows,
    columns,
    row_blocks,
    column_blocks,
    KIND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Merge the states of the blocks of a tile into values, others and counts, ``[2, B]``, in place.

    Axis 0 of the grid: blocks of anchors; axis 1: rows, columns.
    """
    block = tl.program_id(0)
    if tl.program_id(1) == 0:
        if of_rows is not None and block < row_blocks:  # pragma: no branch
            size = row_blocks * BLOCK_ROWS
            _merge_along(
                of_rows, column_blocks, values, others, counts, anchor_row, rows, anchor_column, size, BLOCK_ROWS, KIND
            )
    elif of_columns is not None and block < column_blocks:  # pragma: no branch
        size, at = column_blocks * BLOCK_COLUMNS, B + anchor_column
        _merge_along(of_columns, row_blocks, values, others, counts, at, columns, anchor_row, size, BLOCK_COLUMNS, KIND)
