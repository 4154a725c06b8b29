"""Triplet-max by hand, in value and gradient."""

import torch

from crossmodal_losses import triplet_max

S = [[0.5, 0.5, 0.25], [0.0, 0.5, 0.25], [0.75, 0.75, 1.0]]


def test_only_the_hardest_negative_costs() -> None:
    """Margin 0.5: rows .5 (of column 1), .25 (2), .25 (0, the first of two); columns .75 (of row 2), .75 (2), 0."""
    similarities = torch.tensor(S, dtype=torch.float64, requires_grad=True)
    each = triplet_max(similarities, margin=0.5, reduction="none")
    assert each.tolist() == [0.5 + 0.75, 0.25 + 0.75, 0.25]
    (gradient,) = torch.autograd.grad(each.sum(), similarities)
    assert gradient.tolist() == [[-2.0, 1.0, 0.0], [0.0, -2.0, 1.0], [2.0, 1.0, -1.0]]
