"""Triton kernels for single rows of embeddings on CUDA, one program for each row, in float32.

    measure           2^k, and 1 / |x / 2^k|
    differentiate     dL/dx = (g - (g . u) u / |u|^2) / 2^k, u = x / 2^k

rows_fused.py launches them.
"""
# Kernels are written in triton's own language, which has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _exponent(rows, at, step, D: tl.constexpr, BLOCK: tl.constexpr):
    """The exponent of the power of two below the largest |entry| of a row, plus 127; and whether all are finite.

    The power and its inverse are normal numbers. It is 1 for a row of zeros.
    """
    d = tl.arange(0, BLOCK).to(tl.int64)  # rows may lie along the columns of a long table
    # The bits of |x| as a whole number: in their order a NaN is the largest, where a maximum would drop it.
    largest = tl.zeros([BLOCK], tl.int32)
    for start in range(0, D, BLOCK):
        values = tl.load(rows + at + (start + d) * step, mask=start + d < D, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    bits = tl.max(largest, 0)
    exponent = tl.where(bits == 0, 127, tl.minimum(tl.maximum(bits >> 23, 1), 253))
    return exponent, (bits >> 23) < 255


@triton.jit
def measure(rows, stride, step, inv_norm, scale, D: tl.constexpr, BLOCK: tl.constexpr):
    """Write the scale of a row, NaN for one with a NaN or an inf, and its inverse norm, 0 for a row of zeros."""
    row = tl.program_id(0)
    at, d = row.to(tl.int64) * stride, tl.arange(0, BLOCK).to(tl.int64)
    exponent, finite = _exponent(rows, at, step, D, BLOCK)
    inverse_power = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        values = tl.load(rows + at + (start + d) * step, mask=start + d < D, other=0.0).to(tl.float32) * inverse_power
        squares += values * values
    square = tl.sum(squares, 0)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(tl.where(square == 0, 1.0, square)))
    inverse = tl.where(square == 0, 0.0, inverse)
    tl.store(inv_norm + row, tl.where(finite, inverse, float("nan")))
    tl.store(scale + row, tl.where(finite, (exponent << 23).to(tl.float32, bitcast=True), float("nan")))


@triton.jit
def differentiate(grad, grad_stride, rows, stride, step, inv_norm, scale, D: tl.constexpr, BLOCK: tl.constexpr):
    """Turn a row of the gradient of normalised rows into that of the rows, in place."""
    row = tl.program_id(0)
    at, to, d = row.to(tl.int64) * stride, row.to(tl.int64) * grad_stride, tl.arange(0, BLOCK).to(tl.int64)
    inverse, power = tl.load(inv_norm + row), tl.load(scale + row)
    dots = tl.zeros([BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        inside = start + d < D
        u = tl.div_rn(tl.load(rows + at + (start + d) * step, mask=inside, other=0.0).to(tl.float32), power)
        dots += u * tl.load(grad + to + start + d, mask=inside, other=0.0)
    along = tl.sum(dots, 0) * inverse * inverse
    for start in range(0, D, BLOCK):  # pragma: no branch - the interpreter hides the end of a kernel
        inside = start + d < D
        u = tl.div_rn(tl.load(rows + at + (start + d) * step, mask=inside, other=0.0).to(tl.float32), power)
        g = tl.load(grad + to + start + d, mask=inside, other=0.0)
        tl.store(grad + to + start + d, tl.div_rn(g - along * u, power), mask=inside)
