"""The streaming engine: a loss and its gradients from the embeddings, without storing the similarities.

S is computed tile by tile by the platform's own matrix product, each tile once for both directions; what is done with a
tile is the fold's. In units of one B x B x D product, forward and backward cost

* 1 where the fold selects one negative an anchor: the backward pass gathers rows;
* 3 where the weight of a pair depends on positives alone: one pass finds value and gradients together (1 without them);
* 4 otherwise: statistics first, then every tile again, for its weights.

Memory beyond inputs and gradients is O(t^2 + t D + B): four tiles of t x t, O(B) statistics, and a few blocks of t x D
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
from crossmodal_losses.epilogue import Epilogue, Plain
from crossmodal_losses.folds import Fold, State, along
from crossmodal_losses.products import accumulate, multiply
from crossmodal_losses.rules import Rule, has_negatives, of_positives, reduced, upstream_of_anchors
from crossmodal_losses.selected import of_selected
from crossmodal_losses.sides import Sides, blocks, full_precision, measured
from crossmodal_losses.similarity import computation_dtype

# Looked for once: looking takes as long as a small loss.
HAS_TRITON = find_spec("triton") is not None


def epilogue_of(sides: Sides, ids: Tensor | None, fold: Fold, positive: Tensor) -> Epilogue:
    """The fused kernels where there are any, on CUDA; plain torch everywhere else."""
    if positive.is_cuda and HAS_TRITON:
        from crossmodal_losses.epilogue_triton import Fused, supports

        if supports(positive.dtype, fold):
            return Fused(sides, ids, fold, positive)
    return Plain(sides, ids, fold, positive)


class Gradients:
    """Of x and y where wanted: sums over weighed tiles."""

    def __init__(self, sides: Sides, step: int, wanted: Sequence[bool], coefficients: Tensor) -> None:
        self.sides, self.blocks, self.coefficients = sides, blocks(len(sides.x.rows), step), coefficients
        self.x, self.y = (
            side.rows.new_zeros(side.rows.shape, dtype=coefficients.dtype) if want else None
            for side, want in zip((sides.x, sides.y), wanted, strict=True)
        )
        # Normalisation takes out of a row's gradient what lies along the row: sum_j dL/ds_ij s_ij.
        self.own = torch.zeros_like(coefficients)

    def add(self, epilogue: Epilogue, state: State) -> None:
        """A tile's part."""
        I, J = epilogue.I, epilogue.J  # noqa: E741
        weights = epilogue.weigh(state, self.coefficients)
        # A trained model has few violations: most products are saved.
        if epilogue.fold.one_pass and not epilogue.any_weight():
            return
        rows, columns = epilogue.own()
        self.own[0, I] += rows
        self.own[1, J] += columns
        if self.x is not None:
            accumulate(self.x[I], weights, self.sides.y.block(J))
        if self.y is not None:
            accumulate(self.y[J], weights.T, self.sides.x.block(I))

    def finish(self, positive: Tensor, of_positive: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients, after the last tile, given dL/dpositive; in the dtype of the computation."""
        x, y, inverse = self.sides.x, self.sides.y, self.sides.inverse
        own_x, own_y = self.own.addcmul_(of_positive, positive).mul_(inverse).mul_(inverse)
        between = of_positive * x.inverse * y.inverse
        finished: list[Tensor | None] = []
        for total, side, other, own in ((self.x, x, y, own_x), (self.y, y, x, own_y)):
            if total is None:
                finished.append(None)
                continue
            for block in self.blocks:
                gradient = total[block].addcmul_(other.block(block), along(between[block], 1))
                gradient.addcmul_(side.block(block), along(own[block], 1), value=-1)
                if side.scale is not None:
                    gradient.div_(along(side.scale[block], 1))
            finished.append(total)
        return finished[0], finished[1]


def positives(sides: Sides, step: int) -> Tensor:
    """s_ii, ``[B]``."""
    x, y = sides.x, sides.y
    dots = [(x.block(block).to(x.inverse.dtype) * y.block(block)).sum(1) for block in blocks(len(x.rows), step)]
    return torch.cat(dots).mul_(x.inverse).mul_(y.inverse)


def tiles(sides: Sides, step: int, epilogue: Epilogue) -> Iterator[tuple[slice, slice]]:
    """Give the epilogue every tile of S, row by row, the lowest columns first; each lies where the one before lay."""
    parts = blocks(len(sides.x.rows), step)
    memory = sides.inverse.new_empty(parts[0].stop ** 2)
    for I in parts:  # noqa: E741
        for J in parts:
            rows, columns = I.stop - I.start, J.stop - J.start
            products = memory[: rows * columns].view(rows, columns)
            multiply(sides.x.block(I), sides.y.block(J).T, out=products)
            epilogue.take(products, I, J)
            yield I, J


def statistics(sides: Sides, step: int, epilogue: Epilogue, gradients: Gradients | None) -> State:
    """The fold's state of every anchor, each part ``[2, B]``: of the rows, then of the columns.

    With gradients, those are found in the same pass.
    """
    merge = epilogue.fold.merge
    rows: list[State] = []
    columns: dict[int, State] = {}
    for I, J in tiles(sides, step, epilogue):  # noqa: E741
        of_rows, of_columns = epilogue.states()
        if J.start == 0:
            rows.append(of_rows)
        else:
            rows[-1] = merge(rows[-1], of_rows)
        columns[J.start] = of_columns if I.start == 0 else merge(columns[J.start], of_columns)
        if gradients is not None:
            gradients.add(epilogue, ())
    parts = zip(zip(*rows, strict=True), zip(*columns.values(), strict=True), strict=True)
    return tuple(torch.stack([torch.cat(of_rows), torch.cat(of_columns)]) for of_rows, of_columns in parts)


class Forward(NamedTuple):
    """The loss, what the backward pass needs, and the gradients if they were found, in the dtype of the computation."""

    loss: Tensor
    sides: Sides
    positive: Tensor
    state: State
    found: tuple[Tensor | None, ...]


def forward(
    x: Tensor,
    y: Tensor,
    ids: Tensor | None,
    rule: Rule,
    reduction: Reduction,
    tile_size: int,
    wanted: Sequence[bool],
) -> Forward:
    """The loss; and, where one pass can find them, the gradients of x and y where wanted."""
    fold = rule.fold
    found: tuple[Tensor | None, ...] = ()
    with full_precision(x.device):
        sides = measured(x, y, tile_size)
        positive = positives(sides, tile_size)
        epilogue = epilogue_of(sides, ids, fold, positive)
        gradients = None
        if fold.one_pass and reduction != "none" and any(wanted):
            share = 1 / len(x) if reduction == "mean" else 1.0
            gradients = Gradients(sides, tile_size, wanted, torch.full_like(sides.inverse, share))
        state = statistics(sides, tile_size, epilogue, gradients)
        if gradients is not None:
            found = gradients.finish(positive, of_positives(fold, state, gradients.coefficients))
    folded = fold.finish(state, positive)
    has_negative = has_negatives(ids, positive)
    if sides.poison is None:
        return Forward(reduced(rule, positive, folded, has_negative, reduction), sides, positive, state, found)
    loss = reduced(rule, positive * sides.poison, folded * sides.poison, has_negative, reduction)
    found = tuple(None if g is None else g.mul_(sides.poison) for g in found)
    return Forward(loss, sides, positive, state, found)


def backward(
    sides: Sides,
    ids: Tensor | None,
    rule: Rule,
    reduction: Reduction,
    tile_size: int,
    wanted: Sequence[bool],
    positive: Tensor,
    state: State,
    upstream: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, y and the rule's parameter, where wanted."""
    fold, x, y = rule.fold, sides.x.rows, sides.y.rows
    with full_precision(x.device):
        if sides.poison is not None:
            upstream = upstream * sides.poison
        folded, has_negative = fold.finish(state, positive), has_negatives(ids, positive)
        of_positive, of_fold = upstream_of_anchors(rule, state, positive, folded, has_negative, reduction, upstream)
        if fold.selects:
            return *of_selected(sides, state, positive, of_positive, of_fold, wanted[:2]), None
        epilogue = epilogue_of(sides, ids, fold, positive)
        gradients = Gradients(sides, tile_size, wanted[:2], fold.coefficients(state, of_fold))
        slope = fold.slope_of_positives(positive, of_fold) if wanted[2] else None
        for _ in tiles(sides, tile_size, epilogue):
            gradients.add(epilogue, state)
            if slope is not None:
                slope = slope + epilogue.slope()
        gx, gy = gradients.finish(positive, of_positive)
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
        ids: Tensor | None,
        parameter: Tensor | None,
        rule: Rule,
        reduction: Reduction,
        tile_size: int,
        wants: bool,
    ) -> Tensor:
        wanted = [wants and need for need in ctx.needs_input_grad[:2]]
        done = forward(x, y, ids, rule, reduction, tile_size, wanted)
        ctx.save_for_backward(x, y, ids, parameter, done.sides.inverse, done.sides.scales, done.positive, *done.state)
        ctx.settings, ctx.found = (rule, reduction, tile_size), done.found
        return done.loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, ids, parameter, inverse, scales, positive, *state = ctx.saved_tensors
        wanted = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[3])
        gradients: Sequence[Tensor | None]
        with torch.no_grad():
            if ctx.found:
                found, ctx.found = ctx.found, ()  # used up: a second backward pass finds them anew
                gx, gy = (None if g is None else g.mul_(upstream) for g in found)
                gradients = _to(gx, x), _to(gy, y), None
            else:
                rule, reduction, tile_size = ctx.settings
                sides, state = Sides(x, y, inverse, scales), tuple(state)
                gradients = backward(sides, ids, rule, reduction, tile_size, wanted, positive, state, upstream)
        if torch.is_grad_enabled():
            sources = [value for value in (x, y, parameter, upstream) if value is not None]
            gradients = [None if g is None else _OnlyOnce.apply(g, *sources) for g in gradients]  # type: ignore[no-untyped-call]
        gx, gy, of_parameter = gradients
        return gx, gy, None, of_parameter, None, None, None, None


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
    done = forward(x, y, ids, made, reduction, tile_size, (wants_x, wants_y))
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
    gradients = backward(sides, ids, made, reduction, tile_size, wanted, positive, tuple(state), upstream)
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
    parameter, wants = rule.fold.parameter, torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        loss: Tensor = torch.ops.crossmodal_losses.tiled(
            x, y, ids, parameter, rule.name(), rule.numbers(), reduction, tile_size,
            wants and x.requires_grad, wants and y.requires_grad,
        )[0]  # fmt: skip
        return loss
    return _Tiled.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, y, ids, parameter, rule, reduction, tile_size, wants
    )
