"""A loss and its gradients from the whole of S at once, for batches whose S is no burden.

Three matrix products, as many as automatic differentiation needs; but few operations besides, and those are what the
time of a small batch goes into.
"""

from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.dense import bidirectional
from crossmodal_losses.folds import EXCLUDED
from crossmodal_losses.rules import Rule, has_negatives, reduced, upstream_of_anchors
from crossmodal_losses.selected import of_selected
from crossmodal_losses.sides import Sides, full_precision
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
            sides = Sides(x, y, len(x))
            of_x, of_y = sides.x.inverse[:, None], sides.y.inverse
            S = torch.mm(sides.x.all(), sides.y.all().T).mul_(of_x).mul_(of_y)
            positive = S.diagonal().clone()
            if ids is None:
                S.fill_diagonal_(EXCLUDED)
            else:
                S.masked_fill_(ids[:, None] == ids, EXCLUDED)
            scratch = torch.empty_like(S)
            tile = fold.prepare(S, out=torch.empty_like(S))
            rows, columns = (fold.of_tile(tile, dim, 0, positive, scratch) for dim in (1, 0))
            state = tuple(torch.stack(both) for both in zip(rows, columns, strict=True))
            folded = fold.finish(state, positive)
        if sides.poison is not None:
            positive, folded = positive * sides.poison, folded * sides.poison
        has_negative = has_negatives(ids, positive)
        ctx.save_for_backward(x, y, ids, parameter)
        ctx.rest = rule, reduction, sides, of_x, of_y, S, tile, state, positive, folded, has_negative
        return reduced(rule, positive, folded, has_negative, reduction)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, ids, parameter = ctx.saved_tensors
        rule, reduction, sides, of_x, of_y, S, tile, state, positive, folded, has_negative = ctx.rest
        fold = rule.fold
        if torch.is_grad_enabled():  # the derivative of this derivative is wanted, too
            loss = bidirectional(rule, cosine_similarity(x, y), ids=ids, reduction=reduction)
            wanted = [k for k, want in enumerate(ctx.needs_input_grad) if want]
            found = torch.autograd.grad(
                loss, [(x, y, ids, parameter)[k] for k in wanted], upstream, create_graph=True, materialize_grads=True
            )
            return tuple(found[wanted.index(k)] if k in wanted else None for k in range(6))
        wants_x, wants_y, _, wants_parameter, *_ = ctx.needs_input_grad
        with full_precision(S.device):
            if sides.poison is not None:
                upstream = upstream * sides.poison
            of_positive, of_fold = upstream_of_anchors(rule, state, positive, folded, has_negative, reduction, upstream)
            if fold.selects and len(S) >= FEWEST_TO_GATHER:
                gx, gy = of_selected(sides, state, positive, of_positive, of_fold, (wants_x, wants_y))
                return gx, gy, None, None, None, None
            weights, scratch = torch.empty_like(S), torch.empty_like(S)
            rows, columns = fold.coefficients(state, of_fold)
            fold.weigh(tile, 1, 0, tuple(part[0] for part in state), positive, rows, weights)
            fold.weigh(tile, 0, 0, tuple(part[1] for part in state), positive, columns, scratch)
            weights.add_(scratch)
            slope = None
            if wants_parameter:
                slope = fold.slope(tile, weights, scratch) + fold.slope_of_positives(positive, of_fold)
            # Normalisation takes out of a row's gradient what lies along the row: sum_j dL/ds_ij s_ij.
            torch.mul(weights, S, out=scratch)
            own = torch.stack([scratch.sum(1), scratch.sum(0)]).addcmul_(of_positive, positive)
            own_x, own_y = own.mul_(sides.inverse).mul_(sides.inverse)[:, :, None]
            weights.diagonal().add_(of_positive)
            weights.mul_(of_x).mul_(of_y)
            gx = gy = None
            if wants_x:
                gx = torch.mm(weights, sides.y.all()).addcmul_(sides.x.all(), own_x, value=-1)
            if wants_y:
                gy = torch.mm(weights.T, sides.x.all()).addcmul_(sides.y.all(), own_y, value=-1)
            if sides.poison is not None:
                gx, gy = (
                    None if g is None else g.div_(side.largest[:, None]).to(side.rows.dtype)
                    for g, side in ((gx, sides.x), (gy, sides.y))
                )
        return gx, gy, None, slope, None, None
