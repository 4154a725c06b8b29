"""The polynomial loss where it is not the maximum power by power."""

import pytest
import torch

from crossmodal_losses import triplet_weighted
from crossmodal_losses.losses.triplet_weighted import derivative, polynomial


def test_polynomials_have_their_constant_term_first() -> None:
    s = torch.tensor([0.0, 1.0, 2.0])
    assert polynomial((3.0, 2.0, 1.0), s).tolist() == [3.0, 6.0, 11.0]
    assert polynomial((3.0,), s).tolist() == [3.0, 3.0, 3.0]
    assert derivative((3.0, 2.0, 1.0)) == [2.0, 2.0]
    assert derivative((3.0,)) == [0.0]


def test_the_weighted_loss_of_negative_similarities_worked_by_hand() -> None:
    """Equation 6 takes the largest similarity, -0.1 of -0.1 and -0.9, though G_neg is larger for -0.9.

    G_pos(.1) = .5 - .07 + .002 = .432, G_pos(-.5) = .5 + .35 + .05 = .9, G_pos(0) = .5.
    G_neg(-.9) = .03 + .36 + .729 = 1.119, G_neg(.1) = .03 - .04 + .009 = -.001, G_neg(-.1) = .03 + .04 + .009 = .079,
    G_neg(-.2) = .03 + .08 + .036 = .146.
    """
    S = torch.tensor([[0.1, -0.9, -0.1], [0.1, -0.5, -0.9], [-0.9, -0.2, 0.0]], dtype=torch.float64)
    expected = [
        0.432 + 0.079 + 0.432 - 0.001,  # row: -.9, -.1; column: .1, -.9
        0.9 - 0.001 + 0.9 + 0.146,  # row: .1, -.9; column: -.9, -.2
        0.5 + 0.146 + 0.5 + 0.079,  # row: -.9, -.2; column: -.1, -.9
    ]
    value = triplet_weighted(S, reduction="none")
    assert value.tolist() == pytest.approx(expected, abs=1e-12)
    alone = torch.tensor([[0.1, -0.9], [-0.9, 0.1]], dtype=torch.float64)
    assert float(triplet_weighted(alone)) == pytest.approx(2 * (0.432 + 1.119), abs=1e-12)
