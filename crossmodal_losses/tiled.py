"""The streaming engine: a loss and its gradients from the embeddings, without storing the similarities.

S is computed tile by tile by the platform's own matrix product, each tile once for both directions; what is done with a
tile is the fold's. In units of one B x B x D product, forward and backward cost

* 1 where the fold selects one negative an anchor: the backward pass gathers rows;
* 3 where the weight of a pair depends on positives alone: one pass finds value and gradients together (1 without them);
* 4 otherwise: statistics first, then every tile again, for its weights.

Memory beyond inputs and gradients: four tiles of t x t, O(B) statistics, and two blocks of t x D where rows have to be
scaled or widened. Half precision adds a float32 copy of the gradients, B x D each.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.folds import EXCLUDED, Fold, State, along
from crossmodal_losses.rules import Rule, has_negatives, of_positives, reduced, upstream_of_anchors
from crossmodal_losses.selected import of_selected
from crossmodal_losses.sides import Sides, blocks, full_precision
from crossmodal_losses.similarity import at_least_float32


def _numbered(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Equal ids as equal small whole numbers, which a float holds: comparing floats into floats is ten times faster."""
    in_order, order = ids.sort()
    number = torch.zeros_like(order)
    number[1:] = (in_order[1:] != in_order[:-1]).cumsum(0)
    return torch.empty_like(in_order, dtype=dtype).scatter_(0, order, number.to(dtype))


class Tile(NamedTuple):
    """Rows I and columns J of S; EXCLUDED where a pair is no negative."""

    I: slice  # noqa: E741
    J: slice
    S: Tensor
    prepared: Tensor
    weights: Tensor  # to compute in, as is scratch
    scratch: Tensor


class Tiles:
    """The tiles of S, row by row, the lowest columns first."""

    def __init__(self, sides: Sides, ids: Tensor | None, fold: Fold, step: int) -> None:
        self.sides, self.fold = sides, fold
        self.blocks = blocks(len(sides.x.rows), step)
        self.ids = None if ids is None else _numbered(ids, sides.inverse.dtype)

    def positives(self) -> Tensor:
        """s_ii, ``[B]``."""
        x, y = self.sides.x, self.sides.y
        dots = [(x.block(block) * y.block(block)).sum(1) for block in self.blocks]
        return torch.cat(dots).mul_(x.inverse).mul_(y.inverse)

    def scale(self, values: Tensor, I: slice, J: slice) -> Tensor:  # noqa: E741
        """In place: every row by 1 / the length of its x, every column by 1 / that of its y."""
        return values.mul_(self.sides.x.inverse[I, None]).mul_(self.sides.y.inverse[J])

    def __iter__(self) -> Iterator[Tile]:
        """Every tile lies in memory where the one before lay."""
        side = self.blocks[0].stop
        memory = [self.sides.inverse.new_empty(side * side) for _ in range(4)]
        for I in self.blocks:  # noqa: E741
            for J in self.blocks:
                shape = (I.stop - I.start, J.stop - J.start)
                S, prepared, weights, scratch = (m[: shape[0] * shape[1]].view(shape) for m in memory)
                torch.mm(self.sides.x.block(I), self.sides.y.block(J).T, out=S)
                self.scale(S, I, J)
                if self.ids is not None:
                    S.add_(torch.eq(self.ids[I, None], self.ids[J], out=scratch), alpha=EXCLUDED)
                elif I == J:
                    S.fill_diagonal_(EXCLUDED)
                yield Tile(I, J, S, self.fold.prepare(S, out=prepared), weights, scratch)


class Gradients:
    """Of x and y where wanted: sums over weighed tiles."""

    def __init__(self, tiles: Tiles, wanted: Sequence[bool], coefficients: Tensor) -> None:
        self.tiles, self.coefficients = tiles, coefficients
        self.x, self.y = (
            torch.zeros_like(side.rows, dtype=coefficients.dtype) if want else None
            for side, want in zip((tiles.sides.x, tiles.sides.y), wanted, strict=True)
        )
        # Normalisation takes out of a row's gradient what lies along the row: sum_j dL/ds_ij s_ij.
        self.own = torch.zeros_like(coefficients)

    def weigh(self, tile: Tile, state: State, positive: Tensor) -> None:
        """dL/ds of a tile's pairs into tile.weights."""
        fold, rows, columns = self.tiles.fold, self.coefficients[0], self.coefficients[1]
        I, J, weights, scratch = tile.I, tile.J, tile.weights, tile.scratch  # noqa: E741
        fold.weigh(tile.prepared, 1, J.start, tuple(s[0, I] for s in state), positive[I], rows[I], weights)
        fold.weigh(tile.prepared, 0, I.start, tuple(s[1, J] for s in state), positive[J], columns[J], scratch)
        weights.add_(scratch)

    def multiply(self, tile: Tile) -> None:
        """Add what a weighed tile has to the gradients; the weights are lost."""
        I, J = tile.I, tile.J  # noqa: E741
        torch.mul(tile.weights, tile.S, out=tile.scratch)
        self.own[0, I] += tile.scratch.sum(1)
        self.own[1, J] += tile.scratch.sum(0)
        weights = self.tiles.scale(tile.weights, I, J)
        if self.x is not None:
            self.x[I].addmm_(weights, self.tiles.sides.y.block(J))
        if self.y is not None:
            self.y[J].addmm_(weights.T, self.tiles.sides.x.block(I))

    def finish(self, positive: Tensor, of_positive: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients, after the last tile, given dL/dpositive."""
        x, y, inverse = self.tiles.sides.x, self.tiles.sides.y, self.tiles.sides.inverse
        own_x, own_y = self.own.addcmul_(of_positive, positive).mul_(inverse).mul_(inverse)
        between = of_positive * x.inverse * y.inverse
        finished: list[Tensor | None] = []
        for total, side, other, own in ((self.x, x, y, own_x), (self.y, y, x, own_y)):
            if total is None:
                finished.append(None)
                continue
            for block in self.tiles.blocks:
                gradient = total[block].addcmul_(other.block(block), along(between[block], 1))
                gradient.addcmul_(side.block(block), along(own[block], 1), value=-1)
                if side.largest is not None:
                    gradient.div_(along(side.largest[block], 1))
            finished.append(total if total.dtype == side.rows.dtype else total.to(side.rows.dtype))
        return finished[0], finished[1]


def statistics(tiles: Tiles, positive: Tensor, gradients: Gradients | None) -> State:
    """The fold's state of every anchor, each part ``[2, B]``: of the rows, then of the columns.

    With gradients, those are found in the same pass.
    """
    fold = tiles.fold
    rows: list[State] = []
    columns: list[State] = []
    for tile in tiles:
        I, J = tile.I, tile.J  # noqa: E741
        of_rows = fold.of_tile(tile.prepared, 1, J.start, positive[I], tile.scratch)
        of_columns = fold.of_tile(tile.prepared, 0, I.start, positive[J], tile.scratch)
        if J.start == 0:
            rows.append(of_rows)
        else:
            rows[-1] = fold.merge(rows[-1], of_rows)
        if I.start == 0:
            columns.append(of_columns)
        else:
            j = tiles.blocks.index(J)
            columns[j] = fold.merge(columns[j], of_columns)
        if gradients is not None:
            gradients.weigh(tile, (), positive)
            # Looking costs nothing here. A trained model has few violations: most products are saved.
            if tile.S.device.type != "cpu" or float(tile.weights.amax()) != 0:
                gradients.multiply(tile)
    parts = zip(zip(*rows, strict=True), zip(*columns, strict=True), strict=True)
    return tuple(torch.stack([torch.cat(of_rows), torch.cat(of_columns)]) for of_rows, of_columns in parts)


class Forward(NamedTuple):
    """What the forward pass leaves: the loss, what the backward pass needs, and the gradients if they were found."""

    loss: Tensor
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
        sides = Sides(x, y, tile_size)
        tiles = Tiles(sides, ids, fold, tile_size)
        positive = tiles.positives()
        gradients = None
        if fold.one_pass and reduction != "none" and any(wanted):
            share = 1 / len(x) if reduction == "mean" else 1.0
            gradients = Gradients(tiles, wanted, torch.full_like(sides.inverse, share))
        state = statistics(tiles, positive, gradients)
        if gradients is not None:
            found = gradients.finish(positive, of_positives(fold, state, gradients.coefficients))
    folded = fold.finish(state, positive)
    has_negative = has_negatives(ids, positive)
    if sides.poison is None:
        return Forward(reduced(rule, positive, folded, has_negative, reduction), positive, state, found)
    loss = reduced(rule, positive * sides.poison, folded * sides.poison, has_negative, reduction)
    return Forward(loss, positive, state, tuple(None if g is None else g.mul_(sides.poison) for g in found))


def backward(
    x: Tensor,
    y: Tensor,
    ids: Tensor | None,
    rule: Rule,
    reduction: Reduction,
    tile_size: int,
    wanted: Sequence[bool],
    done: Forward,
    upstream: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, y and the rule's parameter, where wanted."""
    fold = rule.fold
    _, positive, state, _ = done
    with full_precision(x.device):
        sides = Sides(x, y, tile_size)
        if sides.poison is not None:
            upstream = upstream * sides.poison
        folded, has_negative = fold.finish(state, positive), has_negatives(ids, positive)
        of_positive, of_fold = upstream_of_anchors(rule, state, positive, folded, has_negative, reduction, upstream)
        if fold.selects:
            return *of_selected(sides, state, positive, of_positive, of_fold, wanted[:2]), None
        tiles = Tiles(sides, ids, fold, tile_size)
        gradients = Gradients(tiles, wanted[:2], fold.coefficients(state, of_fold))
        slope = fold.slope_of_positives(positive, of_fold) if wanted[2] else None
        for tile in tiles:
            gradients.weigh(tile, state, positive)
            if slope is not None:
                slope = slope + fold.slope(tile.prepared, tile.weights, tile.scratch)
            gradients.multiply(tile)
        return *gradients.finish(positive, of_positive), slope


SECOND_DERIVATIVE = (
    "expected one derivative of a loss in tiles, got a second: no similarities are kept to differentiate again. "
    "Use tile_size=None and a small batch, or the function of the similarities, as in nt_xent(cosine_similarity(x, y))"
)


class _OnlyOnce(torch.autograd.Function):
    """A gradient as it is, which depends on what it was computed from, but not differentiably."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> None:  # type: ignore[override]
        raise RuntimeError(SECOND_DERIVATIVE)


class _Tiled(torch.autograd.Function):
    """x, y ``[B, D]`` -> the loss."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        y: Tensor,
        ids: Tensor | None,
        parameter: Tensor | None,
        rule: Rule,
        reduction: Reduction,
        tile_size: int,
    ) -> Tensor:
        done = forward(x, y, ids, rule, reduction, tile_size, ctx.needs_input_grad[:2])
        ctx.save_for_backward(x, y, ids, parameter)
        ctx.rest = rule, reduction, tile_size
        ctx.done = done._replace(loss=done.loss.detach())
        return done.loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y, ids, _ = ctx.saved_tensors
        rule, reduction, tile_size = ctx.rest
        wanted = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[3])
        gradients: Sequence[Tensor | None]
        with torch.no_grad():
            if ctx.done.found:
                found, ctx.done = (
                    ctx.done.found,
                    ctx.done._replace(found=()),
                )  # a second backward pass computes them anew
                gradients = *(None if g is None else g.mul_(upstream) for g in found), None
            else:
                gradients = backward(x, y, ids, rule, reduction, tile_size, wanted, ctx.done, upstream)
        if torch.is_grad_enabled():
            gradients = [None if g is None else _OnlyOnce.apply(g, x, y, upstream) for g in gradients]
        gx, gy, of_parameter = gradients
        return gx, gy, None, of_parameter, None, None, None


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
    gradients = [x.new_empty(0) if g is None else g for g in done.found or (None, None)]
    return [done.loss, done.positive, *gradients, *done.state]


@_tiled_operator.register_fake
def _(x, y, ids, parameter, rule, numbers, reduction, tile_size, wants_x, wants_y):  # type: ignore[no-untyped-def]
    fold = Rule.by_name[rule].from_numbers(numbers, parameter).fold
    dtype = torch.promote_types(at_least_float32(x).dtype, at_least_float32(y).dtype)
    one = x.new_empty(1, 1, dtype=dtype)
    state = [x.new_empty(2, len(x), dtype=part.dtype) for part in fold.of_tile(one, 1, 0, one[0], one)]
    loss = x.new_empty((len(x),) if reduction == "none" else (), dtype=dtype)
    found = fold.one_pass and reduction != "none"
    gradients = [torch.empty_like(x) if found and wants_x else x.new_empty(0)]
    gradients.append(torch.empty_like(y) if found and wants_y else x.new_empty(0))
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
    done = Forward(upstream, positive, tuple(state), ())
    wanted = (wants_x, wants_y, wants_parameter)
    gradients = backward(x, y, ids, made, reduction, tile_size, wanted, done, upstream)
    return [x.new_empty(0) if g is None else g for g in gradients]


@_backward_operator.register_fake
def _(  # type: ignore[no-untyped-def]
    x, y, ids, parameter, rule, numbers, reduction, tile_size, wants_x, wants_y, wants_parameter, positive, state,
    upstream,
):  # fmt: skip
    inputs = ((x, wants_x), (y, wants_y), (parameter, wants_parameter))
    return [torch.empty_like(value) if wanted else x.new_empty(0) for value, wanted in inputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, y, ids, parameter, *ctx.settings = inputs
    ctx.count = len(output)
    ctx.save_for_backward(x, y, ids, parameter, *output[1:])


def _differentiate(ctx: Any, upstream: list[Tensor | None]) -> tuple[Any, ...]:
    x, y, ids, parameter, positive, gx, gy, *state = ctx.saved_tensors
    *settings, wants_x, wants_y = ctx.settings
    wants_parameter = parameter is not None and ctx.needs_input_grad[3]
    of_parameter = None
    if gx.numel() or gy.numel():
        gx, gy = gx * upstream[0], gy * upstream[0]
    else:
        gx, gy, of_parameter = torch.ops.crossmodal_losses.tiled_backward(
            x, y, ids, parameter, *settings, wants_x, wants_y, wants_parameter, positive, state, upstream[0]
        )
    return (
        gx if wants_x else None,
        gy if wants_y else None,
        None,
        of_parameter if wants_parameter else None,
        *[None] * (len(ctx.settings)),
    )


def _refuse(ctx: Any, *upstream: Any) -> None:
    raise RuntimeError(SECOND_DERIVATIVE)


_tiled_operator.register_autograd(_differentiate, setup_context=_save)
_backward_operator.register_autograd(_refuse)


def tiled(x: Tensor, y: Tensor, ids: Tensor | None, rule: Rule, reduction: Reduction, tile_size: int) -> Tensor:
    """The loss of x and y, ``[B, D]``, from tiles of at most tile_size rows and columns of S."""
    parameter = rule.fold.parameter
    if torch.compiler.is_compiling():
        wants = torch.is_grad_enabled()
        loss: Tensor = torch.ops.crossmodal_losses.tiled(
            x, y, ids, parameter, type(rule).__name__, rule.numbers(), reduction, tile_size,
            wants and x.requires_grad, wants and y.requires_grad,
        )[0]  # fmt: skip
        return loss
    return _Tiled.apply(x, y, ids, parameter, rule, reduction, tile_size)  # type: ignore[no-any-return]
