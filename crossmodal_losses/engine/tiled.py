"""A loss over tiles as an autograd function, and as an operator for torch.compile."""

from typing import Any

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.engine.communication import SingleProcess
from crossmodal_losses.engine.compat import is_batched, is_transformed
from crossmodal_losses.engine.objective import Objective
from crossmodal_losses.engine.operands import Operands, measure_norms
from crossmodal_losses.engine.tiles import Problem, Saved, backward, cast_gradient, forward, scaled
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


def tiled_loss(
    x: Tensor, y: Tensor, ids: Tensor | None, objective: Objective, reduction: Reduction, tile_size: int
) -> Tensor:
    """Compute the loss of x and y, ``[B, D]``, from tiles of at most tile_size rows and columns of S."""
    if torch.compiler.is_compiling():
        inputs = x, y, ids, objective.aggregation.parameter
        settings = objective.name(), objective.numbers(), reduction, tile_size
        needs_grad = [torch.is_grad_enabled() and value.requires_grad for value in (x, y)]
        loss: Tensor = torch.ops.crossmodal_losses.tiled(*inputs, *settings, needs_grad)[0]
        return loss
    refuse_transformations(x, y, objective.aggregation.parameter)
    problem = Problem(measure_norms(x, y, tile_size), ids, objective, reduction, tile_size, SingleProcess())
    return loss_of_problem(problem)


def loss_of_problem(problem: Problem) -> Tensor:
    """Compute the loss of a batch, of which each process passes its local rows."""
    x, y, parameter = problem.operands.x.rows, problem.operands.y.rows, problem.objective.aggregation.parameter
    return _Tiled.apply(x, y, parameter, problem, torch.is_grad_enabled())  # type: ignore[no-any-return, no-untyped-call]


class _OnlyOnce(torch.autograd.Function):
    """A gradient as it is, which depends on its sources, but not differentiably."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> None:
        raise RuntimeError(SECOND_DERIVATIVE)


class _Tiled(torch.autograd.Function):
    """x, y ``[B, D]`` -> the loss. All tensors of the problem are saved by autograd, none by the context itself."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, parameter: Tensor | None, problem: Problem, grad_enabled: bool
    ) -> Tensor:
        needs_grad = [grad_enabled and need for need in ctx.needs_input_grad[:2]]
        loss, saved, ctx.gradients = forward(problem, needs_grad)
        operands, ids, *ctx.settings = saved.problem
        ctx.start = operands.start
        ctx.save_for_backward(*operands.tensors, ids, parameter, saved.positive, saved.kept, *saved.state)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_transformations(upstream)
        x, y, inv_norm, scales, scale_y, ids, parameter, positive, kept, *state = ctx.saved_tensors
        problem = Problem(Operands(x, y, inv_norm, scales, scale_y, ctx.start), ids, *ctx.settings)
        gradients: tuple[Tensor | None, ...]
        with torch.no_grad():
            if ctx.gradients is not None:
                found, ctx.gradients = ctx.gradients, None  # used up: a second backward pass finds them anew
                grad_x, grad_y = scaled(found, problem.communicator.all_reduce(upstream))
                gradients = cast_gradient(grad_x, x), cast_gradient(grad_y, y), None
            else:
                gradients = backward(Saved(problem, positive, tuple(state), kept), upstream, ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            sources = [value for value in (x, y, parameter, upstream) if value is not None]
            gradients = tuple(None if grad is None else _OnlyOnce.apply(grad, *sources) for grad in gradients)  # type: ignore[no-untyped-call]
        return *gradients, None, None


# torch.compile sees two operators, and does not look into them.

_INPUTS = "Tensor x, Tensor y, Tensor? ids, Tensor? parameter"
_SETTINGS = "str objective, float[] numbers, str reduction, int tile_size"


def _problem(described: list[Any]) -> Problem:
    """The problem that the inputs and settings of an operator describe."""
    x, y, ids, parameter, name, numbers, reduction, tile_size = described
    objective = Objective.registry[name].from_numbers(numbers, parameter)
    return Problem(measure_norms(x, y, tile_size), ids, objective, reduction, tile_size, SingleProcess())


@torch.library.custom_op(
    "crossmodal_losses::tiled", mutates_args=(), schema=f"({_INPUTS}, {_SETTINGS}, bool[] needs_grad) -> Tensor[]"
)
def _tiled_operator(*arguments: Any) -> list[Tensor]:
    """The loss, the positives, the gradients of x and y (empty if not found), and the state."""
    *described, needs_grad = arguments
    loss, saved, gradients = forward(_problem(described), needs_grad)
    found = [loss.new_empty(0) if grad is None else grad for grad in gradients or (None, None)]
    return [loss, saved.positive, *found, *saved.state]


@_tiled_operator.register_fake
def _(*arguments: Any) -> list[Tensor]:
    x, y, _, parameter, name, numbers, reduction, _, needs_grad = arguments
    aggregation = Objective.registry[name].from_numbers(numbers, parameter).aggregation
    B, dtype = x.shape[0], computation_dtype(x, y)  # not len(x), which makes a constant of a dynamic size
    tile = x.new_empty(1, 1, dtype=dtype)
    state = [x.new_empty(2, B, dtype=part.dtype) for part in aggregation.tile_state(tile, 1, 0, tile[0], tile)]
    loss = x.new_empty((B,) if reduction == "none" else (), dtype=dtype)
    found = aggregation.one_pass and reduction != "none"
    gradients = [x.new_empty(x.shape if found and needed else 0, dtype=dtype) for needed in needs_grad]
    return [loss, x.new_empty(B, dtype=dtype), *gradients, *state]


@torch.library.custom_op(
    "crossmodal_losses::tiled_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, {_SETTINGS}, bool[] needs_grad, Tensor positive, Tensor[] state, Tensor upstream) -> Tensor[]",
)
def _backward_operator(*arguments: Any) -> list[Tensor]:
    """The gradients of x, y and the parameter; empty where they are not needed."""
    *described, needs_grad, positive, state, upstream = arguments
    gradients = backward(Saved(_problem(described), positive, tuple(state), None), upstream, needs_grad)
    return [positive.new_empty(0) if grad is None else grad for grad in gradients]


@_backward_operator.register_fake
def _(*arguments: Any) -> list[Tensor]:
    x, y, _, parameter, *_, needs_grad, positive, _, _ = arguments
    inputs = zip((x, y, parameter), needs_grad, strict=True)
    return [value.new_empty(value.shape) if needed else positive.new_empty(0) for value, needed in inputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, y, ids, parameter, *ctx.settings, ctx.needs_grad = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, y, ids, parameter, *output[1:])


def _differentiate(ctx: Any, upstream: list[Tensor | None]) -> tuple[Any, ...]:
    grad_loss, *grad_others = upstream
    if any(grad is not None for grad in grad_others):
        raise RuntimeError(SECOND_DERIVATIVE)
    x, y, ids, parameter, positive, grad_x, grad_y, *state = ctx.saved_tensors
    needs_grad = [*ctx.needs_grad, parameter is not None and ctx.needs_input_grad[3]]
    grad_parameter = None
    if grad_x.numel() or grad_y.numel():
        grad_x, grad_y = (grad_x * grad_loss).to(x.dtype), (grad_y * grad_loss).to(y.dtype)
    else:
        grad_x, grad_y, grad_parameter = torch.ops.crossmodal_losses.tiled_backward(
            x, y, ids, parameter, *ctx.settings, needs_grad, positive, state, grad_loss
        )
    gradients = zip((grad_x, grad_y, grad_parameter), needs_grad, strict=True)
    grad_x, grad_y, grad_parameter = (grad if needed else None for grad, needed in gradients)
    return grad_x, grad_y, None, grad_parameter, *[None] * (len(ctx.settings) + 1)


def _refuse(_ctx: Any, *_upstream: Any) -> None:
    raise RuntimeError(SECOND_DERIVATIVE)


_tiled_operator.register_autograd(_differentiate, setup_context=_save)
_backward_operator.register_autograd(_refuse)
