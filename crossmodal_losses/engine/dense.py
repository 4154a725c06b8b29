"""A loss and its gradients from the whole of S at once, for small batches.

Three matrix products, as many as automatic differentiation needs; but few operations besides, and those are what the
time of a small batch goes into.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.checks import Batch
from crossmodal_losses.engine.aggregation import Aggregation, State, Tile
from crossmodal_losses.engine.communication import SingleProcess
from crossmodal_losses.engine.compat import can_look, is_batched, is_transformed, without_autocast
from crossmodal_losses.engine.objective import Anchors, Directions, Objective, Total, have_negatives, stacked
from crossmodal_losses.engine.operands import COUNT_OF_TENSORS, Operand, Operands, accumulate, measure_norms, multiply
from crossmodal_losses.engine.problem import Problem
from crossmodal_losses.engine.reference import reference_loss_of_batch
from crossmodal_losses.engine.square import Square, SquareBatch
from crossmodal_losses.engine.tiles import Saved, backward
from crossmodal_losses.similarity import HALF

# From here on, gathering rows is faster than multiplying by a matrix with a few entries in each row. Measured on a CPU;
# counted on CUDA: it takes 30 launches more, in whose time smaller products are made.
FEWEST_TO_GATHER, FEWEST_TO_GATHER_ON_CUDA = 64, 1025

# The entries of S up to which gradients of rows in half precision come from products in float32; beyond, as in tiles,
# from products of half precision, summed in float32, and of S once more.
LARGEST_IN_FLOAT32 = 128 * 128


def dense_loss(batch: Batch, objective: Objective, total: Total) -> Tensor:
    """Compute the loss of a batch, keeping all of S for the backward pass."""
    square = _square(batch, objective, total)
    if square is not None:
        if torch.is_autocast_enabled("cpu"):
            with without_autocast(batch.x.device):
                return dense_loss(batch, objective, total)
        pairs = SquareBatch.of(batch.x.detach(), batch.y.detach())
        if pairs is not None:
            parameter = objective.aggregation.parameter
            problem = square, pairs, batch.ids, objective, total
            return _Square.apply(batch.x, batch.y, parameter, problem)  # type: ignore[no-any-return, no-untyped-call]
    return _Dense.apply(*batch.embeddings, objective.aggregation.parameter, batch.all_ids, objective, total)  # type: ignore[no-any-return, no-untyped-call]


def _square(batch: Batch, objective: Objective, total: Total) -> Square | None:
    """The form in few operators: of pairs alone, of which both directions count alike, in one dtype on a CPU."""
    x, y, negatives_x, negatives_y = batch.embeddings
    if negatives_x is not None or negatives_y is not None or total.weights[0] != total.weights[1]:
        return None
    if x.dtype != y.dtype or x.dtype in HALF or not can_look(x):
        return None
    square = objective.square
    return None if square is None or x.shape[0] > square.largest else square


class _Square(torch.autograd.Function):
    """The embeddings of the pairs -> the loss, in few operators."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        parameter: Tensor | None,
        problem: tuple[Square, SquareBatch, Tensor | None, Objective, Total],
    ) -> Tensor:
        square, pairs, ids, objective, total = problem
        same = None if ids is None else torch.eq(ids.unsqueeze(1), ids)
        S = pairs.S
        kept = S.clone() if pairs.keeps_similarities else None
        losses, saved = square.losses(S, same)
        ctx.save_for_backward(x, y, pairs.norms, kept, parameter, ids, *saved)
        ctx.square, ctx.objective, ctx.total = square, objective, total
        loss = losses.sum(0) if total.reduction == "none" else losses.sum()
        divisor = total.divisor(x.shape[0])
        return loss if divisor == 1 else loss.div_(divisor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, norms, S, parameter, ids, *saved = ctx.saved_tensors
        if torch.is_autocast_enabled("cpu"):
            with without_autocast(x.device):
                return _Square.backward(ctx, upstream)
        needs_x, needs_y, needs_parameter, _ = ctx.needs_input_grad
        if torch.is_grad_enabled() or is_batched(upstream) or is_transformed(upstream):
            needs_grad = needs_x, needs_y, False, False, needs_parameter
            batch = Batch(x, y, ids=ids)
            found = differentiable_gradients(batch, parameter, ctx.objective, ctx.total, upstream, needs_grad)
            return found[0], found[1], found[4], None
        grad_S = ctx.square.grad_S(saved, upstream, ctx.total.divisor(x.shape[0]))
        needed = needs_x, needs_y, needs_parameter
        grad_shift = grad_S.sum() if needs_parameter and ctx.square.shifts else None
        grad_x, grad_y, grad_scale = SquareBatch(x, y, norms).gradients(grad_S, S, needed)
        of_parameter = None if grad_scale is None else ctx.square.grad_parameter(grad_scale, grad_shift)
        return grad_x, grad_y, of_parameter, None


def _tile_of(aggregation: Aggregation, row: Operand, column: Operand, S: Tensor, diagonal: bool) -> Tile:
    same = None
    if row.ids is not None and column.ids is not None:
        same = torch.eq(row.ids[:, None], column.ids, out=torch.empty_like(S))
    return aggregation.prepare(Tile(S, same, diagonal))


class _Dense(torch.autograd.Function):
    """The embeddings of a batch -> the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        negatives_x: Tensor | None,
        negatives_y: Tensor | None,
        parameter: Tensor | None,
        ids: tuple[Tensor | None, Tensor | None, Tensor | None],
        objective: Objective,
        total: Total,
    ) -> Tensor:
        aggregation, B = objective.aggregation, len(x)
        directions = Directions.of(objective, total)
        with without_autocast(x.device):
            operands = measure_norms(Batch(x, y, negatives_x, negatives_y, *ids), B)
            tiles: list[Tile] = []
            states: list[State | None] = [None] * len(directions.weights)
            for _, row, _, column, of_region in directions.regions(operands):
                S = row.inv_norm.new_empty(row.rows.shape[0], column.rows.shape[0])
                multiply(row.block(row.whole), column.block(column.whole).T, out=S)
                S.mul_(row.inv_norm[:, None]).mul_(column.inv_norm)
                if not tiles:
                    positive = S.diagonal().clone()
                tile = _tile_of(aggregation, row, column, S, not tiles)
                tiles.append(tile)
                scratch = torch.empty_like(S)
                for k in of_region:
                    slot, start = directions.slots[k], (column if k == 0 else row).start
                    state = aggregation.tile_state(tile, 1 - k, start, positive, scratch)
                    before = states[slot]
                    states[slot] = state if before is None else aggregation.merge(before, state)
            state = stacked(states)
            others = [(0, None) if part is None else (len(part.rows), part.ids) for part in operands.parts[:1:-1]]
            has_negative = have_negatives(objective, directions, positive, ids[0], others)
            anchors = Anchors.of(objective, directions, positive, state, has_negative, operands.nan_factor)
        ctx.objective, ctx.total, ctx.directions, ctx.starts = objective, total, directions, operands.starts
        fewest = FEWEST_TO_GATHER_ON_CUDA if x.is_cuda else FEWEST_TO_GATHER
        gathers = aggregation.selects and (fewest <= B or len(tiles) > 1 or len(directions.used) == 1)
        entries = sum(tile.values.numel() for tile in tiles)
        if gathers or (operands.dtype in HALF and entries > LARGEST_IN_FLOAT32):
            tiles = []
        kept = [part for tile in tiles for part in tile[:2]]
        of_anchors = anchors.positive, anchors.aggregate, has_negative, *state
        ctx.count_kept = len(kept)
        ctx.save_for_backward(*operands.tensors(), parameter, *kept, *of_anchors)
        return anchors.loss(objective, total.reduction, B)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved, count_kept = ctx.saved_tensors, ctx.count_kept
        operands = Operands.of_tensors(saved[:COUNT_OF_TENSORS], ctx.starts)
        parameter, *rest = saved[COUNT_OF_TENSORS:]
        if torch.is_grad_enabled() or is_batched(upstream) or is_transformed(upstream):
            ids = [None if part is None else part.ids for part in operands.parts[1:]]
            batch = Batch(*operands.rows, *ids)
            needed = ctx.needs_input_grad[:5]
            found = differentiable_gradients(batch, parameter, ctx.objective, ctx.total, upstream, needed)
            return *found, None, None, None
        kept, (positive, aggregate, has_negative, *parts) = rest[:count_kept], rest[count_kept:]
        anchors = Anchors(ctx.directions, positive, tuple(parts), aggregate, has_negative)
        needs_grad = ctx.needs_input_grad[:5]
        if not kept:
            x, y, *others = (0 if part is None else len(part.rows) for part in operands.parts)
            tile_size = max(x, others[0]), max(y, others[1])  # a tile of pairs, and one of each kind of candidates
            problem = Problem(operands, ctx.objective, ctx.total, tile_size, SingleProcess())
            found = backward(Saved(problem, positive, has_negative, anchors.state, None), upstream, needs_grad)
            return *found, None, None, None
        tiles = [Tile(kept[k], kept[k + 1], diagonal=k == 0) for k in range(0, count_kept, 2)]
        with without_autocast(upstream.device):
            if operands.nan_factor is not None:
                upstream = upstream * operands.nan_factor
            return *_gradients(ctx, operands, tiles, anchors, upstream, needs_grad), None, None, None


def _gradients(
    ctx: Any, operands: Operands, tiles: list[Tile], anchors: Anchors, upstream: Tensor, needs_grad: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of the embeddings and of the parameter, where needed, from the tiles that were kept."""
    objective, directions, state = ctx.objective, anchors.directions, anchors.state
    aggregation, positive = objective.aggregation, anchors.positive
    grad_positive, grad_aggregate = anchors.gradients(objective, ctx.total.reduction, operands.pairs, upstream)
    factors = aggregation.anchor_factors(state, grad_aggregate)
    gradients: list[Tensor | None] = [None] * 5
    if needs_grad[4]:
        gradients[4] = aggregation.grad_parameter_of_positives(positive, grad_positive)

    def add(k: int, grad_products: Tensor, other: Operand) -> None:
        total = gradients[k]
        if total is None:
            gradients[k] = torch.mm(grad_products, other.dimensions())
        else:
            accumulate(total, grad_products, other.dimensions())

    for tile, (i, row, j, column, of_region) in zip(tiles, directions.regions(operands), strict=True):
        grad_S, scratch = torch.empty_like(tile.values), torch.empty_like(tile.values)
        for k, out in zip(of_region, (grad_S, scratch), strict=False):
            slot, start = directions.slots[k], (column if k == 0 else row).start
            of_anchors = tuple(part[slot] for part in state), positive, factors[slot]
            aggregation.grad_tile(tile, 1 - k, start, *of_anchors, out)
        if len(of_region) == 2:
            grad_S.add_(scratch)
        if needs_grad[4]:
            gradients[4] = gradients[4] + aggregation.grad_parameter(tile, grad_S, scratch)
        if tile.diagonal:
            grad_S.diagonal().add_(grad_positive)
        grad_products = grad_S.mul_(row.inv_norm[:, None]).mul_(column.inv_norm)
        if needs_grad[i]:
            add(i, grad_products, column)
        if needs_grad[j]:
            add(j, grad_products.T, row)
    for k, part in enumerate(operands.parts):
        if part is None or not needs_grad[k]:
            continue
        grad = gradients[k]
        if grad is None:
            gradients[k] = torch.zeros_like(part.rows)
        else:
            part.normalisation_backward(grad, part.whole)
            gradients[k] = grad.to(part.rows.dtype)
    return gradients


def differentiable_gradients(
    batch: Batch,
    parameter: Tensor | None,
    objective: Objective,
    total: Total,
    upstream: Tensor,
    needs_grad: Sequence[bool],
) -> list[Tensor | None]:
    """Compute the gradients through the reference loss: to be differentiated in turn, or many of them at once."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: the graph around this function covers how x and y were made, perhaps one from the other.
        inputs: list[Any] = [None if part is None else part.view_as(part) for part in (*batch.embeddings, parameter)]
        if parameter is not None:
            objective = type(objective).from_numbers(objective.numbers(), inputs[4])
        x, y, negatives_x, negatives_y, _ = inputs
        loss = reference_loss_of_batch(Batch(x, y, negatives_x, negatives_y, *batch.all_ids), objective, total)
        needed = {k: value for k, value in enumerate(inputs) if needs_grad[k]}
        options = {"create_graph": create_graph, "materialize_grads": True}
        found = torch.autograd.grad(loss, list(needed.values()), upstream, **options)
    gradients = dict(zip(needed, found, strict=True))
    return [gradients.get(k) for k in range(5)]
