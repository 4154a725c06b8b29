"""Anchors without negatives, ties, perfect alignment, collapse, NaN."""

import math

import pytest
import torch
from comparisons import each_loss
from hypothesis import given
from hypothesis import strategies as st
from strategies import similarities
from torch import Tensor

import crossmodal_losses
from crossmodal_losses import LOSSES, triplet_max, triplet_sum, triplet_weighted, triplet_weighted_mined


@each_loss
@pytest.mark.parametrize("ids", [None, torch.tensor([7])])
def test_one_pair_costs_nothing(name: str, ids: Tensor | None) -> None:
    pair = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[2.0, -1.0]], requires_grad=True)
    value = LOSSES[name]()(*pair, ids)
    assert value == 0
    assert all(torch.equal(gradient, torch.zeros(1, 2)) for gradient in torch.autograd.grad(value, pair))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"sup_con"}))  # to which they are all positives
@given(S=similarities(st.integers(2, 6)))
def test_all_ids_equal_costs_nothing(name: str, S: Tensor) -> None:
    S.requires_grad_()
    anchors = getattr(crossmodal_losses, name)(S, ids=torch.full((len(S),), 3), reduction="none")
    (gradient,) = torch.autograd.grad(anchors.sum(), S)
    assert torch.equal(anchors, torch.zeros_like(anchors))
    assert torch.equal(gradient, torch.zeros_like(S))


@pytest.mark.parametrize("name", ["triplet_max", "triplet_weighted", "triplet_weighted_mined"])
@given(data=st.data())
def test_of_equal_hardest_negatives_the_lowest_index_takes_the_gradient(name: str, data: st.DataObject) -> None:
    B = data.draw(st.integers(3, 300))
    ties = sorted(data.draw(st.sets(st.integers(1, B - 1), min_size=2, max_size=B - 1)))
    S = torch.full((B, B), -0.5, dtype=torch.float64)
    S[0, ties] = 0.75
    S.fill_diagonal_(0.5)
    S.requires_grad_()
    anchors = getattr(crossmodal_losses, name)(S, reduction="none")
    (gradient,) = torch.autograd.grad(anchors[0], S)
    touched = gradient[0].nonzero().flatten().tolist()
    assert touched == [0, ties[0]]


def test_the_hinge_has_gradient_zero_at_zero() -> None:
    S = torch.tensor([[0.5, 0.25], [-1.0, 1.0]], requires_grad=True)  # 0.25 + 0.25 - 0.5 = 0 exactly
    for loss in (triplet_sum, triplet_max):
        value = loss(S, margin=0.25)
        (gradient,) = torch.autograd.grad(value, S)
        assert value == 0
        assert torch.equal(gradient, torch.zeros(2, 2))
    value = triplet_weighted(S, positive_coefficients=(0.0,), negative_coefficients=(0.0, 1.0))
    (gradient,) = torch.autograd.grad(value, S)
    assert gradient[1, 0] == 0  # negative part of the hinge
    at_zero = torch.zeros(2, 2, requires_grad=True)
    for weighted in (triplet_weighted, triplet_weighted_mined):
        value = weighted(at_zero, positive_coefficients=(0.0, -1.0), negative_coefficients=(0.0, 1.0))
        (gradient,) = torch.autograd.grad(value, at_zero)
        assert torch.equal(gradient, torch.zeros(2, 2))


def test_perfect_alignment() -> None:
    """Positives at 1, negatives at 0: beyond the margin, so the triplet losses are 0."""
    x = torch.eye(6)
    assert all(LOSSES[name]()(x, x) == 0 for name in ("triplet_sum", "triplet_max", "triplet_weighted_mined"))
    assert float(LOSSES["triplet_weighted"]()(x, x)) == pytest.approx(2 * 0.03)
    # log(1 + 5 exp(-1 / 0.07)), in which the 1 has all digits of float32 but the loss must not have none
    assert float(LOSSES["nt_xent"]()(x, x)) == pytest.approx(2 * math.log1p(5 * math.exp(-1 / 0.07)), rel=1e-4)


@pytest.mark.parametrize("B", [2, 5, 33])
def test_collapse(B: int) -> None:
    """All embeddings equal: the values at which a collapsed run sits."""
    x = torch.ones(B, 3)
    levels = {"triplet_max": 2 * 0.2, "triplet_sum": 2 * 0.2 * (B - 1), "nt_xent": 2 * math.log(B)}
    levels |= {"sup_con": 2 * math.log(B), "sigmoid": B * math.log(2)}  # 1 / 0.1 - 10 = 0
    assert {name: float(LOSSES[name]()(x, x)) for name in levels} == pytest.approx(levels, rel=1e-5)
    values = [float(triplet_weighted(torch.full((B, B), s))) for s in (0.49, 0.5, 0.51)]
    assert values[1] == pytest.approx(0.51, rel=1e-5)
    assert min(values) == values[1]


@each_loss
@pytest.mark.parametrize("value_in", [math.nan, math.inf, -math.inf])
@given(data=st.data())
def test_nan_and_inf_give_nan(name: str, value_in: float, data: st.DataObject) -> None:
    """Wherever they stand: in a positive, in a negative, in a pair that ids exclude, in an anchor without negatives."""
    S = data.draw(similarities())
    B = len(S)
    i, j = data.draw(st.integers(0, B - 1)), data.draw(st.integers(0, B - 1))
    ids = data.draw(st.sampled_from([None, torch.zeros(B, dtype=torch.int64), torch.arange(B) // 2]))
    S[i, j] = value_in
    S.requires_grad_()
    anchors = getattr(crossmodal_losses, name)(S, ids=ids, reduction="none")
    has_nan = torch.zeros(B, dtype=torch.bool)
    has_nan[[i] if name == "sigmoid" else [i, j]] = True  # its pair (i, j) is a term of i alone
    assert torch.equal(anchors.isnan(), has_nan)
    (gradient,) = torch.autograd.grad(anchors.sum(), S)
    assert gradient.diagonal()[has_nan].isnan().all()


@each_loss
@pytest.mark.parametrize("tile_size", [2, None])
def test_a_nan_reaches_every_anchor_without_negatives(name: str, tile_size: int | None) -> None:
    """Also those of similarity 1, and 1 to the power of NaN is 1."""
    x, y, ids = torch.eye(4), torch.eye(4), torch.zeros(4, dtype=torch.int64)
    x[1, 0] = math.nan
    assert LOSSES[name](reduction="none", tile_size=tile_size)(x, y, ids).isnan().all()
