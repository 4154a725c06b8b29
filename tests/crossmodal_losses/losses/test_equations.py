"""Every loss equals its loop, in value and in gradient, as a function of S; and what is worked by hand."""

from inspect import signature
from typing import Any

import pytest
import torch
from comparisons import gradients
from hypothesis import given
from hypothesis import strategies as st
from oracles import LOOPS, oracle
from oracles import cosine_similarity as cosine_oracle
from strategies import embeddings, ids_for, losses, reductions, settings_of, similarities
from torch import Tensor

import crossmodal_losses
from crossmodal_losses import LOSSES, cosine_similarity, sup_con, triplet_weighted, triplet_weighted_mined


def test_every_loss_has_an_oracle_a_function_and_a_module() -> None:
    assert LOSSES.keys() == LOOPS.keys()
    for name, module in LOSSES.items():
        assert callable(getattr(crossmodal_losses, name))
        assert module.__name__.lower() == name.replace("_", "")
        assert getattr(crossmodal_losses, module.__name__) is module


@given(data=st.data(), name=losses, reduction=reductions)
def test_function_equals_loop(data: st.DataObject, name: str, reduction: str) -> None:
    S = data.draw(similarities()).requires_grad_()
    ids = data.draw(ids_for(len(S)))
    settings = data.draw(settings_of(name))
    value = getattr(crossmodal_losses, name)(S, ids=ids, reduction=reduction, **settings)
    expected = oracle(name, S, ids, reduction, **settings)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(value, (S,)), gradients(expected, (S,)), rtol=1e-9, atol=1e-10)


@given(pair=embeddings())
def test_similarity_equals_loop(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    torch.testing.assert_close(cosine_similarity(x, y), cosine_oracle(x, y), rtol=0, atol=1e-12)


# Two pairs, S below, the paper's settings, temperature 1. Anchor 1: row hinge .2+.8-.9 = .1, column .2+.3-.9 < 0.
# Anchor 2: row .2+.3-.5 = 0, column .2+.8-.5 = .5.
# G_pos(.9) = .032, G_pos(.5) = .2, G_neg(.8) = .286, G_neg(.3) = -.009.
BY_HAND = {
    "triplet_sum": (0.1 + 0.5) / 2,
    "triplet_max": (0.1 + 0.5) / 2,
    "triplet_weighted": ((0.032 + 0.286) + (0.032 - 0.009) + (0.2 - 0.009) + (0.2 + 0.286)) / 2,
    # Anchor 1's column does not come within the margin; anchor 2's row, .3 + .2 > .5, does not quite.
    "triplet_weighted_mined": ((0.032 + 0.286) + (0.2 + 0.286)) / 2,
    # log(1+e^-.1) + log(1+e^-.6) + log(1+e^-.2) + log(1+e^.3)
    "nt_xent": (0.6443966600735709 + 0.4374879504858856 + 0.5981388693815918 + 0.8543552444685271) / 2,
    "sup_con": (0.6443966600735709 + 0.4374879504858856 + 0.5981388693815918 + 0.8543552444685271) / 2,
    # log(1+e^-.9) + log(1+e^.8) + log(1+e^.3) + log(1+e^-.5)
    "sigmoid": (0.3411538747320878 + 1.1711006659477776 + 0.8543552444685271 + 0.4740769841801067) / 2,
}
# The settings of these, where they are not the default ones.
SETTINGS_BY_HAND = {"temperature": 1.0, "bias": 0.0}


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_worked_by_hand(name: str) -> None:
    S = torch.tensor([[0.9, 0.8], [0.3, 0.5]], dtype=torch.float64)
    function = getattr(crossmodal_losses, name)
    settings = {key: SETTINGS_BY_HAND[key] for key in signature(function).parameters.keys() & SETTINGS_BY_HAND}
    value = function(S, **settings)
    assert float(value) == pytest.approx(BY_HAND[name], abs=1e-12)


def test_several_positives_worked_by_hand() -> None:
    """Both pairs have one id. Row 1: log(e^.9 + e^.8) - (.9 + .8) / 2; every log of a sum is that of nt_xent plus s."""
    S = torch.tensor([[0.9, 0.8], [0.3, 0.5]], dtype=torch.float64)
    logs = 0.6443966600735709 + 0.4374879504858856 + 0.5981388693815918 + 0.8543552444685271 + 2 * (0.9 + 0.5)
    expected = (logs - (0.9 + 0.8 + 0.3 + 0.5)) / 2  # every entry of S is a positive of its row and of its column
    value = sup_con(S, temperature=1.0, ids=torch.tensor([4, 4]))
    assert float(value) == pytest.approx(expected, abs=1e-12)


# S, then the loss of every anchor and the gradient of their sum, at a margin of 0.5.
GRADIENTS_BY_HAND: dict[str, tuple[Any, ...]] = {
    # Rows .5 + 0 (at 0: no gradient), 0 + .25, .25 + 0; columns 0 + .75, .5 + 0, 0 + 0.
    "triplet_sum": (
        [[0.5, 0.5, -0.5], [0.0, 0.5, 0.25], [0.75, -1.0, 1.0]],
        [0.5 + 0.75, 0.25 + 0.5, 0.25],
        [[-2.0, 2.0, 0.0], [0.0, -2.0, 1.0], [2.0, 0.0, -1.0]],
    ),
    # Rows .5 (of column 1), .25 (2), .25 (0, the first of two); columns .75 (of row 2), .75 (2), 0.
    "triplet_max": (
        [[0.5, 0.5, 0.25], [0.0, 0.5, 0.25], [0.75, 0.75, 1.0]],
        [0.5 + 0.75, 0.25 + 0.75, 0.25],
        [[-2.0, 1.0, 0.0], [0.0, -2.0, 1.0], [2.0, 1.0, -1.0]],
    ),
}


@pytest.mark.parametrize("name", GRADIENTS_BY_HAND)
def test_gradients_worked_by_hand(name: str) -> None:
    S, expected, expected_gradient = GRADIENTS_BY_HAND[name]
    S = torch.tensor(S, dtype=torch.float64, requires_grad=True)
    anchors = getattr(crossmodal_losses, name)(S, margin=0.5, reduction="none")
    assert anchors.tolist() == expected
    assert torch.autograd.grad(anchors.sum(), S)[0].tolist() == expected_gradient


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
    assert triplet_weighted(S, reduction="none").tolist() == pytest.approx(expected, abs=1e-12)
    alone = torch.tensor([[0.1, -0.9], [-0.9, 0.1]], dtype=torch.float64)
    assert float(triplet_weighted(alone)) == pytest.approx(2 * (0.432 + 1.119), abs=1e-12)


@pytest.mark.parametrize(
    "positive, negative, margin, counts",
    [(0.5, 0.25, 0.25, False), (0.5, 0.25, 0.26, True), (1 - 2e-5, 0.9, 0.2, True), (1 - 5e-6, 0.9, 0.2, False)],
)
def test_a_mined_anchor_counts_if_its_negative_is_within_the_margin_and_its_positive_imperfect(
    positive: float, negative: float, margin: float, counts: bool
) -> None:
    """At a margin of 0.25 the negative is not quite within it; positives above 1 - 1e-5 are perfect."""
    S = torch.full((2, 2), negative, dtype=torch.float64).fill_diagonal_(positive)
    assert bool(triplet_weighted_mined(S, margin=margin) > 0) == counts
