"""A loss from embeddings as a citizen of autograd: partial, repeated, second and batched derivatives."""

from typing import Any

import pytest
import torch
from comparisons import dense, each_loss, each_reduction, gradients, normal_pair
from torch import Tensor

from crossmodal_losses import LOSSES, NTXent, cosine_similarity, nt_xent


@each_loss
@each_reduction
def test_gradcheck_through_tiles(name: str, reduction: Any) -> None:
    x, y = normal_pair(3, 5, 3)
    loss = LOSSES[name](reduction=reduction, tile_size=2)
    assert torch.autograd.gradcheck(loss, (x, y))


@each_loss
@each_reduction
def test_partial_requires_grad(name: str, reduction: Any) -> None:
    x, y = normal_pair(1, 9, 4)
    loss = LOSSES[name](reduction=reduction, tile_size=4)
    gx, gy = gradients(loss(x, y), (x, y))
    torch.testing.assert_close(gradients(loss(x, y.detach()), (x,))[0], gx)
    torch.testing.assert_close(gradients(loss(x.detach(), y), (y,))[0], gy)
    assert not loss(x.detach(), y.detach()).requires_grad


@each_loss
@pytest.mark.parametrize("tile_size", [4, None])
def test_backward_twice(name: str, tile_size: int | None) -> None:
    x, y = normal_pair(2, 9, 4)
    value = LOSSES[name](tile_size=tile_size)(x, y)
    first = torch.autograd.grad(value, (x, y), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(2 * value, (x, y))
    torch.testing.assert_close(first, tuple(kept), rtol=0, atol=0)
    torch.testing.assert_close(second, tuple(2 * g for g in kept))


@each_loss
@pytest.mark.parametrize("tile_size", [4, None])
def test_an_input_changed_in_place_before_backward_is_an_error(name: str, tile_size: int | None) -> None:
    x, y = normal_pair(2, 9, 4)
    z = x * 1
    value = LOSSES[name](tile_size=tile_size)(z, y)
    z.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@each_loss
def test_a_second_derivative_is_refused_in_words(name: str) -> None:
    x, y = normal_pair(4, 9, 4)
    (gx,) = torch.autograd.grad(LOSSES[name](tile_size=4)(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="expected one derivative of a loss in tiles, got a second"):
        gx.sum().backward()


def test_a_second_derivative_in_the_temperature_is_refused_too() -> None:
    x, y = (e.detach() for e in normal_pair(4, 9, 4))
    loss = NTXent(learn_temperature=True, tile_size=4)
    (slope,) = torch.autograd.grad(loss(x, y), loss.exponent_logit, create_graph=True)
    with pytest.raises(RuntimeError, match="expected one derivative of a loss in tiles, got a second"):
        slope.backward()


@each_loss
def test_derivatives_where_y_is_made_from_x(name: str) -> None:
    """The graph from x to y is walked once, not once inside the loss and once around it."""
    x, W = (e.detach() for e in normal_pair(18, 5, 5))
    x.requires_grad_()
    settings: dict[str, Any] = {"learn_temperature": True} if name == "nt_xent" else {}
    loss = LOSSES[name](**settings).double()
    leaves = (x, *loss.parameters())
    for y in (x, (x @ W).tanh()):
        expected = torch.autograd.grad(dense(loss, x, y), leaves, create_graph=True)
        found = torch.autograd.grad(loss(x, y), leaves, create_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
        second, expected_second = (
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves, retain_graph=True)
            for first in (found, expected)
        )
        torch.testing.assert_close(second, expected_second, rtol=1e-8, atol=1e-9)


@each_loss
def test_many_gradients_at_once(name: str) -> None:
    """As torch.autograd.functional asks for them, of the loss of every anchor."""
    x, y = normal_pair(19, 6, 4)
    loss = LOSSES[name](reduction="none")
    one_by_one = torch.autograd.functional.jacobian(lambda x: loss(x, y), x)
    at_once = torch.autograd.functional.jacobian(lambda x: loss(x, y), x, vectorize=True)
    torch.testing.assert_close(at_once, one_by_one)


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
    assert 50 * 50 in packed


@each_loss
def test_a_first_derivative_with_create_graph(name: str) -> None:
    """As a gradient penalty elsewhere in the graph wants it."""
    x, y = normal_pair(4, 9, 4)
    loss = LOSSES[name](tile_size=4)
    expected = torch.autograd.grad(loss(x, y), (x, y))
    torch.testing.assert_close(torch.autograd.grad(loss(x, y), (x, y), create_graph=True), expected)


@each_loss
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode still uses it
def test_modules_under_torch_func(name: str) -> None:
    x, y = (e.detach() for e in normal_pair(14, 5, 4))
    loss = LOSSES[name]()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, y), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x, y), expected)
    stacked = torch.stack([x, 2 * x.flip(0)])
    torch.testing.assert_close(torch.func.vmap(loss, (0, None))(stacked, y), torch.stack([loss(s, y) for s in stacked]))
    directional = torch.func.jvp(lambda x: loss(x, y), (x,), (y,))[1]
    torch.testing.assert_close(directional, (expected * y).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, y)
        tangent = torch.autograd.forward_ad.unpack_dual(loss(dual, y)).tangent
    torch.testing.assert_close(tangent, directional)


def test_nt_xent_of_similarities_is_what_a_second_derivative_is_referred_to() -> None:
    x, y = normal_pair(17, 6, 4)
    (gx,) = torch.autograd.grad(nt_xent(cosine_similarity(x, y)), x, create_graph=True)
    gx.square().sum().backward()
    assert x.grad is not None
