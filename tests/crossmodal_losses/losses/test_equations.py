"""Every loss equals its loop, in value and in gradient, as a function of S and as a module over embeddings."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import ORACLES
from oracles import cosine_similarity as cosine_oracle
from strategies import embeddings, ids_for, losses, reductions, settings_of, similarities
from torch import Tensor

import crossmodal_losses
from crossmodal_losses import LOSSES, cosine_similarity


def reduce(anchors: Tensor, reduction: str) -> Tensor:
    return {"mean": anchors.mean(), "sum": anchors.sum(), "none": anchors}[reduction]


def as_list(ids: Tensor | None) -> list[int] | None:
    return None if ids is None else ids.tolist()


def test_every_loss_has_an_oracle_a_function_and_a_module() -> None:
    assert LOSSES.keys() == ORACLES.keys()
    for name, module in LOSSES.items():
        assert callable(getattr(crossmodal_losses, name))
        assert module.__name__.lower() == name.replace("_", "")
        assert getattr(crossmodal_losses, module.__name__) is module


@given(data=st.data(), name=losses, reduction=reductions)
def test_function_equals_loop(data: st.DataObject, name: str, reduction: str) -> None:
    S = data.draw(similarities()).requires_grad_()
    ids = data.draw(ids_for(len(S)))
    settings = data.draw(settings_of(name))
    upstream = torch.linspace(0.5, 2, len(S), dtype=torch.float64)[: len(S) if reduction == "none" else 1].squeeze()

    value = getattr(crossmodal_losses, name)(S, ids=ids, reduction=reduction, **settings)
    expected = reduce(ORACLES[name](S, as_list(ids), **settings), reduction)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)

    upstream = upstream.reshape(value.shape)
    (gradient,) = torch.autograd.grad(value, S, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, S, upstream)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-10)


@given(pair=embeddings())
def test_similarity_equals_loop(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    torch.testing.assert_close(cosine_similarity(x, y), cosine_oracle(x, y), rtol=0, atol=1e-12)


@given(data=st.data(), name=losses, reduction=reductions, pair=embeddings())
def test_module_is_the_function_of_the_similarities(
    data: st.DataObject, name: str, reduction: Any, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair
    ids = data.draw(ids_for(len(x)))
    settings = data.draw(settings_of(name))
    module = LOSSES[name](reduction=reduction, **settings)
    expected = reduce(ORACLES[name](cosine_similarity(x, y), as_list(ids), **settings), reduction)
    torch.testing.assert_close(module(x, y, ids), expected, rtol=1e-10, atol=1e-10)


@given(data=st.data(), name=losses)
def test_reductions_agree(data: st.DataObject, name: str) -> None:
    S = data.draw(similarities())
    ids = data.draw(ids_for(len(S)))
    loss = getattr(crossmodal_losses, name)
    anchors = loss(S, ids=ids, reduction="none")
    assert anchors.shape == (len(S),)
    torch.testing.assert_close(loss(S, ids=ids, reduction="sum"), anchors.sum())
    torch.testing.assert_close(loss(S, ids=ids), anchors.sum() / len(S))


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
}


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_worked_by_hand(name: str) -> None:
    S = torch.tensor([[0.9, 0.8], [0.3, 0.5]], dtype=torch.float64)
    settings = {"temperature": 1.0} if name == "nt_xent" else {}
    value = getattr(crossmodal_losses, name)(S, **settings)
    assert float(value) == pytest.approx(BY_HAND[name], abs=1e-12)
