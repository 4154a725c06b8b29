"""Gradients of the hardest negatives: ties, repeated partners, blocks of dimensions."""

from typing import Any

import pytest
import torch
from comparisons import assert_same_loss, dense, dense_of_batch, leaves_of, normal_batch, normal_pair, of_batch
from torch import Tensor
from torch.nn.functional import embedding_bag

from crossmodal_losses import LOSSES
from crossmodal_losses.engine import hardest_backward

SELECTING = [name for name in sorted(LOSSES) if LOSSES[name]().objective.aggregation.selects]
each_selecting_loss = pytest.mark.parametrize("name", SELECTING)


@each_selecting_loss
@pytest.mark.parametrize("scale", [1.0, 2.0**60])
def test_scaled_rows_come_in_blocks_of_dimensions(name: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several anchors have the same hardest negative."""
    monkeypatch.setitem(hardest_backward.ENTRIES, "cpu", 100)
    x, y = normal_pair(0, 9, 70)
    loss = LOSSES[name](tile_size=4)
    assert_same_loss(loss(scale * x, y), dense(loss, x, y), (x, y), {}, {})


@each_selecting_loss
@pytest.mark.parametrize("M", [0, 3])
def test_long_sums_come_in_pieces(name: str, M: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device where one thread adds up a sum. The hardest negative of all x is y[7]."""
    monkeypatch.setitem(hardest_backward.LONGEST_SUM, "cpu", 4)
    longest = 0

    def recorded(index: Tensor, rows: Tensor, starts: Tensor, **settings: Any) -> Tensor:
        nonlocal longest
        longest = max(longest, int(starts.diff().max()))
        assert starts[0] == 0
        assert starts[-1] == len(index)
        return embedding_bag(index, rows, starts, **settings)

    monkeypatch.setattr(hardest_backward, "embedding_bag", recorded)
    batch = normal_batch(2, 16, 0, M, 3, torch.float32)
    x, y = 0.01 * batch.x.detach() + torch.tensor([1.0, 0, 0]), batch.y.detach()
    y[7] = torch.tensor([1.0, 0, 0])
    batch = batch._replace(x=x.requires_grad_(), y=y.requires_grad_())
    loss = LOSSES[name](tile_size=7)
    value, inputs = of_batch(loss, batch), leaves_of(batch)
    assert_same_loss(value, dense_of_batch(loss, batch), inputs, {}, {})
    assert 4 <= longest <= 8  # 16 anchors and more, in 4 pieces and more, which are added in turn


@each_selecting_loss
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


@each_selecting_loss
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 2.0)])
def test_one_direction_alone(name: str, weights: tuple[float, float]) -> None:
    x, y = normal_pair(1, 70, 5)  # beyond the form for small batches
    for tile_size in (30, None):
        loss = LOSSES[name](direction_weights=weights, tile_size=tile_size)
        assert_same_loss(loss(x, y), dense(loss, x, y), (x, y), {}, {})
