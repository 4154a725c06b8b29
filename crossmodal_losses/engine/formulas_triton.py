"""The formulas of small batches (:class:`Formula`) in Triton: of a matrix of similarities, all in registers.

An anchor's candidates lie along AXIS 1 of a matrix if it is a row, and along AXIS 0 if it is a column. Of an anchor, p
is the similarity of its positive.
"""
# Functions are written in triton's own language, which has no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from crossmodal_losses.engine.aggregation import EXCLUDED

_EXCLUDED = tl.constexpr(EXCLUDED)
_LOG2_E, _LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
_LAST = tl.constexpr(2**31 - 1)


@triton.jit
def _log1p_up_to_1(x):
    """log(1 + x), 0 <= x <= 1, to the last digits: a device's fast logarithm has an absolute error near 1."""
    w = x / (2.0 + x)
    q = w * w
    series = 1.0 / 13 + q * (1.0 / 15)
    series = 1.0 / 11 + q * series
    series = 1.0 / 9 + q * series
    series = 1.0 / 7 + q * series
    series = 1.0 / 5 + q * series
    series = 1.0 / 3 + q * series
    return 2.0 * w * (1.0 + q * series)


@triton.jit
def _log1p(x):
    """log(1 + x), x >= 0."""
    return tl.where(x < 1.0, _log1p_up_to_1(tl.minimum(x, 1.0)), tl.log(1.0 + x))


@triton.jit
def _softplus(z):
    """log(1 + exp(z))."""
    return _softplus_of_exp2(z * _LOG2_E)


@triton.jit
def _softplus_of_exp2(z):
    """log(1 + 2^z)."""
    return tl.maximum(z, 0.0) * _LN_2 + _log1p_up_to_1(tl.exp2(-tl.abs(z)))


@triton.jit
def _sigmoid(z):
    return _sigmoid_of_exp2(z * _LOG2_E)


@triton.jit
def _sigmoid_of_exp2(z):
    """2^z / (1 + 2^z)."""
    return 1.0 / (1.0 + tl.exp2(-z))


@triton.jit
def _log_sum_exp(z, counted, AXIS: tl.constexpr):
    """log sum exp(z) over those that count; -inf where none does."""
    largest = tl.max(tl.where(counted, z, _EXCLUDED), AXIS)
    total = tl.sum(tl.where(counted, tl.exp2((z - tl.expand_dims(largest, AXIS)) * _LOG2_E), 0.0), AXIS)
    return tl.where(total > 0, tl.log2(tl.where(total > 0, total, 1.0)) * _LN_2 + largest, float("-inf"))


@triton.jit
def _hinges(s, p, negative, margin, AXIS: tl.constexpr):
    hinges = s + tl.expand_dims(margin - p, AXIS)
    violating = negative & (hinges > 0)
    weights = tl.where(violating, 1.0, 0.0)
    return tl.sum(tl.where(violating, hinges, 0.0), AXIS), -tl.sum(weights, AXIS), weights


@triton.jit
def _polynomial(c0, c1, c2, s):
    """A polynomial of degree 2, and its derivative."""
    return (c1 + c2 * s) * s + c0, c1 + 2 * c2 * s


@triton.jit
def _hardest(s, p, negative, place, a0, a1, a2, b0, b1, b2, margin, perfect, AXIS: tl.constexpr, FORMULA: tl.constexpr):
    candidates = tl.where(negative, s, _EXCLUDED)
    hardest = tl.max(candidates, AXIS)
    attained = candidates == tl.expand_dims(hardest, AXIS)
    first = tl.min(tl.where(attained, tl.expand_dims(place, 1 - AXIS), _LAST), AXIS)
    some = hardest > _EXCLUDED
    n = tl.where(some, hardest, 0.0)
    of_p, grad_p = _polynomial(a0, a1, a2, p)
    of_n, grad_n = _polynomial(b0, b1, b2, n)
    if FORMULA == "mined polynomials":
        counts = some & (n + margin > p) & (p < perfect)
        loss = tl.where(counts, tl.maximum(of_p, 0.0) + tl.maximum(of_n, 0.0), 0.0)
        grad_p = tl.where(counts & (of_p > 0), grad_p, 0.0)
        grad_n = tl.where(counts & (of_n > 0), grad_n, 0.0)
    else:
        counts = some & (of_n + of_p > 0)
        loss = tl.where(counts, of_n + of_p, 0.0)
        grad_p = tl.where(counts, grad_p, 0.0)
        grad_n = tl.where(counts, grad_n, 0.0)
    selected = tl.expand_dims(first, AXIS) == tl.expand_dims(place, 1 - AXIS)
    return loss, grad_p, tl.where(selected, tl.expand_dims(grad_n, AXIS), 0.0)


@triton.jit
def _softmax(s, p, negative, t, AXIS: tl.constexpr, FORMULA: tl.constexpr):
    if FORMULA == "warm softmax":
        scale = _LOG2_E / t
        exponentials = tl.where(negative, tl.exp2(s * scale), 0.0)
        of_negatives, of_positive = tl.sum(exponentials, AXIS), tl.exp2(p * scale)
        total = of_negatives + of_positive
        loss, grad_p = _log1p(of_negatives / of_positive), -of_negatives / total
        weights = exponentials * tl.expand_dims(1.0 / total, AXIS)
    else:
        z, own = s * (1.0 / t), p * (1.0 / t)
        difference = _log_sum_exp(z, negative, AXIS) - own
        loss, grad_p = _softplus(difference), -_sigmoid(difference)
        weights = tl.where(negative, tl.exp2((z - tl.expand_dims(own + loss, AXIS)) * _LOG2_E), 0.0)
    return loss, grad_p * (1.0 / t), weights * (1.0 / t)


@triton.jit
def _softmax_of_several(s, p, negative, other, t, AXIS: tl.constexpr):
    z, own = s * (1.0 / t), p * (1.0 / t)
    difference = _log_sum_exp(z, other, AXIS) - own
    positives = tl.where(other & (negative == 0), 1.0, 0.0)
    share = 1.0 / (1.0 + tl.sum(positives, AXIS))
    found = _softplus(difference)
    loss = found - tl.sum(positives * (z - tl.expand_dims(own, AXIS)), AXIS) * share
    grad_p = (1.0 - share) - _sigmoid(difference)
    softmax = tl.where(other, tl.exp2((z - tl.expand_dims(own + found, AXIS)) * _LOG2_E), 0.0)
    return loss, grad_p * (1.0 / t), (softmax - positives * tl.expand_dims(share, AXIS)) * (1.0 / t)


@triton.jit
def _pairs_by_themselves(s, p, negative, t, bias, AXIS: tl.constexpr):
    some = tl.max(negative.to(tl.int32), AXIS) > 0
    z, of_pair = s * (1.0 / t) + bias, -(p * (1.0 / t) + bias)
    loss = tl.sum(tl.where(negative, _softplus(z), 0.0), AXIS) + _softplus(of_pair)
    grad_p, weights = -_sigmoid(of_pair) * (1.0 / t), tl.where(negative, _sigmoid(z) * (1.0 / t), 0.0)
    return tl.where(some, loss, 0.0), tl.where(some, grad_p, 0.0), weights


@triton.jit
def anchor_losses(
    s, p, negative, other, place, n0, n1, n2, n3, n4, n5, n6, n7, AXIS: tl.constexpr, FORMULA: tl.constexpr
):
    """The losses of the anchors of a direction, their derivatives in p, and those in s of all other pairs.

    ``other`` says which are the other pairs, ``negative`` which of these are negatives, and ``place`` is the number of
    a candidate.
    """
    if FORMULA == "hinges":
        loss, grad_p, weights = _hinges(s, p, negative, n0, AXIS)
    elif FORMULA == "warm softmax" or FORMULA == "softmax":
        loss, grad_p, weights = _softmax(s, p, negative, n0, AXIS, FORMULA)
    elif FORMULA == "softmax of several":
        loss, grad_p, weights = _softmax_of_several(s, p, negative, other, n0, AXIS)
    elif FORMULA == "pairs":
        loss, grad_p, weights = _pairs_by_themselves(s, p, negative, n0, n1, AXIS)
    else:
        loss, grad_p, weights = _hardest(s, p, negative, place, n0, n1, n2, n3, n4, n5, n6, n7, AXIS, FORMULA)
    return loss, grad_p, weights
