"""Forward and backward over the tiles of S, which is never stored: only mathematics.

S is computed tile by tile by the platform's own matrix product, each tile once for both directions; the aggregation
says what is done with a tile. In units of one B x B x D product, forward and backward cost

* 1 where the aggregation selects one negative an anchor: the backward pass gathers rows;
* 3 where the gradient of a pair depends on positives alone: one pass finds value and gradients (1 without them);
* 4 otherwise: statistics first, then every tile again, for its gradient. With fused kernels 3 where all tiles take no
  more memory than one may: then the inner products of the first pass are kept.

Memory beyond inputs and gradients is O(t^2 + t D + B): three tiles of t x t, O(B) statistics, and a few blocks of
t x D. Fused kernels take two tiles, by default of 4,096 rows and up to 16,384 columns. On CUDA the rows of an operand
are scaled at once while they take at most 256 MiB. For half precision the gradients are summed in float32, B x D each.

Of equal hardest negatives the lowest index takes the gradient, whatever the tiles. Equal are similarities whose
products the platform rounds equally: those of small whole numbers always, those of equal rows not everywhere.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.engine.aggregation import Aggregation, State, Tile, along
from crossmodal_losses.engine.communication import ColumnPass, Columns
from crossmodal_losses.engine.compat import HAS_TRITON, without_autocast
from crossmodal_losses.engine.epilogue import Epilogue, Place, Plain, in_memory, tile_memory
from crossmodal_losses.engine.hardest_backward import add_hardest, hardest_gradients
from crossmodal_losses.engine.objective import Anchors, Directions, grad_of_positives, stacked
from crossmodal_losses.engine.operands import Operand, Operands, Rows, accumulate, blocks, multiply
from crossmodal_losses.engine.problem import Problem, all_gather_columns, column_pass, local_positives
from crossmodal_losses.similarity import computation_dtype

# Of x, y, negatives_x and negatives_y, where they are needed, and found.
Gradients = list[Tensor | None]


class Saved(NamedTuple):
    """A forward pass, as the backward pass needs it."""

    problem: Problem  # after all_gather_columns
    positive: Tensor  # similarities of all positives, [B]
    has_negative: Tensor | None
    state: State  # of every local anchor, each part [k, rows]
    kept: Tensor | None  # rows of y that the communicator kept
    products: Tensor | None = None  # the memory of all tiles, in order, with their inner products, if it was kept


def forward(problem: Problem, needs_grad: Sequence[bool]) -> tuple[Tensor, Saved, Gradients | None]:
    """Compute the loss; and the gradients of the embeddings and of the parameter, where needed, if one pass finds them.

    These gradients are those of the loss itself, in the dtype of the computation. Keep what saves a product of the
    backward pass, if there is room.
    """
    objective, directions, reduction = problem.objective, problem.directions, problem.total.reduction
    aggregation, communicator = objective.aggregation, problem.communicator
    with without_autocast(problem.operands.x.inv_norm.device):
        problem, positive, has_negative = all_gather_columns(problem, local_positives(problem))
        operands, B = problem.operands, len(positive)
        local_positive = positive[operands.x.whole]
        epilogue = epilogue_for(problem, positive)
        sums = grad_aggregate = None
        if aggregation.one_pass and reduction != "none" and any(needs_grad):
            grad_aggregate = positive.new_full((len(directions.weights), B), 1 / B if reduction == "mean" else 1.0)
            grad_aggregate = directions.weighted(grad_aggregate)
            if has_negative is not None:
                grad_aggregate = torch.where(has_negative, grad_aggregate, 0)
            sums = GradientSums(problem, needs_grad, (), aggregation.anchor_factors((), grad_aggregate))
        one_pass = column_pass(problem, needs_grad if sums else [False] * 5)
        products: Tensor | None = None
        if communicator.world_size == 1:
            settings = aggregation, directions, reduction, operands.rows, problem.tile_size
            entries = entries_to_keep(*settings) if any(needs_grad) else 0
            products = positive.new_empty(entries) if entries else None
        state = statistics(problem, epilogue, one_pass, sums, products)
        gradients: Gradients | None = None
        if sums is not None and grad_aggregate is not None:
            local = grad_aggregate[:, operands.x.whole]
            grad_positive = grad_of_positives(aggregation, state, local_positive, local)
            gradients = sums.finish(one_pass, local_positive, grad_positive)
    nan_factor = operands.nan_factor
    if gradients is not None and nan_factor is not None:
        gradients = scaled(gradients, nan_factor)
    anchors = Anchors.of(objective, directions, local_positive, state, has_negative, nan_factor)
    loss = anchors.loss(objective, reduction, B)
    if reduction != "none":
        loss = communicator.all_reduce(loss)
    kept = None if gradients else one_pass.kept
    return loss, Saved(problem, positive, has_negative, state, kept, products), gradients


def backward(saved: Saved, upstream: Tensor, needs_grad: Sequence[bool]) -> Gradients:
    """Compute the gradients of the embeddings and of the parameter, where needed, in the dtypes of these."""
    problem, positive, has_negative, state, kept, products = saved
    operands, objective, communicator = problem.operands, problem.objective, problem.communicator
    directions, reduction = problem.directions, problem.total.reduction
    aggregation, B, nan_factor = objective.aggregation, len(positive), operands.nan_factor
    with without_autocast(upstream.device):
        if nan_factor is not None:
            upstream = upstream * nan_factor
        if reduction != "none":
            upstream = communicator.all_reduce(upstream)
        local_positive = positive[operands.x.whole]
        anchors = Anchors.of(objective, directions, local_positive, state, has_negative, nan_factor)
        grad_positive, grad_aggregate = anchors.gradients(objective, reduction, B, upstream)
        if aggregation.selects and communicator.world_size == 1 and is_plain(operands, directions):
            return [*hardest_gradients(operands, state[1], grad_positive, grad_aggregate, needs_grad), None, None, None]
        factors = communicator.all_gather(aggregation.anchor_factors(state, grad_aggregate))
        state = tuple(communicator.all_gather(part) for part in state)
        sums = GradientSums(problem, needs_grad, state, factors)
        one_pass = column_pass(problem, needs_grad, kept)
        if aggregation.selects:
            add_hardest(operands, directions, state[1], factors, communicator.columns(one_pass), sums.of_rows)
        else:
            epilogue = epilogue_for(problem, positive)
            columns, made = communicator.columns(one_pass), products is not None
            for tile in tiles(problem, epilogue, columns, kept=products, made=made):
                sums.add(epilogue, state, *tile)
        gradients = sums.finish(one_pass, local_positive, grad_positive)
    inputs = *operands.rows, aggregation.parameter
    return [cast_gradient(grad, value) for grad, value in zip(gradients, inputs, strict=True)]


def is_plain(operands: Operands, directions: Directions) -> bool:
    """Return whether there are pairs alone, and both directions."""
    return operands.rows[2] is operands.rows[3] is None and directions.of_pairs == (0, 1)


def epilogue_type(aggregation: Aggregation, dtype: torch.dtype, device: torch.device) -> type[Epilogue]:
    """The fused kernels where there are any, on CUDA, for a computation in dtype, and plain torch everywhere else."""
    if device.type == "cuda" and HAS_TRITON:
        from crossmodal_losses.engine.epilogue_fused import Fused, supports

        if supports(dtype, aggregation):
            return Fused
    return Plain


def epilogue_for(problem: Problem, positive: Tensor) -> Epilogue:
    """The epilogue of a problem, given the similarities of all positives."""
    aggregation = problem.objective.aggregation
    chosen = epilogue_type(aggregation, positive.dtype, positive.device)
    return chosen(aggregation, problem.directions, positive, problem.operands.dtype)


def entries_to_keep(
    aggregation: Aggregation, directions: Directions, reduction: str, rows: Rows, tile_size: tuple[int, int]
) -> int:
    """The entries in memory of all tiles of a single process, if their inner products are kept for gradients; else 0.

    With fused kernels they are kept if they are made twice otherwise, and take no more memory than one tile may.
    """
    height, width = tile_size
    dtype = computation_dtype(*(part for part in rows if part is not None))
    epilogue = epilogue_type(aggregation, dtype, rows[0].device)
    made_once = aggregation.selects or (aggregation.one_pass and reduction != "none")
    if made_once or not epilogue.wide:
        return 0

    def of(part: Tensor | None, length: int) -> int:
        count = 0 if part is None else part.shape[0]
        whole = count // length * in_memory(length, epilogue.alignment)
        return whole + in_memory(count % length, epilogue.alignment)

    x, y, negatives_x, negatives_y = (of(part, length) for part, length in zip(rows, (height, width) * 2, strict=True))
    entries = x * (y + (0 in directions.used) * negatives_y) + (1 in directions.used) * negatives_x * y
    return entries if entries <= height * width else 0


def tiles(
    problem: Problem, epilogue: Epilogue, columns: Iterable[Columns], *, kept: Tensor | None = None, made: bool = False
) -> Iterator[tuple[int, Tensor | None]]:
    """Compute every tile of the local rows, the lowest columns of a block first, and give it to the epilogue.

    The columns stay while the rows change: where rows have to be scaled, those of the columns are scaled once.

    All tiles lie in the same memory; or one after the other in the one that is kept, perhaps with their products, made
    before. Yields the index of the rows' operand, and where gradients of the columns are summed.
    """
    operands, (height, width) = problem.operands, problem.tile_size
    width = width if epilogue.wide else height
    memory = operands.x.inv_norm.new_empty(0) if kept is None else kept
    for part, block, rows_of_y, grad_y in columns:
        y = operands.columns(part, block, rows_of_y)
        for index, x, directions in problem.directions.rows_beside(part, operands):
            for J in blocks(block, width):
                for I in blocks(x.whole, height):  # noqa: E741
                    shape = I.stop - I.start, J.stop - J.start
                    memory, products = tile_memory(memory, shape, epilogue.alignment)
                    if not made:
                        multiply(x.block(I), y.block(J).T, out=products)
                    diagonal = index == 0 and part == 0 and I.start < J.stop and J.start < I.stop
                    epilogue.take(products, Place(x, I, y, J, directions, diagonal), may_overwrite=not made)
                    yield index, grad_y
                    if kept is not None:
                        rows, wide = (in_memory(count, epilogue.alignment) for count in shape)
                        memory = memory[rows * wide :]


class GradientSums:
    """Accumulates the gradients over the tiles."""

    def __init__(self, problem: Problem, needs_grad: Sequence[bool], state: State, factors: Tensor) -> None:
        self.problem, self.needs_grad, self.factors = problem, needs_grad, factors
        aggregation, self.unit = problem.objective.aggregation, None
        if problem.operands.dtype == torch.float16 and not aggregation.selects:
            self.unit = unit_of(aggregation.largest_gradient(state, factors))
            self.factors = factors * self.unit
        x, _, negatives_x, _ = problem.operands.parts
        # Of the rows of each index, where they are needed.
        self.of_rows = {
            index: zeros_of(part, factors.dtype)
            for index, part in ((0, x), (2, negatives_x))
            if part is not None and needs_grad[index]
        }
        self.of_parameter = factors.new_zeros(()) if needs_grad[4] else None

    def add(self, epilogue: Epilogue, state: State | None, index: int, grad_y: Tensor | None) -> None:
        """Add one tile's contribution; without a state, in one pass."""
        row, I, column, J, *_ = epilogue.place  # noqa: E741
        grad_products = (
            epilogue.one_pass(self.factors) if state is None else epilogue.grad_products(state, self.factors)
        )
        if self.of_parameter is not None:
            self.of_parameter = self.of_parameter + epilogue.grad_parameter()
        # A trained model has few violations: most products are saved.
        if epilogue.aggregation.sparse and not epilogue.any_gradient():
            return
        if index in self.of_rows:
            accumulate(self.of_rows[index][row.local(I)], grad_products, column.block(J))
        if grad_y is not None:
            accumulate(grad_y[column.local(J)], grad_products.T, row.block(I))

    def finish(self, one_pass: ColumnPass, local_positive: Tensor, grad_positive: Tensor) -> Gradients:
        """Add the positives and undo the normalisation, after the last tile; in the dtype of the computation."""
        x, y, *_ = self.problem.operands.parts
        step, communicator = self.problem.tile_size[0], self.problem.communicator
        grad_y, grad_negatives_y = (*one_pass.grads, None)[:2]
        gradients = [self.of_rows.get(0), grad_y, self.of_rows.get(2), grad_negatives_y]
        if self.unit is not None:
            gradients = scaled(gradients, 1 / self.unit)
        grad_products = grad_positive * x.inv_norm * y.inv_norm
        others = y, x, None, None
        for k, (operand, other) in enumerate(zip(self.problem.operands.parts, others, strict=True)):
            if operand is None or not self.needs_grad[k]:
                continue
            grad = gradients[k]
            if grad is None:  # in a direction of weight 0
                gradients[k] = zeros_of(operand, grad_products.dtype)
                continue
            for block in blocks(operand.whole, step):
                local = operand.local(block)
                if other is not None:
                    grad[local].addcmul_(other.block(block), along(grad_products[local], 1))
                operand.normalisation_backward(grad, block)
        of_parameter, aggregation = self.of_parameter, self.problem.objective.aggregation
        if of_parameter is not None:
            if self.unit is not None:
                of_parameter = of_parameter / self.unit
            of_parameter = of_parameter + aggregation.grad_parameter_of_positives(local_positive, grad_positive)
            of_parameter = communicator.all_reduce(of_parameter) / communicator.world_size
        return [*gradients, of_parameter]


def statistics(
    problem: Problem, epilogue: Epilogue, one_pass: ColumnPass, sums: GradientSums | None, kept: Tensor | None
) -> State:
    """The aggregation's state of every local anchor, each part ``[k, rows]``.

    With sums, the gradients are summed in the same pass. The products of all tiles are kept, if memory is given.
    """
    aggregation, communicator, directions = problem.objective.aggregation, problem.communicator, problem.directions
    for tile in tiles(problem, epilogue, communicator.columns(one_pass), kept=kept):
        if sums is None:
            epilogue.add_states()
        else:
            sums.add(epilogue, None, *tile)
    slots: list[State | None] = [None] * len(directions.weights)
    for k in directions.used:
        if k == 1 and directions.of_pairs == (0,) and problem.operands.negatives_x is None:
            continue  # these columns are the anchors of nothing
        of_local = epilogue.state_of(k) or _state_of_nothing(problem, epilogue)
        if k == 1:
            of_local = communicator.reduce_scatter(of_local, aggregation.merge)
        before = slots[directions.slots[k]]
        slots[directions.slots[k]] = of_local if before is None else aggregation.merge(before, of_local)
    return stacked(slots)


def _state_of_nothing(problem: Problem, epilogue: Epilogue) -> State:
    """The state of all columns where this process has no candidate for them: of a tile without rows."""
    empty = epilogue.positive.new_empty(0, len(epilogue.positive))
    tile = Tile(empty, None, False)
    return problem.objective.aggregation.tile_state(tile, 0, 0, epilogue.positive, empty)


def unit_of(bounds: Tensor) -> Tensor:
    """A power of two: times it, gradients up to the bounds are at most 2^14, of both directions, in float16.

    Those 2^-29 times as large keep all their digits. The inverse norms, with which they are multiplied, are at most 1.
    """
    largest = bounds.amax()
    return torch.ldexp(torch.ones_like(largest), (13 - torch.frexp(largest).exponent).clamp(-100, 100))


def zeros_of(operand: Operand, dtype: torch.dtype) -> Tensor:
    """A sum of gradients of an operand's rows."""
    return operand.rows.new_zeros(operand.rows.shape, dtype=dtype)


def scaled(gradients: Gradients, factor: Tensor) -> Gradients:
    """Multiply gradients by a factor, in place."""
    return [None if grad is None else grad.mul_(factor) for grad in gradients]


def cast_gradient(grad: Tensor | None, of: Tensor | None) -> Tensor | None:
    """Cast a gradient to the dtype of its input."""
    return None if grad is None or of is None else grad.to(of.dtype)
