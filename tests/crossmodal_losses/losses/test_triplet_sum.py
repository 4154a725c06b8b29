"""Triplet-sum by hand, in value and gradient."""

import pytest
import torch

from crossmodal_losses import triplet_sum

S = [[0.5, 0.5, -0.5], [0.0, 0.5, 0.25], [0.75, -1.0, 1.0]]


def test_every_violating_negative_costs_and_has_the_same_gradient() -> None:
    """Margin 0.5: rows .5 + 0 (at 0: no gradient), 0 + .25, .25 + 0; columns 0 + .75, .5 + 0, 0 + 0."""
    similarities = torch.tensor(S, dtype=torch.float64, requires_grad=True)
    each = triplet_sum(similarities, margin=0.5, reduction="none")
    assert each.tolist() == [0.5 + 0.75, 0.25 + 0.5, 0.25]
    (gradient,) = torch.autograd.grad(each.sum(), similarities)
    assert gradient.tolist() == [[-2.0, 2.0, 0.0], [0.0, -2.0, 1.0], [2.0, 0.0, -1.0]]
    assert triplet_sum(similarities, margin=0.5).item() == pytest.approx(2.25 / 3)
