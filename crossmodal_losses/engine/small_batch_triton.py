"""Triton kernels for a small batch of pairs on CUDA: all of S in the registers of one block, in float32.

    scale_rows    u = x / 2^k, 1 / |u|                                    one program for each row of x and of y
    pair_losses   s_ij = p_ij / (|u_i| |u_j|), the loss, W_ij = dL/dp_ij  one program
    finish        dL/dx = (g - (g . u) u / |u|^2) / 2^k                   one program for each row of x and of y

The products p between the first two and g = W u between the last two are those of the platform. No two programs write
to the same number. The formulas of the losses are in formulas_triton.py.

Only modules whose names end in _triton import triton, and the engine imports them only for tensors on CUDA.
"""
# Kernels are written in triton's own language, which has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from crossmodal_losses.engine.formulas_triton import anchor_losses


@triton.jit(do_not_specialize=("B",))
def scale_rows(x, y, scaled, inv_norm, powers, B, D: tl.constexpr, BLOCK: tl.constexpr):
    """Scale a row by a power of two, which does not round.

    scaled [2, B, D] has y before x: so they are multiplied by the weights. inv_norm and powers, [2, B], have x before
    y. An inverse norm is 0 for a row of zeros, and NaN for one with a NaN or an inf.
    """
    row, side = tl.program_id(0), tl.program_id(1)
    at, to = row.to(tl.int64) * D, ((1 - side) * B + row).to(tl.int64) * D
    d = tl.arange(0, BLOCK)
    # The bits of |x| as a whole number: in their order a NaN is the largest, where a maximum would drop it.
    largest = tl.zeros([BLOCK], tl.int32)
    for start in range(0, D, BLOCK):
        inside = start + d < D
        if side == 0:
            values = tl.load(x + at + start + d, mask=inside, other=0.0).to(tl.float32)
        else:
            values = tl.load(y + at + start + d, mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    exponent = tl.minimum(tl.maximum(tl.max(largest, 0) >> 23, 1), 253)  # so that the power is a number, too
    power = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        inside = start + d < D
        if side == 0:
            values = tl.load(x + at + start + d, mask=inside, other=0.0).to(tl.float32)
        else:
            values = tl.load(y + at + start + d, mask=inside, other=0.0).to(tl.float32)
        values *= power
        tl.store(scaled + to + start + d, values, mask=inside)
        squares += values * values
    square = tl.sum(squares, 0)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(tl.where(square == 0, 1.0, square)))
    inverse = tl.where(square == 0, 0.0, inverse)
    tl.store(inv_norm + side * B + row, tl.where(square < float("inf"), inverse, float("nan")))
    tl.store(powers + side * B + row, power)


@triton.jit
def _anchors(
    products,
    inv_norm,
    ids,
    upstream,
    stride,
    factor,
    i,
    j,
    B,
    n0,
    n1,
    n2,
    n3,
    n4,
    n5,
    n6,
    n7,
    AXIS: tl.constexpr,
    FORMULA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The losses of some rows i, with all columns j, or of some columns with all rows; dL/ds; and sum_ij s_ij dL/ds_ij.

    Losses are times the factor, dL/ds is that times upstream. Beyond [B, B] all is 0.
    """
    in_i, in_j = i < B, j < B
    inside, diagonal = in_i[:, None] & in_j[None, :], i[:, None] == j[None, :]
    inverse_i = tl.load(inv_norm + i, mask=in_i, other=0.0)
    inverse_j = tl.load(inv_norm + B + j, mask=in_j, other=0.0)
    s = tl.load(products + i[:, None] * BLOCK + j[None, :]) * inverse_i[:, None] * inverse_j[None, :]
    s = tl.where(inside, s, 0.0)  # beyond there is what the memory held
    p = tl.sum(tl.where(diagonal, s, 0.0), AXIS)
    other = inside & (diagonal == 0)
    negative = other
    if ids is not None:
        id_i, id_j = tl.load(ids + i, mask=in_i, other=0), tl.load(ids + j, mask=in_j, other=0)
        negative = inside & (id_i[:, None] != id_j[None, :])
    if AXIS == 1:
        anchor, place = i, j
    else:
        anchor, place = j, i
    loss, grad_p, grad = anchor_losses(
        s, p, negative, other, place, n0, n1, n2, n3, n4, n5, n6, n7, AXIS=AXIS, FORMULA=FORMULA
    )
    loss = tl.where(anchor < B, loss * factor, 0.0)
    grad_factor = tl.where(anchor < B, factor, 0.0)
    if upstream is not None:
        grad_factor *= tl.load(upstream + anchor * stride, mask=anchor < B, other=0.0)
    grad = tl.where(diagonal, tl.expand_dims(grad_p, AXIS), grad) * tl.expand_dims(grad_factor, AXIS)
    return loss, grad, tl.sum(tl.sum(grad * s, 1), 0)


# Long because it says for each of many arguments what it is, and calls with all of them.
@triton.jit(do_not_specialize=("B", "stride"))
def pair_losses(
    products,
    inv_norm,
    ids,
    parameter,
    upstream,
    stride,
    loss,
    weights,
    grad_parameter,
    B,
    factor,
    weight_x,
    weight_y,
    n0,
    n1,
    n2,
    n3,
    n4,
    n5,
    n6,
    n7,
    FORMULA: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """Compute the loss, or dL/dp_ij, its transpose and dL/dparameter, or all of these; None stands for what is not.

    Some rows at a time, then some columns: registers hold few matrices of [BLOCK, BLOCK].

    Args:
        products: p, [BLOCK, BLOCK], of which [B, B] is read; inv_norm: [2, B].
        ids: [B], or None; parameter: what n0 (and n1) are if it is not None.
        upstream: the gradient of the loss; None stands for 1; stride: that of upstream, [B].
        loss: [B] if EACH, else []; weights: [2, BLOCK, BLOCK].
        factor: that of the sum over the anchors.
        PART: how many rows, or columns, are computed at a time.
    """
    everything = tl.arange(0, BLOCK)
    inverse_x = tl.load(inv_norm + everything, mask=everything < B, other=0.0)
    inverse_y = tl.load(inv_norm + B + everything, mask=everything < B, other=0.0)
    nan = tl.sum(0 * inverse_x, 0) + tl.sum(0 * inverse_y, 0)  # NaN if a row has a NaN or an inf, else 0
    if parameter is not None:
        n0 = tl.load(parameter).to(tl.float32)
        if FORMULA == "pairs":
            n1 = tl.load(parameter + 1).to(tl.float32)
    total, grad_times_s, of_bias = nan, nan, nan
    for start in range(0, BLOCK, PART):
        i = start + tl.arange(0, PART)
        of_i, grad, times_s = _anchors(
            products,
            inv_norm,
            ids,
            upstream,
            stride,
            factor * weight_x,
            i,
            everything,
            B,
            n0,
            n1,
            n2,
            n3,
            n4,
            n5,
            n6,
            n7,
            AXIS=1,
            FORMULA=FORMULA,
            BLOCK=BLOCK,
        )
        grad_times_s += times_s
        of_bias += tl.sum(tl.sum(grad, 1), 0)
        total += tl.sum(of_i, 0)
        if loss is not None and EACH:
            tl.store(loss + i, of_i + nan, mask=i < B)
        if weights is not None:
            tl.store(weights + i[:, None] * BLOCK + everything[None, :], grad)
    tl.debug_barrier()
    for start in range(0, BLOCK, PART):
        j = start + tl.arange(0, PART)
        grad = tl.zeros([BLOCK, PART], tl.float32)
        if FORMULA != "pairs":  # each of which counts once
            of_j, grad, times_s = _anchors(
                products,
                inv_norm,
                ids,
                upstream,
                stride,
                factor * weight_y,
                everything,
                j,
                B,
                n0,
                n1,
                n2,
                n3,
                n4,
                n5,
                n6,
                n7,
                AXIS=0,
                FORMULA=FORMULA,
                BLOCK=BLOCK,
            )
            grad_times_s += times_s
            total += tl.sum(of_j, 0)
            if loss is not None and EACH:
                tl.store(loss + j, tl.load(loss + j, mask=j < B) + of_j, mask=j < B)
        if weights is not None:
            at = weights + everything[:, None] * BLOCK + j[None, :]
            inverse_j = tl.load(inv_norm + B + j, mask=j < B, other=0.0)
            grad = (tl.load(at) + grad) * inverse_x[:, None] * inverse_j[None, :] + nan
            tl.store(at, grad)
            tl.store(weights + BLOCK * BLOCK + j[:, None] * BLOCK + everything[None, :], tl.trans(grad))
    if loss is not None and not EACH:
        tl.store(loss, total)
    if grad_parameter is not None:  # pragma: no branch - the interpreter hides the end of a kernel
        tl.store(grad_parameter, -grad_times_s / n0)
        if FORMULA == "pairs":  # pragma: no branch
            tl.store(grad_parameter + 1, n0 * of_bias)


@triton.jit(do_not_specialize=("B",))
def finish(g, scaled, inv_norm, powers, upstream, grad_x, grad_y, B, D: tl.constexpr, BLOCK: tl.constexpr):
    """Differentiate normalisation and scaling: a row of the gradients of x and y. Upstream None stands for 1."""
    row, side = tl.program_id(0), tl.program_id(1)
    at, of_u = (side * B + row).to(tl.int64) * D, ((1 - side) * B + row).to(tl.int64) * D
    to = row.to(tl.int64) * D
    inverse, factor = tl.load(inv_norm + side * B + row), tl.load(powers + side * B + row)
    d = tl.arange(0, BLOCK)
    dots = tl.zeros([BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        inside = start + d < D
        u = tl.load(scaled + of_u + start + d, mask=inside, other=0.0)
        dots += u * tl.load(g + at + start + d, mask=inside, other=0.0)
    along = tl.sum(dots, 0) * inverse * inverse
    for start in range(0, D, BLOCK):  # pragma: no branch
        inside = start + d < D
        u = tl.load(scaled + of_u + start + d, mask=inside, other=0.0)
        grad = tl.load(g + at + start + d, mask=inside, other=0.0) - along * u
        if upstream is not None:
            grad *= tl.load(upstream)
        grad *= factor
        if side == 0:
            tl.store(grad_x + to + start + d, grad.to(grad_x.dtype.element_ty), mask=inside)
        else:
            tl.store(grad_y + to + start + d, grad.to(grad_y.dtype.element_ty), mask=inside)
