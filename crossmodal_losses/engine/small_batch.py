"""A loss of a small batch on CUDA in six launches: two matrix products, and the kernels of small_batch_triton.py.

scale_rows, product, pair_losses            forward; with the weights of the pairs, dL/dp_ij, if one number is made
(pair_losses), product of a batch, finish   backward; where each anchor has its own upstream, its weights come here
"""

from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.checks import Batch
from crossmodal_losses.engine.compat import HAS_TRITON, is_batched, is_transformed, without_autocast
from crossmodal_losses.engine.dense import differentiable_gradients
from crossmodal_losses.engine.objective import Formula, Objective, Total

# B, up to which the registers of one block hold all of S.
LARGEST = 128

# Rows or columns of S that are in the registers at a time; and warps, by the rows and columns of S: then a thread has
# at most 16 entries of a matrix.
PART = 32
WARPS = {16: 1, 32: 4, 64: 8, 128: 16}

# Of a multiprocessor, which runs the one program alone.
REGISTERS = 65536

# Numbers of a formula that the kernels take.
COUNT_OF_NUMBERS = 8


def is_on_cuda(value: Tensor) -> bool:
    """Return whether a tensor is where the kernels run."""
    return value.is_cuda


def has_small_form(batch: Batch, objective: Objective, parameter: Tensor | None) -> bool:
    """Return whether this form computes the loss: pairs alone on CUDA, no float64, a formula that the kernels know."""
    x, y, negatives_x, negatives_y = batch.embeddings
    return (
        HAS_TRITON
        and is_on_cuda(x)
        and (parameter is None or is_on_cuda(parameter))
        and x.dtype != torch.float64
        and y.dtype != torch.float64
        and x.shape[0] <= LARGEST
        and negatives_x is None
        and negatives_y is None
        and objective.formula is not None
    )


def small_batch_loss(batch: Batch, objective: Objective, parameter: Tensor | None, total: Total) -> Tensor:
    """Compute the loss of a batch that :func:`has_small_form`, given the parameter of the aggregation."""
    return _SmallBatch.apply(batch.x, batch.y, parameter, batch.ids, objective, total)  # type: ignore[no-any-return, no-untyped-call]


def _block(count: int, least: int, largest: int) -> int:
    """The power of two from the count up, within bounds."""
    return min(max(least, 1 << (count - 1).bit_length()), largest)


class _SmallBatch(torch.autograd.Function):
    """Embeddings and parameter -> the loss."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, parameter: Tensor | None, ids: Tensor | None, objective: Objective, total: Total
    ) -> Tensor:
        from crossmodal_losses.engine.small_batch_triton import scale_rows

        ctx.objective, ctx.total = objective, total
        B, D = x.shape
        scaled, (inv_norm, powers) = (
            x.new_empty(2, B, D, dtype=torch.float32),
            x.new_empty(2, 2, B, dtype=torch.float32),
        )
        side = _block(B, 16, LARGEST)
        products = x.new_empty(side, side, dtype=torch.float32)
        with torch.cuda.device_of(x), without_autocast(x.device):  # triton goes by the current device
            block = _block(D, 16, 1024)
            scale_rows[B, 2](x.contiguous(), y.contiguous(), scaled, inv_norm, powers, B, D=D, BLOCK=block, num_warps=4)
            torch.mm(scaled[1], scaled[0].T, out=products[:B, :B])
            loss = x.new_empty((B,) if total.reduction == "none" else (), dtype=torch.float32)
            weights = grad_parameter = None
            if total.reduction != "none" and any(ctx.needs_input_grad[:3]):
                weights, grad_parameter = _empty_gradients(products, parameter if ctx.needs_input_grad[2] else None)
            _pair_losses(ctx, products, inv_norm, ids, parameter, None, loss, weights, grad_parameter)
        kept = products if weights is None else weights
        ctx.save_for_backward(x, y, parameter, ids, scaled, inv_norm, powers, kept, grad_parameter)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        from crossmodal_losses.engine.small_batch_triton import finish

        x, y, parameter, ids, scaled, inv_norm, powers, kept, grad_parameter = ctx.saved_tensors
        needs_x, needs_y, needs_parameter, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled() or is_batched(upstream) or is_transformed(upstream):
            needs_grad = needs_x, needs_y, False, False, needs_parameter
            batch = Batch(x, y, ids=ids)
            found = differentiable_gradients(batch, parameter, ctx.objective, ctx.total, upstream, needs_grad)
            return found[0], found[1], found[4], None, None, None
        B, D = x.shape
        factor: Tensor | None = upstream
        with torch.cuda.device_of(x), without_autocast(x.device):
            if ctx.total.reduction == "none":
                weights, grad_parameter = _empty_gradients(kept, parameter if needs_parameter else None)
                _pair_losses(ctx, kept, inv_norm, ids, parameter, upstream, None, weights, grad_parameter)
                kept, factor = weights, None
            elif grad_parameter is not None:
                grad_parameter = grad_parameter * upstream
            g = torch.bmm(kept[:, :B, :B], scaled)
            grad_x, grad_y = (torch.empty_like(rows, memory_format=torch.contiguous_format) for rows in (x, y))
            block = _block(D, 16, 1024)
            finish[B, 2](g, scaled, inv_norm, powers, factor, grad_x, grad_y, B, D=D, BLOCK=block, num_warps=4)
        return grad_x if needs_x else None, grad_y if needs_y else None, grad_parameter, None, None, None


def _empty_gradients(products: Tensor, parameter: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Memory for the weights of the pairs and their transpose, and for the gradient of the parameter."""
    weights = products.new_empty(2, *products.shape)
    return weights, None if parameter is None else products.new_empty(parameter.shape)


def _pair_losses(
    ctx: Any,
    products: Tensor,
    inv_norm: Tensor,
    ids: Tensor | None,
    parameter: Tensor | None,
    upstream: Tensor | None,
    loss: Tensor | None,
    weights: Tensor | None,
    grad_parameter: Tensor | None,
) -> None:
    """Launch the kernel of that name."""
    from crossmodal_losses.engine.small_batch_triton import pair_losses

    formula: Formula = ctx.objective.formula
    B, side, (weight_x, weight_y) = inv_norm.shape[1], products.shape[0], ctx.total.weights
    pair_losses[1,](
        products,
        inv_norm,
        None if ids is None else ids.contiguous(),
        None if parameter is None else parameter.contiguous(),
        upstream,
        0 if upstream is None else upstream.stride(0),
        loss,
        weights,
        grad_parameter,
        B,
        1 / B if ctx.total.reduction == "mean" else 1.0,
        weight_x,
        weight_y,
        *formula.numbers,
        *[0.0] * (COUNT_OF_NUMBERS - len(formula.numbers)),
        FORMULA=formula.name,
        EACH=ctx.total.reduction == "none",
        BLOCK=side,
        PART=min(side, PART),
        num_warps=WARPS[side],
        maxnreg=REGISTERS // (32 * WARPS[side]) if side == LARGEST else None,  # else the assembler may take fewer
    )
