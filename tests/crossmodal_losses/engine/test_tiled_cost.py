"""The costs of a loss: products, and memory."""

from typing import Any

import pytest
import torch
from comparisons import Largest, dense, each_loss, each_reduction, gradients, normal_batch, normal_pair, of_batch
from torch.utils.flop_counter import FlopCounterMode

from crossmodal_losses import LOSSES
from crossmodal_losses.checks import Batch
from crossmodal_losses.engine import dispatch
from crossmodal_losses.engine.dense import FEWEST_TO_GATHER


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


PRODUCTS = {"triplet_sum": 3, "triplet_max": 1, "triplet_weighted": 1, "triplet_weighted_mined": 1}
PRODUCTS |= {"nt_xent": 4, "sup_con": 4, "sigmoid": 3}


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
@pytest.mark.parametrize("M, N", [(0, 30), (45, 0), (20, 70)])
def test_candidates_without_a_partner_cost_their_rectangles(name: str, M: int, N: int) -> None:
    """B x (B + N) + M x B; less where a direction has weight 0, and where the candidates need no gradient."""
    B, D = 50, 16
    x, _, negatives_x, negatives_y, *_ = normal_batch(12, B, M, N, D)
    y = (-x).detach().requires_grad_()  # every negative is violating
    ids = torch.arange(B), torch.arange(B, B + M), torch.arange(B + M, B + M + N)
    batch = Batch(x, y, negatives_x, negatives_y, *(ids if name == "sup_con" else ()))
    margin: dict[str, Any] = {"margin": 3.0} if name == "triplet_sum" else {}
    loss, rectangles = LOSSES[name](tile_size=16, **margin), (B * (B + N) + M * B) / B**2
    assert count_products(lambda: of_batch(loss, batch).backward(), B, D) == pytest.approx(PRODUCTS[name] * rectangles)
    with torch.no_grad():
        assert count_products(lambda: of_batch(loss, batch), B, D) == pytest.approx(rectangles)
    detached: list[Any] = [None if part is None else part.detach() for part in (negatives_x, negatives_y)]
    queue = Batch(*[x, y, *detached, *batch.all_ids])
    saved = (rectangles - 1) * (PRODUCTS[name] > 1)
    found = count_products(lambda: of_batch(loss, queue).backward(), B, D)
    assert found == pytest.approx(PRODUCTS[name] * rectangles - saved)
    if name == "sigmoid":
        return
    for weights, left in (((1, 0), 1 + N / B), ((0, 1), 1 + M / B)):
        one_direction = LOSSES[name](tile_size=16, direction_weights=weights, **margin)
        found = count_products(lambda loss=one_direction: of_batch(loss, batch).backward(), B, D)
        assert found == pytest.approx(PRODUCTS[name] * left), weights


@each_loss
@each_reduction
def test_memory_beside_candidates_without_a_partner(name: str, reduction: Any) -> None:
    B, D, t = 100, 6, 16
    for with_ids in (False, True):
        batch = normal_batch(11, B, 150, 700, D, torch.float32, with_ids=with_ids)
        with Largest() as seen:
            of_batch(LOSSES[name](reduction=reduction, tile_size=t), batch).sum().backward()
        assert 0 < seen.entries <= max(t * t, 700 * D)


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
def test_without_a_tile_size_small_batches_are_dense_and_large_ones_tiled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of S up to a batch size, tiles from the next one on; the same gradients on both sides."""
    monkeypatch.setattr(dispatch, "LARGEST_DENSE", 20)
    monkeypatch.setattr(dispatch, "LARGEST_DENSE_OF_TWO_PASSES", 20)
    monkeypatch.setattr(dispatch, "TILE", {"cpu": (8, 8)})
    for B in (20, 21):
        x, y = normal_pair(13, B, 5)
        loss = LOSSES[name]()
        with Largest() as seen:
            found = gradients(loss(x, y), (x, y))
        assert (seen.entries >= B * B) == (B == 20)
        torch.testing.assert_close(found, gradients(dense(loss, x, y), (x, y)), rtol=1e-9, atol=1e-10)


def test_limits_depend_on_the_aggregation_and_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    one_pass, two_passes = (LOSSES[name]().objective.aggregation for name in ("triplet_sum", "nt_xent"))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert dispatch.largest_dense(one_pass, cpu) < dispatch.largest_dense(two_passes, cpu)
    monkeypatch.setattr(dispatch, "LARGEST_DENSE_ON_CUDA", 7)  # a limit of its own
    assert dispatch.largest_dense(one_pass, cuda) == dispatch.largest_dense(two_passes, cuda) == 7
    assert dispatch.tile_of(None, torch.device("cpu")) < dispatch.tile_of(None, torch.device("cuda"))
    assert dispatch.tile_of(None, torch.device("mps")) == dispatch.tile_of(None, torch.device("cpu"))
    assert dispatch.tile_of(7, torch.device("cuda")) == (7, 7)
