"""A loss over tiles as an autograd function, and as an operator for torch.compile."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.checks import Batch
from crossmodal_losses.engine.aggregation import Tile
from crossmodal_losses.engine.communication import SingleProcess
from crossmodal_losses.engine.compat import is_batched, is_transformed
from crossmodal_losses.engine.objective import Directions, Objective, Total
from crossmodal_losses.engine.operands import COUNT_OF_TENSORS, Operands, measure_norms
from crossmodal_losses.engine.problem import Problem, all_gather_columns
from crossmodal_losses.engine.tiles import Saved, backward, cast_gradient, entries_to_keep, forward, scaled
from crossmodal_losses.similarity import computation_dtype

SECOND_DERIVATIVE = (
    "expected one derivative of a loss in tiles, got a second: no similarities are kept to differentiate again. "
    "Use tile_size=None and a small batch, or the function of the similarities, as in nt_xent(cosine_similarity(x, y))"
)

TRANSFORMED = (
    "expected a loss in tiles outside of torch.func and forward-mode differentiation, got one inside: only a loss of "
    "all of S goes through these. Use tile_size=None and a small batch, or the function of the similarities, as in "
    "nt_xent(cosine_similarity(x, y))"
)


def refuse_transformations(*tensors: Tensor | None) -> None:
    """Raise ValueError under a transformation of torch.func, or where a tensor has a tangent or is a batch of them."""
    if is_transformed(*tensors) or any(is_batched(tensor) for tensor in tensors):
        raise ValueError(TRANSFORMED)


def tiled_loss(batch: Batch, objective: Objective, total: Total, tile_size: tuple[int, int]) -> Tensor:
    """Compute the loss of a batch from tiles of at most tile_size rows and columns of S, two numbers."""
    parameter = objective.aggregation.parameter
    if torch.compiler.is_compiling():
        settings = objective.name(), objective.numbers(), total.reduction, list(total.weights), list(tile_size)
        needs_grad = [
            torch.is_grad_enabled() and value is not None and value.requires_grad
            for value in (*batch.embeddings, parameter)
        ]
        loss: Tensor = torch.ops.crossmodal_losses.tiled_forward(*batch, parameter, *settings, needs_grad)[0]
        return loss
    refuse_transformations(*batch.embeddings, parameter)
    return loss_of_problem(Problem(measure_norms(batch, tile_size[0]), objective, total, tile_size, SingleProcess()))


def loss_of_problem(problem: Problem) -> Tensor:
    """Compute the loss of a batch, of which each process passes its local rows."""
    inputs = *problem.operands.rows, problem.objective.aggregation.parameter
    return _Tiled.apply(*inputs, problem, torch.is_grad_enabled())  # type: ignore[no-any-return, no-untyped-call]


class _OnlyOnce(torch.autograd.Function):
    """A gradient as it is, which depends on its sources, but not differentiably."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> None:
        raise RuntimeError(SECOND_DERIVATIVE)


class _Tiled(torch.autograd.Function):
    """Embeddings and parameter -> the loss. All tensors are saved by autograd, none by the context itself."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *_, parameter, problem, grad_enabled = arguments
        needs_grad = [grad_enabled and need for need in ctx.needs_input_grad[:5]]
        loss, saved, ctx.gradients = forward(problem, needs_grad)
        operands, *ctx.settings = saved.problem
        ctx.starts = operands.starts
        others = parameter, saved.positive, saved.has_negative, saved.kept, saved.products, *saved.state
        ctx.save_for_backward(*operands.tensors(), *others)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_transformations(upstream)
        saved = ctx.saved_tensors
        operands = Operands.of_tensors(saved[:COUNT_OF_TENSORS], ctx.starts)
        parameter, positive, has_negative, kept, products, *state = saved[COUNT_OF_TENSORS:]
        problem, inputs = Problem(operands, *ctx.settings), (*operands.rows, parameter)
        with torch.no_grad():
            if ctx.gradients is not None:
                found, ctx.gradients = ctx.gradients, None  # used up: a second backward pass finds them anew
                gradients = scaled(found, problem.communicator.all_reduce(upstream))
                gradients = [cast_gradient(grad, value) for grad, value in zip(gradients, inputs, strict=True)]
            else:
                all_saved = Saved(problem, positive, has_negative, tuple(state), kept, products)
                gradients = backward(all_saved, upstream, ctx.needs_input_grad[:5])
        if torch.is_grad_enabled():
            sources = [value for value in (*inputs, upstream) if value is not None]
            gradients = [None if grad is None else _OnlyOnce.apply(grad, *sources) for grad in gradients]  # type: ignore[no-untyped-call]
        return *gradients, None, None


# torch.compile sees two operators, and does not look into them. Its caches on disk know them by name and arguments
# alone: an operator whose outputs change needs another name.

_BATCH = (
    "Tensor x, Tensor y, Tensor? negatives_x, Tensor? negatives_y, "
    "Tensor? ids, Tensor? negative_ids_x, Tensor? negative_ids_y, Tensor? parameter"
)
_SETTINGS = "str objective, float[] numbers, str reduction, float[] weights, int[] tile_size, bool[] needs_grad"
COUNT_OF_INPUTS = 8


class _Described:
    """What the arguments of an operator describe."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        *batch, self.parameter, name, numbers, reduction, (of_x, of_y), tile_size, self.needs_grad = arguments
        self.tile_size: tuple[int, int] = tuple(tile_size)
        self.batch = Batch(*batch)
        self.objective = Objective.registry[name].from_numbers(numbers, self.parameter)
        self.total = Total(reduction, (of_x, of_y))
        # In the order of the gradients.
        self.inputs = *self.batch.embeddings, self.parameter

    def problem(self) -> Problem:
        operands = measure_norms(self.batch, self.tile_size[0])
        return Problem(operands, self.objective, self.total, self.tile_size, SingleProcess())


@torch.library.custom_op(
    "crossmodal_losses::tiled_forward", mutates_args=(), schema=f"({_BATCH}, {_SETTINGS}) -> Tensor[]"
)
def _tiled_operator(*arguments: Any) -> list[Tensor]:
    """The loss, the positives, the gradients (empty if not found), the products (empty if not kept), and the state."""
    described = _Described(arguments)
    loss, saved, gradients = forward(described.problem(), described.needs_grad)
    found = [loss.new_empty(0) if value is None else value for value in (*(gradients or [None] * 5), saved.products)]
    return [loss, saved.positive, *found, *saved.state]


@_tiled_operator.register_fake
def _(*arguments: Any) -> list[Tensor]:
    described = _Described(arguments)
    batch, aggregation, reduction = described.batch, described.objective.aggregation, described.total.reduction
    x, given = batch.x, [part for part in batch.embeddings if part is not None]
    B, dtype = x.shape[0], computation_dtype(*given)  # not len(x), which makes a constant of a dynamic size
    directions = Directions.of(described.objective, described.total)
    k = len(directions.weights)
    values = x.new_empty(1, 1, dtype=dtype)
    parts = aggregation.tile_state(Tile(values, values, False), 1, 0, values[0], values)
    state = [x.new_empty(k, B, dtype=part.dtype) for part in parts]
    loss = x.new_empty((B,) if reduction == "none" else (), dtype=dtype)
    found = aggregation.one_pass and reduction != "none"
    gradients = [
        x.new_empty(value.shape if found and needed and value is not None else 0, dtype=dtype)
        for value, needed in zip(described.inputs, described.needs_grad, strict=True)
    ]
    settings = aggregation, directions, reduction, batch.embeddings, described.tile_size
    products = x.new_empty(entries_to_keep(*settings) if any(described.needs_grad) else 0, dtype=dtype)
    return [loss, x.new_empty(B, dtype=dtype), *gradients, products, *state]


@torch.library.custom_op(
    "crossmodal_losses::tiled_backward",
    mutates_args=(),
    schema=f"({_BATCH}, {_SETTINGS}, Tensor positive, Tensor products, Tensor[] state, Tensor upstream) -> Tensor[]",
)
def _backward_operator(*arguments: Any) -> list[Tensor]:
    """The gradients of the embeddings and of the parameter; empty where they are not needed."""
    *described_by, positive, products, state, upstream = arguments
    described = _Described(described_by)
    problem, positive, has_negative = all_gather_columns(described.problem(), positive)
    saved = Saved(problem, positive, has_negative, tuple(state), None, products if len(products) else None)
    gradients = backward(saved, upstream, described.needs_grad)
    return [positive.new_empty(0) if grad is None else grad for grad in gradients]


@_backward_operator.register_fake
def _(*arguments: Any) -> list[Tensor]:
    *described_by, positive, _, _, _ = arguments
    described = _Described(described_by)
    inputs = zip(described.inputs, described.needs_grad, strict=True)
    return [
        value.new_empty(value.shape) if needed and value is not None else positive.new_empty(0)
        for value, needed in inputs
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, name, numbers, reduction, weights, tile_size, ctx.needs_grad = inputs
    ctx.settings = name, numbers, reduction, weights, tile_size
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx: Any, upstream: list[Tensor | None]) -> tuple[Any, ...]:
    grad_loss, *grad_others = upstream
    if any(grad is not None for grad in grad_others):
        raise RuntimeError(SECOND_DERIVATIVE)
    tensors, (positive, *found) = ctx.saved_tensors[:COUNT_OF_INPUTS], ctx.saved_tensors[COUNT_OF_INPUTS:]
    found, products, state = found[:5], found[5], found[6:]
    inputs = *tensors[:4], tensors[-1]
    if any(grad.numel() for grad in found):
        gradients = [
            None if value is None else (grad * grad_loss).to(value.dtype)
            for grad, value in zip(found, inputs, strict=True)
        ]
    else:
        gradients = torch.ops.crossmodal_losses.tiled_backward(
            *tensors, *ctx.settings, ctx.needs_grad, positive, products, state, grad_loss
        )
    *gradients, of_parameter = [
        grad if needed else None for grad, needed in zip(gradients, ctx.needs_grad, strict=True)
    ]
    return *gradients, None, None, None, of_parameter, *[None] * (len(ctx.settings) + 1)


def _refuse(_ctx: Any, *_upstream: Any) -> None:
    raise RuntimeError(SECOND_DERIVATIVE)


_tiled_operator.register_autograd(_differentiate, setup_context=_save)
_backward_operator.register_autograd(_refuse)
