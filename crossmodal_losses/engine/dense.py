"""A loss and its gradients from the whole of S at once, for batches whose S is no burden.

Three matrix products, as many as automatic differentiation needs; but few operations besides, and those are what the
time of a small batch goes into.
"""

from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.engine.hardest_backward import of_selected
from crossmodal_losses.engine.objective import EXCLUDED
from crossmodal_losses.engine.operands import Sides, full_precision, measured, normalisation_backward
from crossmodal_losses.engine.reference import bidirectional
from crossmodal_losses.engine.rules import Rule, has_negatives, is_batched, reduced, upstream_of_anchors
from crossmodal_losses.similarity import cosine_similarity

# From here on, gathering rows is faster than multiplying by a matrix with a few entries in each row.
FEWEST_TO_GATHER = 64


class ClosedForm(torch.autograd.Function):
    """x, y ``[B, D]`` -> the loss."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, ids: Tensor | None, parameter: Tensor | None, rule: Rule, reduction: Reduction
    ) -> Tensor:
        fold = rule.fold
        with full_precision(x.device):
            sides = measured(x, y, len(x))
            S = torch.mm(sides.x.all(), sides.y.all().T).mul_(sides.inverse[0][:, None]).mul_(sides.inverse[1])
            positive = S.diagonal().clone()
            if ids is None:
                S.fill_diagonal_(EXCLUDED)
            else:
                S.masked_fill_(ids[:, None] == ids, EXCLUDED)
            scratch = torch.empty_like(S)
            tile = fold.prepare(S)
            rows, columns = (fold.of_tile(tile, dim, 0, positive, scratch) for dim in (1, 0))
            state = tuple(torch.stack(both) for both in zip(rows, columns, strict=True))
            folded = fold.finish(state, positive)
        if sides.poison is not None:
            positive, folded = positive * sides.poison, folded * sides.poison
        has_negative = has_negatives(ids, positive)
        kept = None if fold.selects and len(x) >= FEWEST_TO_GATHER else tile
        ctx.rule, ctx.reduction = rule, reduction
        ctx.save_for_backward(
            x, y, ids, parameter, sides.inverse, sides.scales, positive, folded, has_negative, kept, *state
        )
        return reduced(rule, positive, folded, has_negative, reduction, len(x))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, ids, parameter, inverse, scales, positive, folded, has_negative, tile, *state = ctx.saved_tensors
        rule, reduction = ctx.rule, ctx.reduction
        if torch.is_grad_enabled() or is_batched(upstream):
            return _differentiable(x, y, ids, parameter, rule, reduction, ctx.needs_input_grad, upstream)
        fold, sides = rule.fold, Sides(x, y, inverse, scales)
        wants_x, wants_y, _, wants_parameter, *_ = ctx.needs_input_grad
        with full_precision(x.device):
            if sides.poison is not None:
                upstream = upstream * sides.poison
            of_positive, of_fold = upstream_of_anchors(
                rule, state, positive, folded, has_negative, reduction, upstream, len(x)
            )
            if tile is None:
                gx, gy = of_selected(sides, state, of_positive, of_fold, (wants_x, wants_y))
                return gx, gy, None, None, None, None
            weights, scratch = torch.empty_like(tile), torch.empty_like(tile)
            rows, columns = fold.coefficients(state, of_fold)
            fold.weigh(tile, 1, 0, tuple(part[0] for part in state), positive, rows, weights)
            fold.weigh(tile, 0, 0, tuple(part[1] for part in state), positive, columns, scratch)
            weights.add_(scratch)
            slope = None
            if wants_parameter:
                slope = fold.slope(tile, weights, scratch) + fold.slope_of_positives(positive, of_fold)
            weights.diagonal().add_(of_positive)
            weights.mul_(sides.inverse[0][:, None]).mul_(sides.inverse[1])
            a, b = sides.x.all(), sides.y.all()
            gx = gy = None
            if wants_x:
                gx = normalisation_backward(torch.mm(weights, b), a, inverse[0], sides.x.scale).to(x.dtype)
            if wants_y:
                gy = normalisation_backward(torch.mm(weights.T, a), b, inverse[1], sides.y.scale).to(y.dtype)
        return gx, gy, None, slope, None, None


def _differentiable(
    x: Tensor,
    y: Tensor,
    ids: Tensor | None,
    parameter: Tensor | None,
    rule: Rule,
    reduction: Reduction,
    wanted: tuple[bool, ...],
    upstream: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients through the dense form: where they are differentiated in turn, or many are asked for at once."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: what x and y were made from, perhaps of each other, is the business of the graph around this.
        x, y = x.view_as(x), y.view_as(y)
        if parameter is not None:
            parameter = parameter.view_as(parameter)
            rule = type(rule).from_numbers(rule.numbers(), parameter)
        loss = bidirectional(rule, cosine_similarity(x, y), ids=ids, reduction=reduction)
        inputs = {k: value for k, value in enumerate((x, y, ids, parameter)) if value is not None and wanted[k]}
        found = torch.autograd.grad(
            loss, list(inputs.values()), upstream, create_graph=create_graph, materialize_grads=True
        )
    gradients = dict(zip(inputs, found, strict=True))
    return tuple(gradients.get(k) for k in range(6))
