"""A loss in tiles under autograd (partial, repeated and second derivatives) and under torch.compile."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparisons import assert_same_loss, each_loss, each_reduction, gradients, learning_loss, normal_batch, normal_pair
from torch import Tensor

from crossmodal_losses import LOSSES, NTXent, PairLoss
from crossmodal_losses.checks import Batch

each_tile_size = pytest.mark.parametrize("tile_size", [4, None])


@each_loss
@each_reduction
@each_tile_size
def test_partial_requires_grad(name: str, reduction: Any, tile_size: int | None) -> None:
    x, y = normal_pair(1, 9, 4)
    loss = LOSSES[name](reduction=reduction, tile_size=tile_size)
    gx, gy = gradients(loss(x, y), (x, y))
    assert torch.equal(gradients(loss(x, y.detach()), (x,))[0], gx)
    assert torch.equal(gradients(loss(x.detach(), y), (y,))[0], gy)
    assert not loss(x.detach(), y.detach()).requires_grad


@each_loss
@each_tile_size
def test_backward_twice(name: str, tile_size: int | None) -> None:
    x, y = normal_pair(2, 9, 4)
    value = LOSSES[name](tile_size=tile_size)(x, y)
    first = torch.autograd.grad(value, (x, y), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(2 * value, (x, y))
    torch.testing.assert_close(first, tuple(kept), rtol=0, atol=0)
    torch.testing.assert_close(second, tuple(2 * g for g in kept))


@each_loss
@each_tile_size
def test_an_input_changed_in_place_before_backward_is_an_error(name: str, tile_size: int | None) -> None:
    x, y = normal_pair(2, 9, 4)
    z = x * 1
    value = LOSSES[name](tile_size=tile_size)(z, y)
    z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def has_one_derivative(value: Tensor, leaf: Tensor) -> None:
    """The first one may have a graph, which a gradient penalty elsewhere needs."""
    (expected,) = torch.autograd.grad(value, leaf, retain_graph=True)
    (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
    torch.testing.assert_close(grad, expected)
    with pytest.raises(RuntimeError, match="expected one derivative of a loss in tiles, got a second"):
        grad.sum().backward()


@each_loss
def test_a_second_derivative_is_refused_in_words(name: str) -> None:
    x, y = normal_pair(4, 9, 4)
    has_one_derivative(LOSSES[name](tile_size=4)(x, y), x)
    if name == "nt_xent":
        loss = NTXent(learn_temperature=True, tile_size=4)
        has_one_derivative(loss(x.detach(), y.detach()), loss.exponent_logit)


@each_loss
def test_what_is_kept_for_the_backward_pass_is_autograds(name: str) -> None:
    """It can be offloaded by hooks, and is gone after the backward pass although the loss is still there."""
    packed: list[int] = []

    def pack(value: Tensor) -> Tensor:
        packed.append(value.numel())
        return value

    for tile_size in (None, 16):
        x, y = normal_pair(20, 50, 4)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            value = LOSSES[name](tile_size=tile_size)(x, y)
        value.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            value.backward()
    assert 50 * 4 in packed
    # All of S, but where an index of each anchor is enough.
    assert (50 * 50 in packed) == (not LOSSES[name]().objective.aggregation.selects)


# Under torch.compile.


@each_loss
@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_graph_breaks(name: str, reduction: Any) -> None:
    torch._dynamo.reset()
    loss = learning_loss(name, tile_size=4, reduction=reduction)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ids in (None, torch.arange(9) // 2):
        x, y = normal_pair(15, 9, 6, torch.float32)
        leaves = (x, y, *loss.parameters())
        expected = loss(x, y, ids)
        assert_same_loss(compiled(x, y, ids), expected, leaves, {}, {})
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, y, ids), expected)
        one_sided = gradients(compiled(x, y.detach(), ids), (x,))
        torch.testing.assert_close(one_sided, gradients(loss(x, y.detach(), ids), (x,)))


@each_loss
def test_the_compiler_sees_a_correct_operator(name: str) -> None:
    objective, ids = LOSSES[name]().objective, torch.arange(9) // 2
    settings = objective.name(), objective.numbers(), "mean", [1.0, 1.0], [4, 4]
    pairs, wide = normal_batch(16, 9, 0, 0, 4)[:2], normal_batch(16, 9, 5, 3, 4)[:4]
    for batch in (Batch(*pairs), Batch(*pairs, ids=ids), Batch(*wide, ids, negative_ids_x=ids[:5])):
        arguments = (*batch, None, *settings, [value is not None for value in (*batch.embeddings, None)])
        # Not its test of all outputs' gradients at once: those of the gradients are second derivatives, and refused.
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.crossmodal_losses.tiled_forward.default, arguments, test_utils=checks)
        has_one_derivative(torch.ops.crossmodal_losses.tiled_forward(*arguments)[0], batch.x)


LEARNING = NTXent(learn_temperature=True, tile_size=4)
INDUCTOR: dict[str, Callable[[], tuple[PairLoss, Callable[[Tensor], Tensor], Any]]] = {
    "a float32 temperature and float64 embeddings": lambda: (LEARNING, lambda x: x, {}),
    "transposed embeddings": lambda: (LOSSES["triplet_max"](tile_size=4), lambda x: x.sin().T.contiguous().T, {}),
    "dynamic shapes": lambda: (LEARNING, lambda x: x, {"dynamic": True}),
    "dynamic shapes, at once": lambda: (NTXent(learn_temperature=True), lambda x: x, {"dynamic": True}),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", INDUCTOR)
def test_the_default_compiler(case: str) -> None:
    torch._dynamo.reset()
    loss, of, options = INDUCTOR[case]()

    def whole(x: Tensor, y: Tensor) -> Tensor:
        return loss(of(x), of(y))

    compiled = torch.compile(whole, fullgraph=True, **options)
    for B in (9, 11):
        x, y = normal_pair(15, B, 6)
        leaves = (x, y, *loss.parameters())
        assert_same_loss(compiled(x, y), whole(x, y), leaves, {}, {"rtol": 1e-6, "atol": 1e-7})
