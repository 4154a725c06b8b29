"""The sigmoid loss: its bias, its signs, and that a pair counts once."""

from typing import Any

import pytest
import torch
from comparisons import normal_pair
from torch.nn.functional import logsigmoid
from torch.utils.flop_counter import FlopCounterMode

from crossmodal_losses import Sigmoid, cosine_similarity, sigmoid


@pytest.mark.parametrize("tile_size", [None, 2])
def test_bias_and_temperature_of_the_caller(tile_size: int | None) -> None:
    x, y = normal_pair(0, 5, 4)
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (4.0, -2.0))
    z = 2 * torch.eye(5, dtype=torch.float64) - 1
    expected = -logsigmoid(z * (scale * cosine_similarity(x, y) + bias)).sum() / 5
    value = Sigmoid(tile_size=tile_size)(x, y, temperature=1 / scale, bias=bias)
    torch.testing.assert_close(value, expected)
    leaves = x, y, scale, bias
    torch.testing.assert_close(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves))


@pytest.mark.parametrize("tile_size", [None, 2])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_learned_bias(tile_size: int | None, reduction: str) -> None:
    x, y = normal_pair(0, 5, 4)
    loss = Sigmoid(learn_temperature=True, learn_bias=True, tile_size=tile_size, reduction=reduction).double()  # type: ignore[arg-type]
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {
        "exponent_logit": (1,),
        "learned_bias": (1,),
    }
    value = loss(x, y).sum()
    expected = loss.of_similarities(cosine_similarity(x, y)).sum()
    torch.testing.assert_close(value, expected)
    leaves = (x, y, *loss.parameters())
    torch.testing.assert_close(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves))


def test_learned_settings_are_refused_in_words() -> None:
    with pytest.raises(TypeError, match="expected bias to be a number, got Tensor; to learn it: learn_bias=True"):
        Sigmoid(bias=torch.tensor(0.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected learn_bias to be True or False, got int"):
        Sigmoid(learn_bias=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Sigmoid(direction_weights=(1, 1))  # type: ignore[call-arg]


def test_one_pass_of_three_products() -> None:
    x, y = normal_pair(0, 12, 5)
    more = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as flops:
        Sigmoid(tile_size=4)(x, y, negatives_x=more).backward()
    # The candidates without a partner need no gradient.
    assert flops.get_total_flops() == 2 * 5 * (3 * 12 * 12 + 2 * 7 * 12)


def test_pairs_of_one_id_leave_the_sum() -> None:
    S = torch.tensor([[1.0, 0.5], [0.25, 0.0]], dtype=torch.float64)
    settings: Any = {"temperature": 1.0, "bias": 0.0}
    alone = sigmoid(S, ids=torch.tensor([3, 3]), **settings)
    assert float(alone) == 0  # no anchor has a negative
    three = torch.nn.functional.pad(S, (0, 1, 0, 1))
    terms = sigmoid(three, ids=torch.tensor([3, 3, 4]), reduction="none", **settings)
    zero = torch.tensor(0.0, dtype=torch.float64)
    expected = -logsigmoid(three.diagonal()) - torch.stack(
        [1 * logsigmoid(zero), 1 * logsigmoid(zero), 2 * logsigmoid(zero)]
    )
    torch.testing.assert_close(terms, expected)


@pytest.mark.parametrize("tile_size", [None, 2])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.5, 2.0)])
def test_weights_of_directions_are_of_no_effect(tile_size: int | None, weights: tuple[float, float]) -> None:
    """A pair counts once, in neither direction."""
    x, y = normal_pair(0, 5, 4)
    loss = Sigmoid(tile_size=tile_size)
    expected = loss(x, y)
    loss.direction_weights = weights
    torch.testing.assert_close(loss(x, y), expected)
