"""The mined polynomial loss: which anchors count."""

import pytest
import torch

from crossmodal_losses import triplet_weighted_mined


def test_the_mined_loss_drops_perfect_positives() -> None:
    """Positives above 1 - 1e-5 are dropped, though their negative is within the margin."""
    for positive, counts in ((1 - 2e-5, True), (1 - 5e-6, False)):
        S = torch.full((2, 2), 0.9, dtype=torch.float64).fill_diagonal_(positive)
        assert (triplet_weighted_mined(S) > 0) == counts


@pytest.mark.parametrize("margin, counts", [(0.25, False), (0.26, True)])
def test_an_anchor_counts_if_its_negative_comes_within_the_margin(margin: float, counts: bool) -> None:
    S = torch.tensor([[0.5, 0.25], [0.25, 0.5]])  # at a margin of 0.25 it does not quite
    assert bool(triplet_weighted_mined(S, margin=margin) > 0) == counts
