"""In tiles or at once: the same loss and the same gradients, at the promised cost."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import ORACLES
from strategies import exact_embeddings, ids_for, losses, reductions, settings_of
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from crossmodal_losses import LOSSES, NTXent, PairLoss, cosine_similarity, nt_xent, products, sides, tiled
from crossmodal_losses.checks import REDUCTIONS
from crossmodal_losses.losses import pair_loss

each_loss = pytest.mark.parametrize("name", sorted(LOSSES))
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@st.composite
def tiled_sizes(draw: st.DrawFn) -> tuple[int, int]:
    """A tile size t, and a batch size around its edges."""
    t = draw(st.integers(1, 5))
    return t, draw(st.sampled_from([1, 2, max(1, t - 1), t, t + 1, 2 * t, 2 * t + 1, 3 * t + 1]))


def dense(loss: PairLoss, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
    return loss.of_similarities(cosine_similarity(x, y), ids=ids)


def normal_pair(seed: int, B: int, D: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    y = x + torch.randn(B, D, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def gradients(value: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For an upstream gradient that differs from anchor to anchor."""
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return torch.autograd.grad(value, inputs, upstream)


@given(data=st.data(), name=losses, reduction=reductions, sizes=tiled_sizes())
def test_tiles_equal_the_loop(data: st.DataObject, name: str, reduction: Any, sizes: tuple[int, int]) -> None:
    """With ties, duplicates, zero rows and hinges at exactly 0: similarities are multiples of 1/4 in any order."""
    t, B = sizes
    x, y = data.draw(exact_embeddings(B))
    x.requires_grad_()
    y.requires_grad_()
    ids = data.draw(ids_for(B))
    settings = data.draw(settings_of(name))
    loss = LOSSES[name](reduction=reduction, tile_size=t, **settings)
    anchors = ORACLES[name](cosine_similarity(x, y), None if ids is None else ids.tolist(), **settings)
    expected = {"mean": anchors.mean(), "sum": anchors.sum(), "none": anchors}[reduction]
    value = loss(x, y, ids)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(value, (x, y)), gradients(expected, (x, y)), rtol=1e-9, atol=1e-10)


@given(
    data=st.data(), name=losses, reduction=reductions, sizes=tiled_sizes(), D=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_tiles_equal_dense(
    data: st.DataObject, name: str, reduction: Any, sizes: tuple[int, int], D: int, seed: int
) -> None:
    t, B = sizes
    x, y = normal_pair(seed, B, D)
    ids = data.draw(ids_for(B))
    loss = LOSSES[name](reduction=reduction, tile_size=t, **data.draw(settings_of(name)))
    value, expected = loss(x, y, ids), dense(loss, x, y, ids)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(value, (x, y)), gradients(expected, (x, y)), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in sorted(LOSSES) if LOSSES[name]().rule.fold.selects])
@pytest.mark.parametrize("B", [150, 300])  # torch's own max up to 128 x 128 entries, arithmetic beyond
def test_of_equal_hardest_negatives_the_lowest_index_takes_the_gradient(name: str, B: int) -> None:
    """y[0] and x[0] are anchors whose negatives 1 ... B - 1 are all the same."""
    x, y = torch.zeros(B, 3, dtype=torch.float64), torch.zeros(B, 3, dtype=torch.float64)
    x[:, 0], y[:, 0] = 1, 1
    x[0], y[0] = torch.tensor([1.0, 1, 1]), torch.tensor([1.0, 1, -1])
    x.requires_grad_()
    y.requires_grad_()
    for tile_size in (B, 140, 37):
        anchors = LOSSES[name](reduction="none", tile_size=tile_size)(x, y)
        gx, gy = torch.autograd.grad(anchors[0], (x, y))
        assert gx.abs().sum(1).nonzero().flatten().tolist() == [0, 1]
        assert gy.abs().sum(1).nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("tile_size", [4, 100])
@pytest.mark.parametrize("start", [0.011, 0.07, 0.9])
def test_the_learned_temperature(start: float, tile_size: int) -> None:
    loss = NTXent(temperature=start, learn_temperature=True, tile_size=tile_size).double()
    x, y = normal_pair(0, 11, 5)
    for ids in (None, torch.arange(11) // 2):
        leaves = (x, y, loss.exponent_logit)
        value, expected = loss(x, y, ids), dense(loss, x, y, ids)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients(value, leaves), gradients(expected, leaves), rtol=1e-9, atol=1e-10)
        (alone,) = torch.autograd.grad(loss(x.detach(), y.detach(), ids), loss.exponent_logit)
        torch.testing.assert_close(alone, torch.autograd.grad(dense(loss, x, y, ids), loss.exponent_logit)[0])


@pytest.mark.parametrize("temperature", [0.005, 0.024, 0.026, 1.0])
@pytest.mark.parametrize("tile_size", [3, 100])
def test_extreme_temperatures_in_float32(temperature: float, tile_size: int) -> None:
    """On both sides of where a running maximum takes over from a fixed shift; similarities from -1 to 1."""
    angle = torch.linspace(0, math.pi, 8, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    for y in (x, x.flip(0)):
        exact = NTXent(temperature=temperature)
        loss = NTXent(temperature=temperature, tile_size=tile_size)
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        c, d = x.float().requires_grad_(), y.float().requires_grad_()
        value, expected = loss(c, d), dense(exact, a, b)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        found, wanted = torch.autograd.grad(value, (c, d)), torch.autograd.grad(expected, (a, b))
        for g, e in zip(found, wanted, strict=True):
            torch.testing.assert_close(g.double(), e, rtol=1e-3, atol=1e-5 / temperature)


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
def test_a_first_derivative_with_create_graph(name: str) -> None:
    """As a gradient penalty elsewhere in the graph wants it."""
    x, y = normal_pair(4, 9, 4)
    loss = LOSSES[name](tile_size=4)
    expected = torch.autograd.grad(loss(x, y), (x, y))
    torch.testing.assert_close(torch.autograd.grad(loss(x, y), (x, y), create_graph=True), expected)


@each_loss
@pytest.mark.parametrize("tile_size", [3, None])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_give_nan(name: str, poison: float, tile_size: int | None) -> None:
    for ids in (None, torch.tensor([0, 0, 1, 2, 3, 3, 4])):
        x, y = normal_pair(5, 7, 4)
        with torch.no_grad():
            x[2, 1] = poison
        anchors = LOSSES[name](tile_size=tile_size, reduction="none")(x, y, ids)
        assert anchors.isnan().all()
        value = LOSSES[name](tile_size=tile_size)(x, y, ids)
        assert value.isnan()
        gx, gy = torch.autograd.grad(value, (x, y))
        assert gx.isnan().all()
        assert gy.isnan().all()
    lonely = torch.full((1, 2), poison)
    assert LOSSES[name](tile_size=tile_size)(lonely, lonely).isnan()


@each_loss
@pytest.mark.parametrize("tile_size", [3, None])
def test_rows_of_zeros_and_of_extreme_length(name: str, tile_size: int | None) -> None:
    x, y = (e.detach() for e in normal_pair(6, 8, 4, torch.float32))
    x[1] = 0
    y[5] = 0
    loss = LOSSES[name](tile_size=tile_size)
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = loss(a, b)
    expected = dense(loss, a, b)
    torch.testing.assert_close(value, expected)
    plain = torch.autograd.grad(value, (a, b))
    torch.testing.assert_close(plain, torch.autograd.grad(expected, (a, b)), rtol=1e-4, atol=1e-6)
    assert torch.equal(plain[0][1], torch.zeros(4))
    for scale in (2.0**-100, 2.0**100):
        c = (x * scale).requires_grad_()
        before = c.detach().clone(), b.detach().clone()
        value = loss(c, b)
        torch.testing.assert_close(value, expected)
        (gradient,) = torch.autograd.grad(value, c)
        torch.testing.assert_close(gradient * scale, plain[0], rtol=1e-4, atol=1e-6)
        assert torch.equal(c, before[0])
        assert torch.equal(b, before[1])


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


@each_loss
def test_mixed_dtypes_take_the_wider_one(name: str) -> None:
    x, y = normal_pair(7, 9, 4)
    loss = LOSSES[name](tile_size=4)
    expected = loss(x.float(), y)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(expected, dense(loss, x.float(), y))
    assert loss(x.half(), y.bfloat16()).dtype == torch.float32


@each_loss
@pytest.mark.parametrize("tile_size", [5, None])
def test_autocast_changes_nothing(name: str, tile_size: int | None) -> None:
    x, y = normal_pair(8, 12, 6, torch.float32)
    loss = LOSSES[name](tile_size=tile_size)
    expected = loss(x, y)
    expected_gradients = torch.autograd.grad(expected, (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, y)
        found = torch.autograd.grad(value, (x, y))
    assert torch.equal(value, expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected_gradients, strict=True))


@each_loss
def test_bfloat16_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the platform multiplies bfloat16 rows into float32: here such a product is computed in float32."""

    def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
        assert a.dtype == b.dtype == torch.bfloat16
        total.addmm_(a.float(), b.float())

    def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
        assert a.dtype == b.dtype == torch.bfloat16
        torch.mm(a.float(), b.float(), out=out)

    monkeypatch.setattr(sides, "can_widen", lambda x, y: True)
    monkeypatch.setattr(tiled, "multiply", multiply)
    monkeypatch.setattr(tiled, "accumulate", accumulate)
    for scale in (1.0, 2.0**-100, 2.0**100):
        x, y = normal_pair(9, 50, 16)
        x, y = (x.detach() * scale).bfloat16().requires_grad_(), y.detach().bfloat16().requires_grad_()
        exact = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
        loss = LOSSES[name](tile_size=16)
        value, expected = loss(x, y), dense(loss, *exact)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        for g, e in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(expected, exact), strict=True):
            assert g.dtype == torch.bfloat16
            torch.testing.assert_close(g.double(), e, rtol=0, atol=0.02 * float(e.abs().max()))


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


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        self.entries = max([self.entries, *(value.numel() for value in made if isinstance(value, Tensor))])
        return result


@each_loss
@each_reduction
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_a_tile_a_gradient_or_a_few_statistics(name: str, reduction: Any, dtype: torch.dtype) -> None:
    B, D, t = 700, 6, 32
    for ids in (None, torch.arange(B) // 2):
        x, y = normal_pair(11, B, D, dtype)
        value = LOSSES[name](reduction=reduction, tile_size=t)(x, y)
        with Largest() as forward:
            value = LOSSES[name](reduction=reduction, tile_size=t)(x, y, ids)
        with Largest() as backward:
            value.sum().backward()
        for seen in (forward, backward):
            assert 0 < seen.entries <= max(t * t, B * D)
        long_x, long_y = normal_pair(11, 200, 100, dtype)
        with Largest() as forward, torch.no_grad():
            LOSSES[name](reduction=reduction, tile_size=8)(long_x, long_y, None if ids is None else ids[:200])
        assert forward.entries <= 8 * 100  # a block of rows, not a copy of all
    with Largest() as dense_one:
        dense(LOSSES[name](), x, y)
    assert dense_one.entries >= B * B


PRODUCTS = {"triplet_sum": 3, "triplet_max": 1, "triplet_weighted": 1, "triplet_weighted_mined": 1, "nt_xent": 4}


def count_products(call: Any, B: int, D: int) -> float:
    """The floating-point operations of a call, in units of one B x B x D product."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / (2 * B * B * D)


@each_loss
def test_costs_as_few_products_as_promised(name: str) -> None:
    B, D = 50, 16
    x, _ = normal_pair(12, B, D)
    y = (-x).detach().requires_grad_()  # every negative is violating
    loss = LOSSES[name](tile_size=16)
    assert count_products(lambda: loss(x, y).backward(), B, D) == PRODUCTS[name]
    with torch.no_grad():
        assert count_products(lambda: loss(x, y), B, D) == 1
    assert count_products(lambda: loss(x.detach(), y.detach()), B, D) == 1
    one_side = PRODUCTS[name] - (PRODUCTS[name] > 1)
    assert count_products(lambda: loss(x, y.detach()).backward(), B, D) == one_side
    each_anchor = LOSSES[name](tile_size=16, reduction="none")
    again = 4 if PRODUCTS[name] > 1 else 1
    assert count_products(lambda: each_anchor(x, y).sum().backward(), B, D) == again
    at_once = LOSSES[name](tile_size=B)
    most = 1 if at_once.rule.fold.selects and B >= 64 else 3
    assert count_products(lambda: at_once(x, y).backward(), B, D) == most


def test_tiles_without_a_violation_are_skipped() -> None:
    x = torch.eye(64, dtype=torch.float64).requires_grad_()
    y = torch.eye(64, dtype=torch.float64)
    y[:8, :8] = 1  # the positives of the first eight do not stand out
    y.requires_grad_()
    loss = LOSSES["triplet_sum"](tile_size=16)
    assert count_products(lambda: loss(x, y).backward(), 64, 64) == 1 + 2 / 16
    torch.testing.assert_close(
        torch.autograd.grad(loss(x, y), (x, y)), torch.autograd.grad(dense(loss, x, y), (x, y)), rtol=1e-9, atol=1e-12
    )


@each_loss
def test_what_None_picks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of S up to a batch size, tiles from the next one on; the same value and gradients on both sides."""
    monkeypatch.setattr(pair_loss, "LARGEST_DENSE", 20)
    monkeypatch.setattr(pair_loss, "LARGEST_DENSE_OF_TWO_PASSES", 20)
    monkeypatch.setattr(pair_loss, "TILE", {"cpu": 8})
    taken: list[int] = []

    def spy(*args: Any) -> Tensor:
        taken.append(args[-1])
        return tiled.tiled(*args)

    monkeypatch.setattr(pair_loss, "tiled", spy)
    for B, expected in ((20, []), (21, [8])):
        x, y = normal_pair(13, B, 5)
        loss = LOSSES[name]()
        torch.testing.assert_close(
            gradients(loss(x, y), (x, y)), gradients(dense(loss, x, y), (x, y)), rtol=1e-9, atol=1e-10
        )
        assert taken == expected


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


@each_loss
@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_graph_breaks(name: str, reduction: Any) -> None:
    torch._dynamo.reset()
    settings: dict[str, Any] = {"learn_temperature": True} if name == "nt_xent" else {}
    loss = LOSSES[name](tile_size=4, reduction=reduction, **settings)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ids in (None, torch.arange(9) // 2):
        x, y = normal_pair(15, 9, 6, torch.float32)
        leaves = (x, y, *loss.parameters())
        value, expected = compiled(x, y, ids), loss(x, y, ids)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients(value, leaves), gradients(expected, leaves))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, y, ids), expected)
        one_sided = gradients(compiled(x, y.detach(), ids), (x,))
        torch.testing.assert_close(one_sided, gradients(loss(x, y.detach(), ids), (x,)))


@each_loss
def test_the_compiler_sees_a_correct_operator(name: str) -> None:
    x, y = normal_pair(16, 9, 4)
    rule = LOSSES[name]().rule
    for ids in (None, torch.arange(9) // 2):
        arguments = (x, y, ids, None, rule.name(), rule.numbers(), "mean", 4, True, True)
        # Not its test of all outputs' gradients at once: those of the gradients are second derivatives, and refused.
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.crossmodal_losses.tiled.default, arguments, test_utils=checks)


@each_loss
def test_the_operators_refuse_a_second_derivative_too(name: str) -> None:
    x, y = normal_pair(16, 9, 4)
    rule = LOSSES[name]().rule
    value = torch.ops.crossmodal_losses.tiled(x, y, None, None, rule.name(), rule.numbers(), "mean", 4, True, True)[0]
    (gx,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="expected one derivative of a loss in tiles, got a second"):
        gx.sum().backward()


INDUCTOR: dict[str, Callable[[], tuple[PairLoss, Callable[[Tensor], Tensor], Any]]] = {
    "a float32 temperature and float64 embeddings": lambda: (
        NTXent(learn_temperature=True, tile_size=4),
        lambda x: x,
        {},
    ),
    "transposed embeddings": lambda: (LOSSES["triplet_max"](tile_size=4), lambda x: x.sin().T.contiguous().T, {}),
    "dynamic shapes": lambda: (NTXent(learn_temperature=True, tile_size=4), lambda x: x, {"dynamic": True}),
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
        value, expected = compiled(x, y), whole(x, y)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients(value, leaves), gradients(expected, leaves), rtol=1e-6, atol=1e-7)


@each_loss
def test_rules_survive_as_numbers(name: str) -> None:
    rule = LOSSES[name]().rule
    again = type(rule).from_numbers(rule.numbers(), None)
    assert again.numbers() == rule.numbers()


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nothing_waits_for_a_gpu(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that pretend to be on one and hold no values, whatever asks for a value fails."""
    monkeypatch.setattr(tiled, "HAS_TRITON", False)  # kernels need values
    with FakeTensorMode():
        x, y = (torch.empty(50, 8, device="cuda", dtype=dtype) for _ in range(2))
        with pytest.raises(DataDependentOutputException):
            float(x.sum())
        rule = LOSSES[name]().rule
        for ids in (None, torch.empty(50, device="cuda", dtype=torch.int64)):
            for reduction in REDUCTIONS:
                done = tiled.forward(x, y, ids, rule, reduction, 16, (True, True))
                wanted = (True, True, False)
                upstream = torch.empty_like(done.loss)
                gx, gy, _ = tiled.backward(
                    done.sides, ids, rule, reduction, 16, wanted, done.positive, done.state, upstream
                )
                assert gx is not None
                assert gy is not None
                assert gx.device.type == gy.device.type == "cuda"
                assert gx.dtype == gy.dtype == dtype


def test_cuda_takes_the_kernels_and_wide_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as tensors without values tell."""
    pytest.importorskip("triton")
    asked: list[Any] = []
    monkeypatch.setattr(torch, "addmm", lambda *args, out_dtype, out: asked.append(out_dtype))
    with FakeTensorMode():
        x = torch.empty(8, 4, device="cuda", dtype=torch.bfloat16)
        both = sides.measured(x, x, 4)
        assert both.x.block(slice(0, 4)).dtype == torch.bfloat16
        S = torch.empty(8, 8, device="cuda")
        products.multiply(x, x.T, out=S)
        products.accumulate(S, x, x.T)
        assert asked == [torch.float32]
        positive = torch.empty(8, device="cuda")
        epilogue = tiled.epilogue_of(both, None, LOSSES["triplet_max"]().rule.fold, positive)
        assert type(epilogue).__name__ == "Fused"
        in_double = tiled.epilogue_of(both, None, LOSSES["triplet_max"]().rule.fold, positive.double())
        assert type(in_double).__name__ == "Plain"


def test_nt_xent_of_similarities_is_what_a_second_derivative_is_referred_to() -> None:
    x, y = normal_pair(17, 6, 4)
    (gx,) = torch.autograd.grad(nt_xent(cosine_similarity(x, y)), x, create_graph=True)
    gx.square().sum().backward()
    assert x.grad is not None
