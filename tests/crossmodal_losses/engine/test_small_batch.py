"""The form of small batches on CUDA does what all of S in float64 does: on the device, or as triton interprets it."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import dense, each_loss, exact_pair, learning_loss
from torch import Tensor

from crossmodal_losses import LOSSES, NTXent, PairLoss, Sigmoid, SupCon, TripletMax, TripletWeighted
from crossmodal_losses.checks import REDUCTIONS, Batch
from crossmodal_losses.engine import dispatch, small_batch

pytest.importorskip("triton")

import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from crossmodal_losses.engine import formulas_triton, small_batch_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels run on a CPU, where new memory holds NaN, and -inf and inf are numbers as on the device."""
    if DEVICE == "cuda":
        yield
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for module in (tl, tl.standard, formulas_triton, small_batch_triton):
        for name, function in list(vars(module).items()):
            if isinstance(function, JITFunction):
                interpreted = InterpretedFunction(function.fn)
                # What a kernel calls finds triton's language prepared; preparing it at every call takes all the time.
                inner = module is formulas_triton or name in ("_anchors", "anchor_losses")
                monkeypatch.setattr(module, name, interpreted.rewrite() if inner else interpreted)
    monkeypatch.setattr(dispatch, "has_small_form", lambda batch, objective, parameter: objective.formula is not None)
    torch.use_deterministic_algorithms(True)
    with np.errstate(all="ignore"):
        yield
    torch.use_deterministic_algorithms(False)


def pair(B: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + B)
    x = torch.randn(B, 7, generator=generator)
    y = x + torch.randn(B, 7, generator=generator)
    return x.to(DEVICE, dtype).requires_grad_(), y.to(DEVICE, dtype).requires_grad_()


def ids_of(B: int) -> Tensor:
    return torch.tensor([5, -1, 2**40, 5, 7, 7], device=DEVICE).repeat(B // 6 + 1)[:B]


def gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype, device=value.device).reshape(value.shape)
    return list(torch.autograd.grad(value, inputs, upstream, materialize_grads=True))


def assert_equals_float64(loss: PairLoss, x: Tensor, y: Tensor, ids: Tensor | None = None) -> None:
    """Compare value and gradients, of the loss's parameters too, with all of S in float64 from the same inputs."""
    parameters = list(loss.parameters())
    wide = [value.detach().double().requires_grad_() for value in (x, y)]
    value, expected = loss(x, y, ids), dense(loss, wide[0], wide[1], ids)
    torch.testing.assert_close(value, expected.float(), rtol=5e-6, atol=1e-6)
    found, of_expected = gradients(value, [x, y, *parameters]), gradients(expected, [*wide, *parameters])
    for grad, wanted in zip(found, of_expected, strict=True):
        rounding = torch.finfo(grad.dtype).eps
        scale = float(wanted.abs().max()) + 1e-3
        torch.testing.assert_close(grad.double(), wanted.double(), rtol=rounding, atol=(1e-5 + rounding) * scale)


@pytest.mark.parametrize("ids", [False, True], ids=["no ids", "ids"])
@each_loss
def test_values_and_gradients(name: str, ids: bool) -> None:
    """Every reduction in every dtype, of 3 pairs with ids or without; other sizes."""
    combinations = [*itertools.product((3,), REDUCTIONS, FLOATS)][ids::2]
    for B, reduction, dtype in (*combinations, (17, "none", torch.float32), (1, "mean", torch.float32)):
        loss = LOSSES[name](reduction=reduction)
        loss.direction_weights = (0.5, 2.0) if name != "sigmoid" else (1.0, 1.0)
        assert_equals_float64(loss.to(DEVICE), *pair(B, dtype), ids_of(B) if ids else None)


def test_two_parts_and_a_whole_block() -> None:
    """33 rows are two parts; 128 dimensions and more are loaded in whole blocks, and one block does not divide 1025."""
    assert_equals_float64(NTXent(temperature=0.05), *pair(33), ids_of(33))
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 1025, generator=generator).to(DEVICE).requires_grad_() for _ in range(2))
    assert_equals_float64(TripletMax(), x, y)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_settings(reduction: Any) -> None:
    """Cold and learned temperatures, a learned bias, a constant polynomial, one direction."""
    x, y = pair(5)
    for loss in (
        NTXent(temperature=0.005, reduction=reduction, direction_weights=(0, 1)),
        NTXent(learn_temperature=True, reduction=reduction, direction_weights=(1, 0)),
        Sigmoid(learn_temperature=True, learn_bias=True, reduction=reduction),
        TripletWeighted(positive_coefficients=(1.0,), negative_coefficients=(0.1, 1.0), reduction=reduction),
    ):
        assert_equals_float64(loss.to(DEVICE), x, y, ids_of(5) if reduction == "none" else None)
    assert_equals_float64(SupCon(learn_temperature=True, reduction=reduction).to(DEVICE), x, y, ids_of(5))


@each_loss
def test_rows_of_any_size(name: str) -> None:
    """Zeros, subnormal numbers and the largest ones, on either side."""
    x, y = (rows.detach() for rows in pair(6))
    x *= torch.tensor([1.0, 0.0, 1e-38, 1.0, 1.0, 1e25], device=DEVICE)[:, None]
    x[3] *= 3e38 / x[3].abs().max()  # above 2^127
    y *= torch.tensor([0.0, 1.0, 1e37, 1.0, 1e-38, 1.0], device=DEVICE)[:, None]
    wide = [rows.double().requires_grad_() for rows in (x, y)]
    rows = [rows.requires_grad_() for rows in (x, y)]
    value, expected = LOSSES[name]()(*rows), dense(LOSSES[name](), wide[0], wide[1])
    torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=1e-6)
    for grad, wanted, row in zip(gradients(value, rows), gradients(expected, wide), rows, strict=True):
        length = row.detach().double().norm(dim=1, keepdim=True)  # a gradient has that to the power of -1
        of_numbers = (grad.double() * length)[wanted.abs().amax(1) < 1e37]
        torch.testing.assert_close(of_numbers, (wanted * length)[wanted.abs().amax(1) < 1e37], rtol=1e-4, atol=1e-5)
        assert not bool(grad[length[:, 0] == 0].any())


@each_loss
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_inf_give_nan_everywhere(name: str, bad: float) -> None:
    for reduction, B in (("mean", 5), ("none", 2), ("mean", 1)):
        x, y = pair(B, torch.float16)
        inputs = [x, y, *(loss := learning_loss(name, reduction=reduction).to(DEVICE)).parameters()]
        y.data[-1, 3] = bad
        value = loss(x, y)
        assert bool(value.isnan().all())
        assert all(bool(grad.isnan().all()) for grad in gradients(value, inputs))


@pytest.mark.parametrize("name", ["triplet_sum", "triplet_max", "triplet_weighted_mined"])
def test_ties_and_hinges_at_0(name: str) -> None:
    """Similarities are exact: of equal hardest negatives the first takes the gradient; a hinge at 0 has none."""
    for margin, ids in ((0.25, None), (0.0, ids_of(16))):
        x, y = (rows.to(DEVICE, torch.float32).requires_grad_() for rows in exact_pair(3, 16))
        assert_equals_float64(LOSSES[name](margin=margin), x, y, ids)


def test_inputs_of_any_kind() -> None:
    """Of two dtypes, not contiguous, one that needs no gradient; ids of one byte; an upstream that is expanded."""
    loss = NTXent(reduction="none")
    x, y = pair(8)[0], pair(7)[1].detach().to(torch.bfloat16).T
    assert_equals_float64(loss, x[:7], y.T.requires_grad_(), ids_of(7) // 2**38)
    x, y = pair(7)
    loss(x, y.detach(), ids_of(7).to(torch.int8)).sum().backward()
    of_x = x.grad
    (expected,) = torch.autograd.grad(dense(loss, x, y.detach(), ids_of(7).to(torch.int8)).sum(), x)
    torch.testing.assert_close(of_x, expected)


@each_loss
def test_further_derivatives_are_those_of_the_reference(name: str) -> None:
    x, y = pair(5)
    inputs = [x, y, *(loss := learning_loss(name).to(DEVICE)).parameters()]

    def second(value: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        return torch.autograd.grad(
            torch.stack([grad.square().sum() for grad in grads]).sum(), inputs, materialize_grads=True
        )

    torch.testing.assert_close(second(loss(x, y)), second(dense(loss, x, y)), rtol=1e-4, atol=1e-4)


def test_autocast_lowers_nothing() -> None:
    x, y = pair(9)
    value = NTXent()(x, y)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(NTXent()(x, y), value)


def test_twice_backward_gives_the_same() -> None:
    for reduction in ("mean", "none"):
        x, y = pair(9)
        value = NTXent(reduction=reduction, learn_temperature=True).to(DEVICE)(x, y).sum()
        first, second = (torch.autograd.grad(value, (x, y), retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(loss: PairLoss, B: int = 128, dtype: torch.dtype = torch.float32, **others: Tensor) -> bool:
        batch = Batch(*(torch.empty(B, 4, dtype=dtype, device="meta") for _ in range(2)), **others)
        objective = loss.objective
        return small_batch.has_small_form(batch, objective, objective.aggregation.parameter)

    assert not fits(NTXent())
    monkeypatch.setattr(small_batch, "is_on_cuda", lambda value: value.is_meta)
    assert all(fits(LOSSES[name]()) for name in LOSSES)
    assert fits(NTXent(), dtype=torch.float16)
    assert not fits(NTXent(), 129)
    assert not fits(NTXent(), dtype=torch.float64)
    assert not fits(NTXent(), negatives_x=torch.empty(2, 4, device="meta"))
    assert not fits(NTXent(), negatives_y=torch.empty(2, 4, device="meta"))
    assert not fits(NTXent(learn_temperature=True))  # its parameter is on a CPU
    for name in ("triplet_weighted", "triplet_weighted_mined"):
        assert not fits(LOSSES[name](positive_coefficients=(1.0, 1.0, 1.0, 1.0)))  # of degree 3
    monkeypatch.setattr(small_batch, "HAS_TRITON", False)
    assert not fits(NTXent())
