"""The streaming engine: a loss and its gradients from the embeddings, without storing the similarities.

S is computed tile by tile by the platform's own matrix product, each tile once for both directions; what is done with a
tile is the fold's. In units of one B x B x D product, forward and backward cost

* 1 where the fold selects one negative an anchor: the backward pass gathers rows;
* 3 where the weight of a pair depends on positives alone: one pass finds value and gradients together (1 without them);
* 4 otherwise: statistics first, then every tile again, for its weights.

Memory beyond inputs and gradients is O(t^2 + t D + B): three tiles of t x t, O(B) statistics, and a few blocks of t x D
where rows have to be scaled or widened. For half precision the gradients are summed in float32, B x D each.

Of equal hardest negatives the lowest index takes the gradient, whatever the tiles. Equal are similarities whose
products the platform rounds equally: those of small whole numbers always, those of equal rows not everywhere.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.engine.epilogue import Epilogue, Plain
from crossmodal_losses.engine.hardest_backward import add_selected, of_selected
from crossmodal_losses.engine.objective import Fold, State, along
from crossmodal_losses.engine.one_process import OneProcess, Visit
from crossmodal_losses.engine.operands import Side, Sides, blocks, full_precision, measured, normalisation_backward
from crossmodal_losses.engine.products import accumulate, multiply
from crossmodal_losses.engine.rules import Rule, has_negatives, of_positives, reduced, upstream_of_anchors
from crossmodal_losses.similarity import computation_dtype

# Looked for once: looking takes as long as a small loss.
HAS_TRITON = find_spec("triton") is not None


def epilogue_of(sides: Sides, ids: Tensor | None, fold: Fold, positive: Tensor) -> Epilogue:
    """The fused kernels where there are any, on CUDA; plain torch everywhere else."""
    if positive.is_cuda and HAS_TRITON:
        from crossmodal_losses.engine.epilogue_triton import Fused, supports

        if supports(positive.dtype, fold):
            return Fused(sides.inverse, ids, fold, positive, sides.x.operand)
    return Plain(sides.inverse, ids, fold, positive, sides.x.operand)


class Gradients:
    """Of x and y where wanted: sums over weighed tiles."""

    def __init__(self, sides: Sides, step: int, wants_x: bool, coefficients: Tensor) -> None:
        self.sides, self.step, self.coefficients = sides, step, coefficients
        x = sides.x.rows
        self.x = x.new_zeros(x.shape, dtype=coefficients.dtype) if wants_x else None

    def add(self, epilogue: Epilogue, state: State, y: Side, of_y: Tensor | None) -> None:
        """A tile's part."""
        I, J = epilogue.I, epilogue.J  # noqa: E741
        weights = epilogue.weigh(state, self.coefficients)
        # A trained model has few violations: most products are saved.
        if epilogue.fold.one_pass and not epilogue.any_weight():
            return
        x = self.sides.x
        if self.x is not None:
            accumulate(self.x[x.here(I)], weights, y.block(J))
        if of_y is not None:
            accumulate(of_y[y.here(J)], weights.T, x.block(I))

    def finish(self, of_y: Tensor | None, of_positive: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients, after the last tile, given dL/dpositive; in the dtype of the computation."""
        x, y, mine = self.sides.x, self.sides.y, self.sides.own
        inverse = self.sides.inverse[:, mine]
        between = of_positive * inverse[0] * inverse[1]
        for total, side, other, inverse_of_side in ((self.x, x, y, inverse[0]), (of_y, y, x, inverse[1])):
            if total is None:
                continue
            for block in blocks(mine, self.step):
                here = side.here(block)
                gradient = total[here].addcmul_(other.block(block), along(between[here], 1))
                scale = None if side.scale is None else side.scale[here]
                normalisation_backward(gradient, side.block(block), inverse_of_side[here], scale)
        return self.x, of_y


def positives(sides: Sides, step: int) -> Tensor:
    """s_ii of the rows held."""
    x, y, inverse = sides.x, sides.y, sides.inverse[:, sides.own]
    dots = [(x.block(block).to(inverse.dtype) * y.block(block)).sum(1) for block in blocks(sides.own, step)]
    return torch.cat(dots).mul_(inverse[0]).mul_(inverse[1])


Tile = tuple[slice, slice, Side, Tensor | None]


def tiles(sides: Sides, step: int, epilogue: Epilogue, visit: Visit) -> Iterator[Tile]:
    """Give the epilogue every tile of the rows held, the lowest columns of a visit first; each lies where the one
    before lay.

    Yields which rows and columns they are, the columns' rows of y, and where the gradients of those are summed.
    """
    rows = blocks(sides.own, step)
    memory = sides.inverse.new_empty(0)
    for columns, rows_of_y, of_y in visit:
        y = sides.columns(columns, rows_of_y)
        for I in rows:  # noqa: E741
            for J in blocks(columns, step):
                height, width = I.stop - I.start, J.stop - J.start
                if len(memory) < height * width:
                    memory = memory.new_empty(height * width)
                products = memory[: height * width].view(height, width)
                multiply(sides.x.block(I), y.block(J).T, out=products)
                epilogue.take(products, I, J)
                yield I, J, y, of_y


def statistics(
    sides: Sides, step: int, epilogue: Epilogue, visit: Visit, gradients: Gradients | None, processes: OneProcess
) -> State:
    """The fold's state of every anchor held, each part ``[2, rows]``: of the rows, then of the columns.

    With gradients, those are found in the same pass.
    """
    fold = epilogue.fold
    rows: dict[int, State] = {}
    columns: dict[int, State] = {}
    for I, J, y, of_y in tiles(sides, step, epilogue, visit):  # noqa: E741
        for states, start, state in zip((rows, columns), (I.start, J.start), epilogue.states(), strict=True):
            states[start] = fold.merge(states[start], state) if start in states else state
        if gradients is not None:
            gradients.add(epilogue, (), y, of_y)

    def in_order(states: dict[int, State]) -> State:
        return tuple(torch.cat(parts) for parts in zip(*(states[start] for start in sorted(states)), strict=True))

    of_columns = processes.merge(fold, in_order(columns))
    return tuple(torch.stack(parts) for parts in zip(in_order(rows), of_columns, strict=True))


class Forward(NamedTuple):
    """The loss, what the backward pass needs, and the gradients if they were found, in the dtype of the computation."""

    loss: Tensor
    sides: Sides
    ids: Tensor | None
    positive: Tensor
    state: State
    kept: Tensor | None
    found: tuple[Tensor | None, ...]


def forward(
    sides: Sides,
    ids: Tensor | None,
    rule: Rule,
    reduction: Reduction,
    tile_size: int,
    wanted: Sequence[bool],
    processes: OneProcess,
) -> Forward:
    """The loss; and, where one pass can find them, the gradients of x and y where wanted."""
    fold, dtype = rule.fold, sides.inverse.dtype
    found: tuple[Tensor | None, ...] = ()
    with full_precision(sides.inverse.device):
        sides, ids, positive = processes.share(sides, ids, positives(sides, tile_size))
        of_own, B = positive[sides.own], len(positive)
        epilogue = epilogue_of(sides, ids, fold, positive)
        gradients = None
        if fold.one_pass and reduction != "none" and any(wanted):
            share = 1 / B if reduction == "mean" else 1.0
            gradients = Gradients(sides, tile_size, wanted[0], torch.full_like(sides.inverse, share))
        visit = processes.visit(sides, dtype if gradients is not None and wanted[1] else None)
        state = statistics(sides, tile_size, epilogue, visit, gradients, processes)
        if gradients is not None:
            of_positive = of_positives(fold, state, gradients.coefficients[:, sides.own])
            found = gradients.finish(visit.total, of_positive)
    folded = fold.finish(state, of_own)
    poison = sides.poison
    if poison is not None:
        of_own, folded = of_own * poison, folded * poison
        found = tuple(None if g is None else g.mul_(poison) for g in found)
    loss = reduced(rule, of_own, folded, has_negatives(ids, positive), reduction, B)
    if reduction != "none":
        loss = processes.sum(loss)
    return Forward(loss, sides, ids, positive, state, None if found else visit.kept, found)


def backward(
    sides: Sides,
    ids: Tensor | None,
    rule: Rule,
    reduction: Reduction,
    tile_size: int,
    wanted: Sequence[bool],
    positive: Tensor,
    state: State,
    kept: Tensor | None,
    upstream: Tensor,
    processes: OneProcess,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, y and the rule's parameter, where wanted."""
    fold, x, y, dtype = rule.fold, sides.x.rows, sides.y.rows, sides.inverse.dtype
    with full_precision(x.device):
        if sides.poison is not None:
            upstream = upstream * sides.poison
        if reduction != "none":
            upstream = processes.sum(upstream)
        of_own = positive[sides.own]
        folded, has_negative = fold.finish(state, of_own), has_negatives(ids, positive)
        of_positive, of_fold = upstream_of_anchors(
            rule, state, of_own, folded, has_negative, reduction, upstream, len(positive)
        )
        if fold.selects and processes.alone:
            return *of_selected(sides, state, of_positive, of_fold, wanted[:2]), None
        coefficients = processes.publish(fold.coefficients(state, of_fold))
        state = tuple(processes.publish(part) for part in state)
        gradients = Gradients(sides, tile_size, wanted[0], coefficients)
        visit = processes.visit(sides, dtype if wanted[1] else None, kept)
        slope = fold.slope_of_positives(of_own, of_fold) if wanted[2] else None
        if fold.selects:
            add_selected(sides, state, coefficients, visit, gradients.x)
        else:
            epilogue = epilogue_of(sides, ids, fold, positive)
            for _, _, side, of_y in tiles(sides, tile_size, epilogue, visit):
                gradients.add(epilogue, state, side, of_y)
                if slope is not None:
                    slope = slope + epilogue.slope()
        gx, gy = gradients.finish(visit.total, of_positive)
        if slope is not None:
            slope = processes.mean(slope)
    return _to(gx, x), _to(gy, y), _to(slope, fold.parameter)


def _to(gradient: Tensor | None, of: Tensor | None) -> Tensor | None:
    """In the dtype of what it is the gradient of."""
    return None if gradient is None or of is None else gradient.to(of.dtype)


SECOND_DERIVATIVE = (
    "expected one derivative of a loss in tiles, got a second: no similarities are kept to differentiate again. "
    "Use tile_size=None and a small batch, or the function of the similarities, as in nt_xent(cosine_similarity(x, y))"
)


class _OnlyOnce(torch.autograd.Function):
    """A gradient as it is, which depends on what it was computed from, but not differentiably."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> None:
        raise RuntimeError(SECOND_DERIVATIVE)


class _Tiled(torch.autograd.Function):
    """x, y ``[B, D]`` -> the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        parameter: Tensor | None,
        sides: Sides,
        ids: Tensor | None,
        rule: Rule,
        reduction: Reduction,
        tile_size: int,
        processes: OneProcess,
        wants: bool,
    ) -> Tensor:
        wanted = [wants and need for need in ctx.needs_input_grad[:2]]
        done = forward(sides, ids, rule, reduction, tile_size, wanted, processes)
        known = done.sides
        ctx.save_for_backward(
            x, y, parameter, known.inverse, known.scales, known.scales_of_y, done.ids, done.positive, done.kept,
            *done.state,
        )  # fmt: skip
        ctx.start, ctx.settings, ctx.processes = known.own.start, (rule, reduction, tile_size), processes
        ctx.found = done.found
        return done.loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, parameter, inverse, scales, scales_of_y, ids, positive, kept, *state = ctx.saved_tensors
        wanted, processes = ctx.needs_input_grad[:3], ctx.processes
        gradients: Sequence[Tensor | None]
        with torch.no_grad():
            if ctx.found:
                found, ctx.found = ctx.found, ()  # used up: a second backward pass finds them anew
                upstream = processes.sum(upstream)
                gx, gy = (None if g is None else g.mul_(upstream) for g in found)
                gradients = _to(gx, x), _to(gy, y), None
            else:
                sides, state = Sides(x, y, inverse, scales, ctx.start, scales_of_y), tuple(state)
                rule, reduction, tile_size = ctx.settings
                gradients = backward(
                    sides, ids, rule, reduction, tile_size, wanted, positive, state, kept, upstream, processes
                )
        if torch.is_grad_enabled():
            sources = [value for value in (x, y, parameter, upstream) if value is not None]
            gradients = [None if g is None else _OnlyOnce.apply(g, *sources) for g in gradients]  # type: ignore[no-untyped-call]
        return *gradients, *[None] * 7


# What torch.compile sees: two operators that it does not look into.


@torch.library.custom_op(
    "crossmodal_losses::tiled",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor? ids, Tensor? parameter, str rule, float[] numbers, str reduction,"
    " int tile_size, bool wants_x, bool wants_y) -> Tensor[]",
)
def _tiled_operator(x, y, ids, parameter, rule, numbers, reduction, tile_size, wants_x, wants_y):  # type: ignore[no-untyped-def]
    """The loss, the positives, the gradients of x and y (empty if not found), and the state."""
    made = Rule.by_name[rule].from_numbers(numbers, parameter)
    with full_precision(x.device):
        sides = measured(x, y, tile_size)
    done = forward(sides, ids, made, reduction, tile_size, (wants_x, wants_y), OneProcess())
    gradients = [done.positive.new_empty(0) if g is None else g for g in done.found or (None, None)]
    return [done.loss, done.positive, *gradients, *done.state]


@_tiled_operator.register_fake
def _(x, y, ids, parameter, rule, numbers, reduction, tile_size, wants_x, wants_y):  # type: ignore[no-untyped-def]
    fold = Rule.by_name[rule].from_numbers(numbers, parameter).fold
    dtype = computation_dtype(x, y)
    one = x.new_empty(1, 1, dtype=dtype)
    state = [x.new_empty(2, len(x), dtype=part.dtype) for part in fold.of_tile(one, 1, 0, one[0], one)]
    loss = x.new_empty((len(x),) if reduction == "none" else (), dtype=dtype)
    found = fold.one_pass and reduction != "none"
    gradients = [x.new_empty(x.shape if found and wants else 0, dtype=dtype) for wants in (wants_x, wants_y)]
    return [loss, x.new_empty(len(x), dtype=dtype), *gradients, *state]


@torch.library.custom_op(
    "crossmodal_losses::tiled_backward",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor? ids, Tensor? parameter, str rule, float[] numbers, str reduction,"
    " int tile_size, bool wants_x, bool wants_y, bool wants_parameter, Tensor positive, Tensor[] state,"
    " Tensor upstream) -> Tensor[]",
)
def _backward_operator(  # type: ignore[no-untyped-def]
    x, y, ids, parameter, rule, numbers, reduction, tile_size, wants_x, wants_y, wants_parameter, positive, state,
    upstream,
):  # fmt: skip
    """The gradients of x, y and the parameter; empty where they are not wanted."""
    made = Rule.by_name[rule].from_numbers(numbers, parameter)
    wanted = (wants_x, wants_y, wants_parameter)
    with full_precision(x.device):
        sides = measured(x, y, tile_size)
    gradients = backward(
        sides, ids, made, reduction, tile_size, wanted, positive, tuple(state), None, upstream, OneProcess()
    )
    return [x.new_empty(0) if g is None else g for g in gradients]


@_backward_operator.register_fake
def _(  # type: ignore[no-untyped-def]
    x, y, ids, parameter, rule, numbers, reduction, tile_size, wants_x, wants_y, wants_parameter, positive, state,
    upstream,
):  # fmt: skip
    inputs = ((x, wants_x), (y, wants_y), (parameter, wants_parameter))
    return [value.new_empty(value.shape) if wanted else x.new_empty(0) for value, wanted in inputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, y, ids, parameter, *ctx.settings = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, y, ids, parameter, *output[1:])


def _differentiate(ctx: Any, upstream: list[Tensor | None]) -> tuple[Any, ...]:
    of_loss, *of_others = upstream
    if any(gradient is not None for gradient in of_others):
        raise RuntimeError(SECOND_DERIVATIVE)
    x, y, ids, parameter, positive, gx, gy, *state = ctx.saved_tensors
    *settings, wants_x, wants_y = ctx.settings
    wants_parameter = parameter is not None and ctx.needs_input_grad[3]
    of_parameter = None
    if gx.numel() or gy.numel():
        gx, gy = (gx * of_loss).to(x.dtype), (gy * of_loss).to(y.dtype)
    else:
        gx, gy, of_parameter = torch.ops.crossmodal_losses.tiled_backward(
            x, y, ids, parameter, *settings, wants_x, wants_y, wants_parameter, positive, state, of_loss
        )
    gradients = (gx if wants_x else None, gy if wants_y else None, None, of_parameter if wants_parameter else None)
    return *gradients, *[None] * len(ctx.settings)


def _refuse(ctx: Any, *upstream: Any) -> None:
    raise RuntimeError(SECOND_DERIVATIVE)


_tiled_operator.register_autograd(_differentiate, setup_context=_save)
_backward_operator.register_autograd(_refuse)


def tiled(x: Tensor, y: Tensor, ids: Tensor | None, rule: Rule, reduction: Reduction, tile_size: int) -> Tensor:
    """The loss of x and y, ``[B, D]``, from tiles of at most tile_size rows and columns of S."""
    if torch.compiler.is_compiling():
        parameter, wants = rule.fold.parameter, torch.is_grad_enabled()
        loss: Tensor = torch.ops.crossmodal_losses.tiled(
            x, y, ids, parameter, rule.name(), rule.numbers(), reduction, tile_size,
            wants and x.requires_grad, wants and y.requires_grad,
        )[0]  # fmt: skip
        return loss
    with torch.no_grad(), full_precision(x.device):
        sides = measured(x, y, tile_size)
    return of_processes(sides, ids, rule, reduction, tile_size, OneProcess())


def of_processes(
    sides: Sides, ids: Tensor | None, rule: Rule, reduction: Reduction, tile_size: int, processes: OneProcess
) -> Tensor:
    """The loss of a batch over several processes, of which each passes the rows that it holds."""
    x, y, wants = sides.x.rows, sides.y.rows, torch.is_grad_enabled()
    return _Tiled.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, y, rule.fold.parameter, sides, ids, rule, reduction, tile_size, processes, wants
    )
