"""Gradients of the hardest negatives: ties, repeated partners, blocks of dimensions."""

import pytest
import torch
from comparisons import assert_same_loss, dense, normal_pair

from crossmodal_losses import LOSSES
from crossmodal_losses.engine import hardest_backward

SELECTING = [name for name in sorted(LOSSES) if LOSSES[name]().objective.aggregation.selects]
each_selecting_loss = pytest.mark.parametrize("name", SELECTING)


@each_selecting_loss
@pytest.mark.parametrize("scale", [1.0, 2.0**60])
def test_scaled_rows_come_in_blocks_of_dimensions(name: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several anchors have the same hardest negative."""
    monkeypatch.setattr(hardest_backward, "ENTRIES", 100)
    x, y = normal_pair(0, 9, 70)
    loss = LOSSES[name](tile_size=4)
    assert_same_loss(loss(scale * x, y), dense(loss, x, y), (x, y), {}, {})


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
