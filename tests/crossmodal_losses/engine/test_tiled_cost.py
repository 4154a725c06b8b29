"""The costs of a loss: products, memory, waiting for the device."""

from typing import Any

import pytest
import torch
from comparisons import Largest, dense, each_loss, each_reduction, gradients, normal_pair
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from crossmodal_losses import LOSSES
from crossmodal_losses.checks import REDUCTIONS
from crossmodal_losses.engine import dispatch, tiles
from crossmodal_losses.engine.communication import SingleProcess
from crossmodal_losses.engine.dense import FEWEST_TO_GATHER
from crossmodal_losses.engine.operands import measure_norms
from crossmodal_losses.engine.tiles import Problem


@each_loss
@each_reduction
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_a_tile_a_gradient_or_a_few_statistics(name: str, reduction: Any, dtype: torch.dtype) -> None:
    B, D, t = 700, 6, 32
    for ids in (None, torch.arange(B) // 2):
        x, y = normal_pair(11, B, D, dtype)
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


@each_loss
@pytest.mark.parametrize("B", [FEWEST_TO_GATHER - 1, FEWEST_TO_GATHER])
def test_the_dense_form_costs_three_products_or_gathers_rows(name: str, B: int) -> None:
    x, y = normal_pair(12, B, 16)
    loss = LOSSES[name](tile_size=B)
    gathers = loss.objective.aggregation.selects and B == FEWEST_TO_GATHER
    assert count_products(lambda: loss(x, y).backward(), B, 16) == (1 if gathers else 3)


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
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nothing_waits_for_a_gpu(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that pretend to be on one and hold no values, whatever asks for a value fails."""
    monkeypatch.setattr(tiles, "HAS_TRITON", False)  # kernels need values
    with FakeTensorMode():
        x, y = (torch.empty(50, 8, device="cuda", dtype=dtype) for _ in range(2))
        with pytest.raises(DataDependentOutputException):
            float(x.sum())
        objective = LOSSES[name]().objective
        for ids in (None, torch.empty(50, device="cuda", dtype=torch.int64)):
            for reduction in REDUCTIONS:
                problem = Problem(measure_norms(x, y, 16), ids, objective, reduction, 16, SingleProcess())
                loss, saved, _ = tiles.forward(problem, (True, True))
                gx, gy, _ = tiles.backward(saved, torch.empty_like(loss), (True, True, False))
                assert gx is not None
                assert gy is not None
                assert gx.device.type == gy.device.type == "cuda"
                assert gx.dtype == gy.dtype == dtype


@each_loss
def test_without_a_tile_size_small_batches_are_dense_and_large_ones_tiled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of S up to a batch size, tiles from the next one on; the same gradients on both sides."""
    monkeypatch.setattr(dispatch, "LARGEST_DENSE", 20)
    monkeypatch.setattr(dispatch, "LARGEST_DENSE_OF_TWO_PASSES", 20)
    monkeypatch.setattr(dispatch, "TILE", {"cpu": 8})
    for B in (20, 21):
        x, y = normal_pair(13, B, 5)
        loss = LOSSES[name]()
        with Largest() as seen:
            found = gradients(loss(x, y), (x, y))
        assert (seen.entries >= B * B) == (B == 20)
        torch.testing.assert_close(found, gradients(dense(loss, x, y), (x, y)), rtol=1e-9, atol=1e-10)


def test_limits_depend_on_the_aggregation_and_the_device() -> None:
    one_pass, two_passes = (LOSSES[name]().objective.aggregation for name in ("triplet_sum", "nt_xent"))
    assert dispatch.largest_dense(one_pass) < dispatch.largest_dense(two_passes)
    assert dispatch.largest_tile(torch.device("cpu")) < dispatch.largest_tile(torch.device("cuda"))
    assert dispatch.largest_tile(torch.device("mps")) == dispatch.largest_tile(torch.device("cpu"))
