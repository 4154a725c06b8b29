"""Forward and backward over the tiles of S, which is never stored: only mathematics.

S is computed tile by tile by the platform's own matrix product, each tile once for both directions; the aggregation
says what is done with a tile. In units of one B x B x D product, forward and backward cost

* 1 where the aggregation selects one negative an anchor: the backward pass gathers rows;
* 3 where the gradient of a pair depends on positives alone: one pass finds value and gradients (1 without them);
* 4 otherwise: statistics first, then every tile again, for its gradient.

Memory beyond inputs and gradients is O(t^2 + t D + B): three tiles of t x t, O(B) statistics, and a few blocks of
t x D. For half precision the gradients are summed in float32, B x D each.

Of equal hardest negatives the lowest index takes the gradient, whatever the tiles. Equal are similarities whose
products the platform rounds equally: those of small whole numbers always, those of equal rows not everywhere.
"""

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.engine.aggregation import Aggregation, State, along
from crossmodal_losses.engine.communication import ColumnPass, Columns, Communicator
from crossmodal_losses.engine.compat import without_autocast
from crossmodal_losses.engine.epilogue import Epilogue, Plain
from crossmodal_losses.engine.hardest_backward import add_hardest, hardest_gradients
from crossmodal_losses.engine.objective import Anchors, Objective, grad_of_positives
from crossmodal_losses.engine.operands import Operand, Operands, accumulate, blocks, multiply

# Looked for once: looking takes as long as a small loss.
HAS_TRITON = find_spec("triton") is not None

Gradients = tuple[Tensor | None, Tensor | None]  # of x and y, where they are needed


class Problem(NamedTuple):
    """Everything that defines a value of a loss: the local part of the batch, the objective, and how to compute it.

    Ids, and inverse norms and scales of y, are those of the local pairs until :func:`all_gather_pairs`.
    """

    operands: Operands
    ids: Tensor | None
    objective: Objective
    reduction: Reduction
    tile_size: int  # t, how many rows and columns of S are computed at a time
    communicator: Communicator


class Saved(NamedTuple):
    """A forward pass, as the backward pass needs it."""

    problem: Problem  # after all_gather_pairs
    positive: Tensor  # similarities of all positives, [B]
    state: State  # of every local anchor, each part [2, rows]: of the rows, then of the columns
    kept: Tensor | None  # rows of y that the communicator kept


def forward(problem: Problem, needs_grad: Sequence[bool]) -> tuple[Tensor, Saved, Gradients | None]:
    """Compute the loss; and the gradients of x and y where needed, if one pass can find both, else None.

    These gradients are those of the loss itself, in the dtype of the computation.
    """
    with without_autocast(problem.operands.inv_norm.device):
        problem, positive = all_gather_pairs(problem, local_positives(problem))
        operands, ids, objective, reduction, _, communicator = problem
        local_positive, B = positive[operands.local_slice], len(positive)
        epilogue = epilogue_for(operands, ids, objective.aggregation, positive)
        sums = None
        if objective.aggregation.one_pass and reduction != "none" and any(needs_grad):
            grad_aggregate = torch.full_like(operands.inv_norm, 1 / B if reduction == "mean" else 1.0)
            sums = GradientSums(problem, needs_grad[0], grad_aggregate)
        grad_dtype = operands.inv_norm.dtype if sums is not None and needs_grad[1] else None
        one_pass = ColumnPass(operands.y.rows, grad_dtype)
        state = statistics(problem, epilogue, one_pass, sums)
        gradients: Gradients | None = None
        if sums is not None:
            grad_aggregate = sums.factors[:, operands.local_slice]
            gradients = sums.finish(one_pass.grad_y, grad_of_positives(objective.aggregation, state, grad_aggregate))
    nan_factor = operands.nan_factor
    if gradients is not None and nan_factor is not None:
        gradients = scaled(gradients, nan_factor)
    loss = Anchors.of(objective, local_positive, state, ids, B, nan_factor).loss(objective, reduction, B)
    if reduction != "none":
        loss = communicator.all_reduce(loss)
    return loss, Saved(problem, positive, state, None if gradients else one_pass.kept), gradients


def backward(saved: Saved, upstream: Tensor, needs_grad: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x, y and the aggregation's parameter, where needed, in the dtypes of these."""
    problem, positive, state, kept = saved
    operands, ids, objective, reduction, _, communicator = problem
    aggregation, B, nan_factor = objective.aggregation, len(positive), operands.nan_factor
    with without_autocast(upstream.device):
        if nan_factor is not None:
            upstream = upstream * nan_factor
        if reduction != "none":
            upstream = communicator.all_reduce(upstream)
        local_positive = positive[operands.local_slice]
        anchors = Anchors.of(objective, local_positive, state, ids, B, nan_factor)
        grad_positive, grad_aggregate = anchors.gradients(objective, reduction, B, upstream)
        if aggregation.selects and communicator.world_size == 1:
            return *hardest_gradients(operands, state[1], grad_positive, grad_aggregate, needs_grad), None
        factors = communicator.all_gather(aggregation.anchor_factors(state, grad_aggregate))
        state = tuple(communicator.all_gather(part) for part in state)
        sums = GradientSums(problem, needs_grad[0], factors)
        one_pass = ColumnPass(operands.y.rows, operands.inv_norm.dtype if needs_grad[1] else None, kept)
        grad_parameter = None
        if needs_grad[2]:
            grad_parameter = aggregation.grad_parameter_of_positives(local_positive, grad_aggregate)
        if aggregation.selects:
            add_hardest(operands, state[1], factors, communicator.columns(one_pass), sums.grad_x)
        else:
            epilogue = epilogue_for(operands, ids, aggregation, positive)
            for y, grad_y in tiles(problem, epilogue, communicator.columns(one_pass)):
                sums.add(epilogue, state, y, grad_y)
                if grad_parameter is not None:
                    grad_parameter = grad_parameter + epilogue.grad_parameter()
        grad_x, grad_y = sums.finish(one_pass.grad_y, grad_positive)
        if grad_parameter is not None:
            grad_parameter = communicator.all_reduce(grad_parameter) / communicator.world_size
    return (
        cast_gradient(grad_x, operands.x.rows),
        cast_gradient(grad_y, operands.y.rows),
        cast_gradient(grad_parameter, aggregation.parameter),
    )


def local_positives(problem: Problem) -> Tensor:
    """Similarities of the local positives, ``[rows]``."""
    operands = problem.operands
    x, y, (inv_norm_x, inv_norm_y) = operands.x, operands.y, operands.inv_norm
    dots = [
        (x.block(block).to(inv_norm_x.dtype) * y.block(block)).sum(1)
        for block in blocks(operands.local_slice, problem.tile_size)
    ]
    return torch.cat(dots).mul_(inv_norm_x).mul_(inv_norm_y)


def all_gather_pairs(problem: Problem, positive: Tensor) -> tuple[Problem, Tensor]:
    """All-gather the statistics of every pair: inverse norms, scales of y, ids, similarities of the positives."""
    ids, communicator = problem.ids, problem.communicator
    if communicator.world_size == 1:
        return problem, positive
    x, y, inv_norm, scales, scale_y = problem.operands.tensors
    gathered = communicator.all_gather(torch.stack([*inv_norm, positive, *([] if scale_y is None else [scale_y])]))
    scale_y = None if scale_y is None else gathered[3]
    operands = Operands(x, y, gathered[:2], scales, scale_y, communicator.start)
    ids = None if ids is None else communicator.all_gather(ids[None].long())[0]
    return problem._replace(operands=operands, ids=ids), gathered[2]


def epilogue_for(operands: Operands, ids: Tensor | None, aggregation: Aggregation, positive: Tensor) -> Epilogue:
    """Choose the fused kernels where there are any, on CUDA, and plain torch everywhere else."""
    if positive.is_cuda and HAS_TRITON:
        from crossmodal_losses.engine.epilogue_triton import Fused, supports

        if supports(positive.dtype, aggregation):
            return Fused(operands.inv_norm, ids, aggregation, positive, operands.dtype)
    return Plain(operands.inv_norm, ids, aggregation, positive, operands.dtype)


def tiles(problem: Problem, epilogue: Epilogue, columns: Iterable[Columns]) -> Iterator[tuple[Operand, Tensor | None]]:
    """Compute every tile of the local rows, the lowest columns of a block first, and give it to the epilogue.

    All tiles lie in the same memory. Yields the operand of the columns, and where their gradients are summed.
    """
    operands, step = problem.operands, problem.tile_size
    memory = operands.inv_norm.new_empty(0)
    for block, y_rows, grad_y in columns:
        y = operands.of_columns(block, y_rows)
        for I in blocks(operands.local_slice, step):  # noqa: E741
            for J in blocks(block, step):
                height, width = I.stop - I.start, J.stop - J.start
                if len(memory) < height * width:
                    memory = memory.new_empty(height * width)
                products = memory[: height * width].view(height, width)
                multiply(operands.x.block(I), y.block(J).T, out=products)
                epilogue.take(products, I, J)
                yield y, grad_y


class GradientSums:
    """Accumulates dL/dx and dL/dy over the tiles."""

    def __init__(self, problem: Problem, needs_grad_x: bool, factors: Tensor) -> None:
        self.operands, self.step, self.factors = problem.operands, problem.tile_size, factors
        x = self.operands.x.rows
        self.grad_x = x.new_zeros(x.shape, dtype=factors.dtype) if needs_grad_x else None

    def add(self, epilogue: Epilogue, state: State, y: Operand, grad_y: Tensor | None) -> None:
        """Add one tile's contribution."""
        x, I, J = self.operands.x, epilogue.I, epilogue.J  # noqa: E741
        grad_products = epilogue.grad_products(state, self.factors)
        # A trained model has few violations: most products are saved.
        if epilogue.aggregation.one_pass and not epilogue.any_gradient():
            return
        if self.grad_x is not None:
            accumulate(self.grad_x[x.local(I)], grad_products, y.block(J))
        if grad_y is not None:
            accumulate(grad_y[y.local(J)], grad_products.T, x.block(I))

    def finish(self, grad_y: Tensor | None, grad_positive: Tensor) -> Gradients:
        """Add the positives and undo the normalisation, after the last tile; in the dtype of the computation."""
        x, y, local_slice = self.operands.x, self.operands.y, self.operands.local_slice
        inv_norm = self.operands.inv_norm[:, local_slice]
        grad_products = grad_positive * inv_norm[0] * inv_norm[1]
        for grad, operand, other, inv_norms in ((self.grad_x, x, y, inv_norm[0]), (grad_y, y, x, inv_norm[1])):
            if grad is None:
                continue
            for block in blocks(local_slice, self.step):
                local = operand.local(block)
                grad[local].addcmul_(other.block(block), along(grad_products[local], 1))
                operand.normalisation_backward(grad, inv_norms, block)
        return self.grad_x, grad_y


def statistics(problem: Problem, epilogue: Epilogue, one_pass: ColumnPass, sums: GradientSums | None) -> State:
    """The aggregation's state of every local anchor, each part ``[2, rows]``: of the rows, then of the columns.

    With sums, the gradients are summed in the same pass.
    """
    aggregation, communicator = problem.objective.aggregation, problem.communicator
    rows: dict[int, State] = {}
    columns: dict[int, State] = {}
    for y, grad_y in tiles(problem, epilogue, communicator.columns(one_pass)):
        starts = epilogue.I.start, epilogue.J.start
        for states, start, state in zip((rows, columns), starts, epilogue.states(), strict=True):
            states[start] = aggregation.merge(states[start], state) if start in states else state
        if sums is not None:
            sums.add(epilogue, (), y, grad_y)

    def in_order(states: dict[int, State]) -> State:
        return tuple(torch.cat(parts) for parts in zip(*(states[start] for start in sorted(states)), strict=True))

    of_columns = communicator.reduce_scatter(in_order(columns), aggregation.merge)
    return tuple(torch.stack(parts) for parts in zip(in_order(rows), of_columns, strict=True))


def scaled(gradients: Gradients, factor: Tensor) -> Gradients:
    """Multiply gradients by a factor, in place."""
    grad_x, grad_y = (None if grad is None else grad.mul_(factor) for grad in gradients)
    return grad_x, grad_y


def cast_gradient(grad: Tensor | None, of: Tensor | None) -> Tensor | None:
    """Cast a gradient to the dtype of its input."""
    return None if grad is None or of is None else grad.to(of.dtype)
