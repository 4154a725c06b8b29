"""Derivatives of every order, torch.func, torch.compile."""

from typing import Any

import pytest
import torch
from comparisons import assert_same_loss, each_loss, learning_loss, normal_pair
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import oracle
from strategies import losses, settings_of
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import crossmodal_losses
from crossmodal_losses import LOSSES, cosine_similarity, diagnose, nt_xent

STEP = 1e-6  # of gradcheck's central differences


def smooth_around(name: str, S: Tensor, settings: dict[str, Any]) -> bool:
    """Return whether the oracle has no kinks, ties and jumps within a few STEPs of S: its gradient does not jump."""
    generator = torch.Generator().manual_seed(0)
    gradients: list[Tensor] = []
    for _ in range(6):
        near = (S + 8 * STEP * (2 * torch.rand(S.shape, generator=generator, dtype=S.dtype) - 1)).requires_grad_()
        gradients += torch.autograd.grad(oracle(name, near, **settings).sum(), near)
    return all(torch.allclose(g, gradients[0], rtol=1e-2, atol=1e-2) for g in gradients)


@st.composite
def generic_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    return normal_pair(draw(st.integers(0, 2**31)), draw(st.integers(1, 4)), draw(st.integers(2, 4)))


@given(data=st.data(), name=losses, pair=generic_pairs())
def test_first_and_second_derivatives(data: st.DataObject, name: str, pair: tuple[Tensor, Tensor]) -> None:
    settings = data.draw(settings_of(name))
    assume(settings.get("temperature", 1) >= 0.07)  # colder: central differences have too few digits left
    x, y = pair
    assume(smooth_around(name, cosine_similarity(x, y).detach(), settings))
    loss = LOSSES[name](**settings)
    assert gradcheck(loss, (x, y), eps=STEP, atol=1e-5)
    assert gradgradcheck(loss, (x, y), eps=STEP, atol=1e-4)


def test_zero_rows_have_zero_derivatives_of_every_order() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    y = torch.eye(3, 2, dtype=torch.float64)
    (first,) = torch.autograd.grad(nt_xent(cosine_similarity(x, y)), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(first, torch.zeros_like(x))
    assert torch.equal(second, torch.zeros_like(x))


@each_loss
@pytest.mark.parametrize("of_similarities", [True, False])
@pytest.mark.parametrize("ids", [None, torch.tensor([0, 1, 1, 2])])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode still uses it
def test_under_torch_func(name: str, of_similarities: bool, ids: Tensor | None) -> None:
    """The function of S, and the module as a function of x."""
    generator = torch.Generator().manual_seed(2)
    batch = torch.rand(3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    tangent, y = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)
    function, module = getattr(crossmodal_losses, name), LOSSES[name]()

    def loss(value: Tensor) -> Any:
        return function(value, ids=ids) if of_similarities else module(value, y, ids)

    values = torch.stack([loss(value) for value in batch])
    (gradient,) = torch.autograd.grad(values.sum(), batch)
    batch = batch.detach()
    torch.testing.assert_close(torch.func.vmap(loss)(batch), values)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch), gradient)
    directional = torch.func.jvp(loss, (batch[0],), (tangent,))[1]
    torch.testing.assert_close(directional, (gradient[0] * tangent).sum())
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(loss(forward_ad.make_dual(batch[0], tangent))).tangent
    torch.testing.assert_close(found, directional)
    if of_similarities:
        assert torch.func.hessian(loss)(batch[0]).shape == (4, 4, 4, 4)


@each_loss
@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
def test_compiles_without_graph_breaks(name: str) -> None:
    torch._dynamo.reset()
    loss = learning_loss(name)
    compiled = torch.compile(loss, fullgraph=True)
    # The compiler's code for a CPU handles 16 numbers at a time: fewer pairs would not try all of it.
    for ids in (None, torch.arange(33) // 2):
        x, y = normal_pair(3, 33, 40, torch.float32)
        leaves = (x, y, *loss.parameters())
        assert_same_loss(compiled(x, y, ids), loss(x, y, ids), leaves, {}, {"rtol": 1e-4, "atol": 1e-6})


@pytest.mark.filterwarnings("default")
def test_the_compiled_gradient_with_a_fixed_temperature() -> None:
    """Of ``S - S.diagonal()[:, None]`` the default compiler returns wrong gradients on a CPU, from 17 pairs on."""
    torch._dynamo.reset()
    x, y = normal_pair(6, 33, 40, torch.float32)
    loss = LOSSES["nt_xent"]()
    compiled = torch.compile(loss, fullgraph=True)
    assert_same_loss(compiled(x, y), loss(x, y), (x, y), {}, {"rtol": 1e-4, "atol": 1e-6})


@pytest.mark.filterwarnings("default")
def test_the_settings_of_a_compiled_function_may_change() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(crossmodal_losses.triplet_sum, fullgraph=True, backend="aot_eager")
    S = torch.rand(4, 4, generator=torch.Generator().manual_seed(4))
    for margin in (0.1, 0.2, 0.4):
        torch.testing.assert_close(compiled(S, margin=margin), crossmodal_losses.triplet_sum(S, margin=margin))
    compiled_diagnosis = torch.compile(diagnose, fullgraph=True, backend="aot_eager")
    assert compiled_diagnosis(S, S).positive == diagnose(S, S).positive


@pytest.mark.filterwarnings("default")
def test_compiles_without_gradients_too() -> None:
    torch._dynamo.reset()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(5))
    for name, module in LOSSES.items():
        compiled = torch.compile(module(), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, x.flip(0)), module()(x, x.flip(0)), msg=name)
