"""The loss and the gradients over tiles are those of the oracle and of the reference, for any input."""

import math
from typing import Any

import pytest
import torch
from comparisons import (
    assert_same_loss,
    dense,
    dense_of_batch,
    each_loss,
    exact_pair,
    learning_loss,
    leaves_of,
    normal_pair,
    of_batch,
    oracle_of_batch,
)
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, losses, reductions, settings_of
from torch import Tensor

from crossmodal_losses import LOSSES, NTXent
from crossmodal_losses.checks import Batch
from crossmodal_losses.engine import operands, tiles


@given(data=st.data(), name=losses, reduction=reductions, t=st.integers(1, 4))
def test_every_engine_equals_the_loop(data: st.DataObject, name: str, reduction: Any, t: int) -> None:
    """With ties, duplicates, zero rows and hinges at exactly 0: similarities are multiples of 1/4 in any order."""
    batch, settings = data.draw(batches(t, exact_pair)), data.draw(settings_of(name))
    expected, leaves = oracle_of_batch(name, batch, reduction, **settings), leaves_of(batch)
    close, close_gradients = {"rtol": 1e-10, "atol": 1e-10}, {"rtol": 1e-9, "atol": 1e-10}
    for tile_size in (t, None):
        loss = LOSSES[name](reduction=reduction, tile_size=tile_size, **settings)
        assert_same_loss(of_batch(loss, batch), expected, leaves, close, close_gradients, again=True)
    assert_same_loss(dense_of_batch(loss, batch), expected, leaves, close, close_gradients)


@given(data=st.data(), name=losses, reduction=reductions, t=st.integers(1, 5), D=st.integers(1, 9))
def test_tiles_and_dense_equal_the_reference(data: st.DataObject, name: str, reduction: Any, t: int, D: int) -> None:
    batch, settings = data.draw(batches(t, lambda seed, B: normal_pair(seed, B, D))), data.draw(settings_of(name))
    close, close_gradients = {"rtol": 1e-10, "atol": 1e-10}, {"rtol": 1e-8, "atol": 1e-9}
    for tile_size in (t, 100):
        loss = LOSSES[name](reduction=reduction, tile_size=tile_size, **settings)
        assert_same_loss(of_batch(loss, batch), dense_of_batch(loss, batch), leaves_of(batch), close, close_gradients)


@each_loss
@pytest.mark.parametrize("tile_size", [2, None])
@pytest.mark.parametrize("B", [1, 5])
@pytest.mark.parametrize("others", [None, [7, 7, 7], [7, 7, 8], "unknown"])
def test_anchors_without_a_negative_but_perhaps_with_others(
    name: str, tile_size: int | None, B: int, others: Any
) -> None:
    """All pairs have the id 7; the other candidates of x have these ids, none, or there are none."""
    x, y = (rows.detach() for rows in normal_pair(1, B + 3, 4))
    negative_ids = torch.tensor(others) if isinstance(others, list) else None
    pairs = x[:B].clone().requires_grad_(), y[:B].clone().requires_grad_()
    batch = Batch(
        *pairs, None, None if others is None else y[B:].requires_grad_(), torch.full((B,), 7), None, negative_ids
    )
    loss, leaves = LOSSES[name](tile_size=tile_size), leaves_of(batch)
    expected, value = oracle_of_batch(name, batch, "mean"), of_batch(loss, batch)
    assert_same_loss(value, expected, leaves, {}, {"rtol": 1e-9, "atol": 1e-10})
    if B == 1 and others is None:
        alone = LOSSES[name](tile_size=tile_size, reduction="none")(*pairs)
        assert alone.tolist() == [0]
    torch.testing.assert_close(dense_of_batch(loss, batch), expected)


@each_loss
def test_only_equality_of_ids_counts(name: str) -> None:
    """Also of ids that would be equal as floats."""
    x, y = normal_pair(22, 6, 4)
    far, near = torch.tensor([2**60, -3, 2**60 + 1, -3, 5, 2**60]), torch.tensor([0, 1, 2, 1, 3, 0])
    for loss in (LOSSES[name](tile_size=2), LOSSES[name]()):
        assert torch.equal(loss(x, y, far), loss(x, y, near))
        assert torch.equal(dense(loss, x, y, far), dense(loss, x, y, near))


@pytest.mark.parametrize("tile_size", [4, 100])
@pytest.mark.parametrize("start", [0.011, 0.07, 0.9])
def test_the_learned_temperature(start: float, tile_size: int) -> None:
    loss = NTXent(temperature=start, learn_temperature=True, tile_size=tile_size).double()
    x, y = normal_pair(0, 11, 5)
    for ids in (None, torch.arange(11) // 2):
        leaves = (x, y, loss.exponent_logit)
        close_gradients = {"rtol": 1e-9, "atol": 1e-10}
        assert_same_loss(loss(x, y, ids), dense(loss, x, y, ids), leaves, {}, close_gradients)
        (alone,) = torch.autograd.grad(loss(x.detach(), y.detach(), ids), loss.exponent_logit)
        torch.testing.assert_close(alone, torch.autograd.grad(dense(loss, x, y, ids), loss.exponent_logit)[0])


@pytest.mark.parametrize("temperature", [0.005, 0.024, 0.026, 1.0])
@pytest.mark.parametrize("tile_size", [3, 100])
def test_extreme_temperatures_in_float32(temperature: float, tile_size: int) -> None:
    """On both sides of where a running maximum takes over from a fixed shift; similarities from -1 to 1."""
    angle = torch.linspace(0, math.pi, 8, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    for y in (x, x.flip(0)):
        loss = NTXent(temperature=temperature, tile_size=tile_size)
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        c, d = x.float().requires_grad_(), y.float().requires_grad_()
        value, expected = loss(c, d), dense(loss, a, b)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        found, exact_gradients = torch.autograd.grad(value, (c, d)), torch.autograd.grad(expected, (a, b))
        for g, e in zip(found, exact_gradients, strict=True):
            torch.testing.assert_close(g.double(), e, rtol=1e-3, atol=1e-5 / temperature)


@each_loss
def test_a_loss_scale_does_not_overflow_half_precision(name: str) -> None:
    """Gradients are rounded after they are multiplied with what comes from above."""
    x, y = normal_pair(21, 96, 16)
    x, y = (30 * x.detach()).half().requires_grad_(), (30 * y.detach()).half().requires_grad_()
    exact = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    loss = LOSSES[name](tile_size=32)
    found = torch.autograd.grad(loss(x, y) * 2.0**10, (x, y))
    expected = torch.autograd.grad(dense(loss, *exact) * 2.0**10, exact)
    for g, e in zip(found, expected, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=2e-3, atol=1e-5 * float(e.abs().max()))


@pytest.mark.parametrize("tile_size", [1, None])
def test_a_loss_scale_and_a_cold_temperature(tile_size: int | None) -> None:
    """exp(-2 / t), inverted and scaled, is beyond float32."""
    x = torch.tensor([[1.0, 0.0], [1.0, 1e-3]], requires_grad=True)
    loss = NTXent(temperature=0.025, tile_size=tile_size)
    (found,) = torch.autograd.grad(loss(x, -x.detach()) * 2.0**16, x)
    (expected,) = torch.autograd.grad(dense(loss, x, -x.detach()) * 2.0**16, x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@each_loss
@pytest.mark.parametrize("tile_size", [3, None])
@pytest.mark.parametrize("value_in", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_give_nan(name: str, value_in: float, tile_size: int | None) -> None:
    for ids in (None, torch.tensor([0, 0, 1, 2, 3, 3, 4])):
        x, y = normal_pair(5, 7, 4)
        with torch.no_grad():
            x[2, 1] = value_in
        anchors = LOSSES[name](tile_size=tile_size, reduction="none")(x, y, ids)
        assert anchors.isnan().all()
        value = LOSSES[name](tile_size=tile_size)(x, y, ids)
        assert value.isnan()
        assert all(gradient.isnan().all() for gradient in torch.autograd.grad(value, (x, y)))
        for side in ("negatives_x", "negatives_y"):
            x, y = normal_pair(5, 7, 4)
            more = torch.eye(4)[:, [0, 2, 1, 3]].index_fill(0, torch.tensor([2]), value_in).requires_grad_()
            value = LOSSES[name](tile_size=tile_size)(x, y, ids, **{side: more})
            assert value.isnan()
            assert all(gradient.isnan().all() for gradient in torch.autograd.grad(value, (x, y, more)))
    lonely = torch.full((1, 2), value_in)
    assert LOSSES[name](tile_size=tile_size)(lonely, lonely).isnan()


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tile_size", [3, None])
def test_rows_of_zeros_and_of_extreme_length(name: str, dtype: torch.dtype, tile_size: int | None) -> None:
    """Squares of these lengths under- or overflow."""
    x, y = (e.detach() for e in normal_pair(6, 8, 4, dtype))
    x[1], y[5] = 0, 0
    loss = LOSSES[name](tile_size=tile_size)
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    expected = dense(loss, a, b)
    expected_gradients = torch.autograd.grad(expected, (a, b))
    rtol = max(1e-4, torch.finfo(dtype).eps)
    for scale in (1.0, 2.0**-100, 2.0**100):
        c = (x * scale).requires_grad_()
        value = loss(c, b)
        torch.testing.assert_close(value, expected)
        of_c, of_b = torch.autograd.grad(value, (c, b))
        torch.testing.assert_close((of_c * scale, of_b), expected_gradients, rtol=rtol, atol=1e-6)
        assert not of_c[1].any()
        assert not of_b[5].any()
        assert torch.equal(c, x * scale)
        assert torch.equal(b, y)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_costs_the_rounding_of_the_result(name: str, dtype: torch.dtype) -> None:
    x, y = normal_pair(7, 60, 24, dtype)
    exact = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    loss = LOSSES[name](tile_size=16)
    value, expected = loss(x, y), dense(loss, *exact)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    for g, e in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(expected, exact), strict=True):
        assert g.dtype == dtype
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        torch.testing.assert_close(
            g.double(), e, rtol=2 * torch.finfo(dtype).eps, atol=1e-5 * float(e.abs().max()) + smallest
        )


# Half precision, a scale of x, an upstream gradient, with which gradients of similarities leave the range of float16.
HALF_PRODUCTS = [
    *((torch.bfloat16, scale, 1.0) for scale in (1.0, 2.0**-100, 2.0**100)),
    *((torch.float16, scale, upstream) for scale, upstream in ((1.0, 1.0), (2.0**9, 2.0**20), (2.0**-12, 2.0**-24))),
]


@each_loss
@pytest.mark.parametrize("dtype, scale, upstream", HALF_PRODUCTS)
def test_products_of_half_precision(
    name: str, dtype: torch.dtype, scale: float, upstream: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA rows in half precision are multiplied into float32; here such a product is computed in float32."""

    def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
        assert a.dtype == b.dtype == dtype
        total.addmm_(a.float(), b.float())

    def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
        assert a.dtype == b.dtype == dtype
        torch.mm(a.float(), b.float(), out=out)

    monkeypatch.setattr(operands, "multiplies_into_float32", lambda rows: True)
    monkeypatch.setattr(tiles, "multiply", multiply)
    monkeypatch.setattr(tiles, "accumulate", accumulate)
    x, y = normal_pair(9, 50, 16)
    x = (x.detach() * scale).to(dtype).requires_grad_()
    y = (y.detach() * (1 if dtype == torch.bfloat16 else scale)).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    loss = learning_loss(name, tile_size=16)
    value, expected = loss(x, y), dense(loss, *exact)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(value * upstream, (x, y, *loss.parameters()))
    for g, e in zip(found, torch.autograd.grad(expected * upstream, (*exact, *loss.parameters())), strict=True):
        error = 0.02 if dtype == torch.bfloat16 else 0.002
        torch.testing.assert_close(g.double(), e.double(), rtol=0, atol=error * float(e.abs().max()) + 2.0**-25)


@each_loss
def test_the_same_call_gives_the_same_bits(name: str) -> None:
    x, y = normal_pair(10, 300, 40, torch.float32)
    ids = torch.arange(300) // 2
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loss = LOSSES[name](tile_size=64)
        runs = [(value := loss(x, y, ids), *torch.autograd.grad(value, (x, y))) for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
