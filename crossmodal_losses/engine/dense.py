"""A loss and its gradients from the whole of S at once, for small batches.

Three matrix products, as many as automatic differentiation needs; but few operations besides, and those are what the
time of a small batch goes into.
"""

from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.engine.aggregation import EXCLUDED
from crossmodal_losses.engine.compat import is_batched, is_transformed, without_autocast
from crossmodal_losses.engine.hardest_backward import hardest_gradients
from crossmodal_losses.engine.objective import Anchors, Objective
from crossmodal_losses.engine.operands import Operands, measure_norms
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.similarity import cosine_similarity

# From here on, gathering rows is faster than multiplying by a matrix with a few entries in each row.
FEWEST_TO_GATHER = 64


def dense_loss(x: Tensor, y: Tensor, ids: Tensor | None, objective: Objective, reduction: Reduction) -> Tensor:
    """Compute the loss of x and y, ``[B, D]``, keeping one ``[B, B]`` for the backward pass."""
    return _Dense.apply(x, y, ids, objective.aggregation.parameter, objective, reduction)  # type: ignore[no-any-return, no-untyped-call]


class _Dense(torch.autograd.Function):
    """x, y ``[B, D]`` -> the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        ids: Tensor | None,
        parameter: Tensor | None,
        objective: Objective,
        reduction: Reduction,
    ) -> Tensor:
        aggregation, B = objective.aggregation, len(x)
        with without_autocast(x.device):
            operands = measure_norms(x, y, B)
            inv_norm_x, inv_norm_y = operands.inv_norm
            S = torch.mm(operands.x.dimensions(), operands.y.dimensions().T).mul_(inv_norm_x[:, None]).mul_(inv_norm_y)
            positive = S.diagonal().clone()
            if ids is None:
                S.fill_diagonal_(EXCLUDED)
            else:
                S.masked_fill_(ids[:, None] == ids, EXCLUDED)
            scratch = torch.empty_like(S)
            tile = aggregation.prepare(S)
            rows, columns = (aggregation.tile_state(tile, dim, 0, positive, scratch) for dim in (1, 0))
            state = tuple(torch.stack(both) for both in zip(rows, columns, strict=True))
            anchors = Anchors.of(objective, positive, state, ids, B, operands.nan_factor)
        ctx.objective, ctx.reduction = objective, reduction
        kept = None if aggregation.selects and B >= FEWEST_TO_GATHER else tile
        inputs, (positive, state, *others) = (x, y, ids, parameter), anchors
        ctx.save_for_backward(*inputs, operands.inv_norm, operands.scales, kept, positive, *others, *state)
        return anchors.loss(objective, reduction, B)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or is_batched(upstream) or is_transformed(upstream):
            return _differentiable_gradients(ctx, upstream)
        x, y, _, _, inv_norm, scales, tile, positive, aggregate, has_negative, *parts = ctx.saved_tensors
        state, objective, aggregation, B = tuple(parts), ctx.objective, ctx.objective.aggregation, len(x)
        operands = Operands(x, y, inv_norm, scales)
        needs_grad_x, needs_grad_y, _, needs_grad_parameter, *_ = ctx.needs_input_grad
        grad_x = grad_y = grad_parameter = None
        with without_autocast(x.device):
            if operands.nan_factor is not None:
                upstream = upstream * operands.nan_factor
            anchors = Anchors(positive, state, aggregate, has_negative)
            grad_positive, grad_aggregate = anchors.gradients(objective, ctx.reduction, B, upstream)
            if tile is None:
                needs_grad = needs_grad_x, needs_grad_y
                gradients = hardest_gradients(operands, state[1], grad_positive, grad_aggregate, needs_grad)
                return *gradients, None, None, None, None
            grad_S, scratch = torch.empty_like(tile), torch.empty_like(tile)
            factors = aggregation.anchor_factors(state, grad_aggregate)
            for k, (dim, out) in enumerate(((1, grad_S), (0, scratch))):
                aggregation.grad_tile(tile, dim, 0, tuple(part[k] for part in state), positive, factors[k], out)
            grad_S.add_(scratch)
            if needs_grad_parameter:
                grad_parameter = aggregation.grad_parameter(tile, grad_S, scratch)
                grad_parameter = grad_parameter + aggregation.grad_parameter_of_positives(positive, grad_aggregate)
            grad_S.diagonal().add_(grad_positive)
            grad_products = grad_S.mul_(inv_norm[0][:, None]).mul_(inv_norm[1])
            if needs_grad_x:
                grad_x = torch.mm(grad_products, operands.y.dimensions())
                operands.x.normalisation_backward(grad_x, inv_norm[0], operands.local_slice)
                grad_x = grad_x.to(x.dtype)
            if needs_grad_y:
                grad_y = torch.mm(grad_products.T, operands.x.dimensions())
                operands.y.normalisation_backward(grad_y, inv_norm[1], operands.local_slice)
                grad_y = grad_y.to(y.dtype)
        return grad_x, grad_y, None, grad_parameter, None, None


def _differentiable_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients through the reference loss: to be differentiated in turn, or many of them at once."""
    x, y, ids, parameter, *_ = ctx.saved_tensors
    objective, create_graph = ctx.objective, torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: the graph around this function covers how x and y were made, perhaps one from the other.
        x, y = x.view_as(x), y.view_as(y)
        if parameter is not None:
            parameter = parameter.view_as(parameter)
            objective = type(objective).from_numbers(objective.numbers(), parameter)
        loss = reference_loss(objective, cosine_similarity(x, y), ids=ids, reduction=ctx.reduction)
        needed = {k: value for k, value in enumerate((x, y, ids, parameter)) if ctx.needs_input_grad[k]}
        options = {"create_graph": create_graph, "materialize_grads": True}
        found = torch.autograd.grad(loss, list(needed.values()), upstream, **options)
    gradients = dict(zip(needed, found, strict=True))
    return tuple(gradients.get(k) for k in range(6))
