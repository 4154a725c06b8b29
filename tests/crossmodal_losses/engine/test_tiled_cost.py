"""What a loss costs: products, memory, waiting for the device."""

from typing import Any

import pytest
import torch
from comparisons import dense, each_loss, each_reduction, gradients, normal_pair
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from crossmodal_losses import LOSSES
from crossmodal_losses.checks import REDUCTIONS
from crossmodal_losses.engine import operands as sides
from crossmodal_losses.engine import products, tiled
from crossmodal_losses.engine.one_process import OneProcess
from crossmodal_losses.losses import base


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
    monkeypatch.setattr(base, "LARGEST_DENSE", 20)
    monkeypatch.setattr(base, "LARGEST_DENSE_OF_TWO_PASSES", 20)
    monkeypatch.setattr(base, "TILE", {"cpu": 8})
    taken: list[int] = []

    def spy(*args: Any) -> Tensor:
        taken.append(args[-1])
        return tiled.tiled(*args)

    monkeypatch.setattr(base, "tiled", spy)
    for B, expected in ((20, []), (21, [8])):
        x, y = normal_pair(13, B, 5)
        loss = LOSSES[name]()
        torch.testing.assert_close(
            gradients(loss(x, y), (x, y)), gradients(dense(loss, x, y), (x, y)), rtol=1e-9, atol=1e-10
        )
        assert taken == expected


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
                both = sides.measured(x, y, 16)
                done = tiled.forward(both, ids, rule, reduction, 16, (True, True), OneProcess())
                wanted = (True, True, False)
                upstream = torch.empty_like(done.loss)
                gx, gy, _ = tiled.backward(
                    both, ids, rule, reduction, 16, wanted, done.positive, done.state, None, upstream, OneProcess()
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
