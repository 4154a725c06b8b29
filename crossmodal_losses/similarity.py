"""Cosine similarity (equation 1), and the negatives among the B x B pairs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.checks import check_embeddings

HALF = (torch.float16, torch.bfloat16)


def at_least_float32(value: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; statistics are never computed in half precision."""
    return value.float() if value.dtype in HALF else value


def computation_dtype(*embeddings: Tensor) -> torch.dtype:
    """Return float64 if one of the tensors is float64, else float32."""
    return torch.float64 if any(part.dtype == torch.float64 for part in embeddings) else torch.float32


def normalise(x: Tensor) -> Tensor:
    """Scale rows to unit length, ``[B, D] -> [B, D]``; a row of zeros stays one and receives a zero gradient."""
    # Division by the largest entry keeps the squares from over- and underflowing. x / |x| does not depend on this
    # factor, so autograd may treat it as a constant, for derivatives of every order.
    largest = x.detach().abs().amax(1, keepdim=True)
    x = x / largest.masked_fill(largest == 0, 1)
    square = x.square().sum(1, keepdim=True)
    zero = square == 0
    return x * square.masked_fill(zero, 1).rsqrt().masked_fill(zero, 0)


class _ProductWithoutAutocast(torch.autograd.Function):
    """Compute ``a @ b.T`` in the dtype of a and b, under autocast too, forward and backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            return a @ b.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        with torch.autocast(a.device.type, enabled=False):
            return (
                gradient @ b if ctx.needs_input_grad[0] else None,
                gradient.T @ a if ctx.needs_input_grad[1] else None,
            )


class _ProductWithTangents(_ProductWithoutAutocast):
    """The same with a forward-mode derivative, which torch.compile (2.4 to 2.15) does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        _ProductWithoutAutocast.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, tangent_a: Tensor, tangent_b: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        with torch.autocast(a.device.type, enabled=False):
            tangent: Tensor = tangent_a @ b.T + a @ tangent_b.T
            return tangent


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    r"""Compute the cosine similarity of every row of x with every row of y.

    .. math:: s_{ij} = \frac{x_i \cdot y_j}{\lVert x_i \rVert_2 \, \lVert y_j \rVert_2}

    Mei et al. 2022, equation 1.

    Args:
        x, y: floating ``[N, D]`` and ``[M, D]``, not necessarily normalised. For a loss N = M = B, and the i-th rows
            are a pair.

    Returns:
        S, ``[N, M]``, in [-1, 1] up to rounding; float64 if x or y is, else float32. Half precision is converted to
        float32 before anything is computed, under autocast too; only TF32, if you allow it, lowers the precision. A row
        of zeros has similarity 0 to everything; a row with a NaN or an inf has similarity NaN.

    Raises:
        TypeError, ValueError: x or y is not a floating tensor of two dimensions, or they differ in D or device.

    >>> cosine_similarity(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[6.0, 8.0], [1.0, 0.0]]))
    tensor([[1.0000, 0.6000],
            [0.8000, 0.0000]])
    """
    return similarities(*check_embeddings(x, y))


def similarities(x: Tensor, y: Tensor) -> Tensor:
    """:func:`cosine_similarity` of tensors that are checked already."""
    dtype = computation_dtype(x, y)
    x, y = normalise(x.to(dtype)), normalise(y.to(dtype))
    if not torch.compiler.is_compiling():
        product: Callable[..., Tensor] = _ProductWithTangents.apply
    else:  # without gradients, torch 2.4 cannot compile the whole autograd function
        needs_grad = x.requires_grad or y.requires_grad
        product = _ProductWithoutAutocast.apply if needs_grad else _ProductWithoutAutocast.forward
    S: Tensor = product(x, y)
    return S


def is_negative(ids: Tensor | None, S: Tensor) -> Tensor:
    """Return the mask of the negatives (i, j): bool ``[B, B]``, symmetric, false on the diagonal.

    Without ids every j != i is a negative of i, as in the paper. With ids, ``[B]``, items of one id belong together,
    and only pairs of different ids are negatives. S, ``[B, B]``, is there for its size and device.
    """
    if ids is None:
        ids = torch.arange(S.shape[0], device=S.device)
    return ids[:, None] != ids[None, :]


def hardest_negative(S: Tensor, negative: Tensor) -> Tensor:
    """Return the largest similarity among each row's negatives, ``[B, C], [B, C] bool -> [B]``.

    Of equal ones, the one with the lowest index receives the whole gradient. For a row without negatives, or with a
    NaN, the result is a number without a meaning.
    """
    # Not argmax: with ids, torch 2.11 compiles wrong code for it on a CPU. Of candidates numbered downwards, the first
    # that attains the maximum has the highest number.
    candidates, count = S.detach().masked_fill(~negative, torch.finfo(S.dtype).min), S.shape[1]
    hardest = candidates.amax(1, keepdim=True)
    downwards = torch.arange(count, 0, -1, device=S.device)
    first = ((candidates == hardest) * downwards).amax(1, keepdim=True)  # 0 in a row with a NaN, which nothing equals
    # Not S.gather(), whose gradient is compiled to a call of its own.
    return torch.where(downwards == first, S, 0).sum(1)
