"""Half precision costs only the rounding of the inputs; autocast cannot lower anything."""

import pytest
import torch
from comparisons import dense, each_loss
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import crossmodal_losses
from crossmodal_losses import LOSSES, cosine_similarity

each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])


def pairs(seed: int, B: int, D: int) -> tuple[Tensor, Tensor]:
    """Embeddings as a model under training has them: pairs more alike than others, all of them leaning one way."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(B, D, generator=generator) + 1
    x, y = (shared + 0.7 * torch.randn(B, D, generator=generator) for _ in range(2))
    return x, y


@each_loss
@each_dtype
@given(seed=st.integers(0, 2**31), B=st.integers(2, 40), D=st.integers(2, 64))
def test_error_against_float64_is_that_of_float32(name: str, dtype: torch.dtype, seed: int, B: int, D: int) -> None:
    """On the same (rounded) inputs: computing adds nothing. The gradient is rounded once, to the dtype of the input."""
    x, y = (e.to(dtype).requires_grad_() for e in pairs(seed, B, D))
    exact_x, exact_y = (e.detach().double().requires_grad_() for e in (x, y))
    loss = LOSSES[name]()
    value, exact = loss(x, y), loss(exact_x, exact_y)
    # A hardest negative that float32 cannot tell from the next takes the gradient or leaves it to that one.
    S = cosine_similarity(exact_x, exact_y).detach().fill_diagonal_(-2)
    assume(B == 2 or all(float((-T.topk(2, 1).values.diff(dim=1)).min()) > 1e-4 for T in (S, S.T)))
    assert value.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=2e-6)

    gradients = torch.autograd.grad(value, (x, y))
    exact_gradients = torch.autograd.grad(exact, (exact_x, exact_y))
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        assert gradient.dtype == dtype
        scale = float(expected.abs().max()) + 1e-3
        torch.testing.assert_close(gradient.double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-4 * scale)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile_size", [5, None])
def test_candidates_without_a_partner_in_half_precision(name: str, dtype: torch.dtype, tile_size: int | None) -> None:
    """A queue is often kept in half precision, with pairs in the same or in float32."""
    x, y = pairs(3, 30, 40)
    for of_pairs in (dtype, torch.float32):
        parts = [x[:12].to(of_pairs), y[:12].to(of_pairs), x[12:25].to(dtype), y[12:].to(dtype)]
        exact = [part.double().requires_grad_() for part in parts]
        held = [part.requires_grad_() for part in parts]
        loss = LOSSES[name](tile_size=tile_size)
        value, expected = (loss(a, b, negatives_x=c, negatives_y=d) for a, b, c, d in (held, exact))
        torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=2e-6)
        for found, of_exact in zip(torch.autograd.grad(value, held), torch.autograd.grad(expected, exact), strict=True):
            scale = float(of_exact.abs().max()) + 1e-3
            torch.testing.assert_close(found.double(), of_exact, rtol=torch.finfo(found.dtype).eps, atol=2e-4 * scale)


@each_loss
@each_dtype
def test_function_of_half_similarities(name: str, dtype: torch.dtype) -> None:
    S = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    exact = S.detach().double().requires_grad_()
    loss = getattr(crossmodal_losses, name)
    torch.testing.assert_close(loss(S).double(), loss(exact), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss(S), S)
    (expected,) = torch.autograd.grad(loss(exact), exact)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


@each_loss
@each_dtype
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile_size", [5, None])
def test_autocast_changes_nothing(name: str, dtype: torch.dtype, autocast: torch.dtype, tile_size: int | None) -> None:
    x, y = (e.to(dtype).requires_grad_() for e in pairs(0, 12, 16))
    loss = LOSSES[name](tile_size=tile_size)
    expected = loss(x, y)
    expected_gradients = torch.autograd.grad(expected, (x, y))
    with torch.autocast("cpu", dtype=autocast):
        value = loss(x, y)
        gradients = torch.autograd.grad(value, (x, y))  # here too, although torch advises against it
    torch.testing.assert_close((value, *gradients), (expected, *expected_gradients), rtol=0, atol=0)


@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
@pytest.mark.parametrize("side", [0, 1])
def test_autocast_changes_no_gradient_of_a_compiled_similarity(side: int) -> None:
    """Where one side needs a gradient, and the other is a queue or a frozen encoder's."""
    held = [rows.requires_grad_(k == side) for k, rows in enumerate(pairs(1, 12, 8))]

    def energy(x: Tensor, y: Tensor) -> Tensor:
        return cosine_similarity(x, y).square().sum()

    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = torch.compile(energy, fullgraph=True, backend="aot_eager")(*held)
    (found,), (expected,) = (torch.autograd.grad(v, held[side]) for v in (value, energy(*held)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("side", [0, 1])
def test_autocast_changes_no_gradient_of_what_is_compiled(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the compiler, of the program that it is given."""
    held = [rows.requires_grad_(k == side) for k, rows in enumerate(pairs(1, 12, 8))]
    (expected,) = torch.autograd.grad(cosine_similarity(*held).square().sum(), held[side])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(cosine_similarity(*held).square().sum(), held[side])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@each_loss
def test_mixed_dtypes_take_the_wider_one(name: str) -> None:
    x, y = pairs(0, 9, 8)
    loss = LOSSES[name](tile_size=4)
    value = loss(x, y.double())
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, dense(loss, x, y.double()))
    assert loss(x.half(), y.bfloat16()).dtype == torch.float32
    assert cosine_similarity(x.half(), y.bfloat16()).dtype == torch.float32
    assert cosine_similarity(x.half(), y.double()).dtype == torch.float64
    assert torch.equal(cosine_similarity(x.half(), y), cosine_similarity(x.half().float(), y))
