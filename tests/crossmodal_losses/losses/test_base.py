"""The Module that all losses have in common: its settings."""

import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import each_loss
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from crossmodal_losses import LOSSES, GradientCache, NTXent, TripletMax, TripletWeighted
from crossmodal_losses.losses.triplet_max import TripletMaxObjective


@each_loss
def test_the_objective_has_the_settings_of_the_module(name: str) -> None:
    loss = LOSSES[name]()
    assert all(getattr(loss, setting) == value for setting, value in vars(loss.objective).items())
    assert vars(loss.objective)


def test_settings_are_attributes_and_may_change() -> None:
    loss = TripletMax(margin=0.3)
    loss.margin = 0.4
    assert loss.objective == TripletMaxObjective(0.4)
    assert repr(loss) == "TripletMax(margin=0.4, direction_weights=(1.0, 1.0), reduction='mean', tile_size=None)"
    loss.margin = -1
    with pytest.raises(ValueError, match="expected margin to be finite and >= 0, got -1"):
        _ = loss.objective


def test_the_text_of_a_module() -> None:
    assert repr(TripletWeighted(positive_coefficients=[1, 2], reduction="sum")) == (
        "TripletWeighted(positive_coefficients=(1.0, 2.0), negative_coefficients=(0.03, -0.4, 0.9), "
        "direction_weights=(1.0, 1.0), reduction='sum', tile_size=None)"
    )
    assert repr(NTXent(learn_temperature=True, tile_size=8)) == (
        "NTXent(temperature=0.07, learn_temperature=True, direction_weights=(1.0, 1.0), reduction='mean', tile_size=8)"
    )


def test_the_text_shows_a_learned_temperature_in_use() -> None:
    loss = NTXent(learn_temperature=True)
    loss.exponent_logit.data.fill_(0)
    assert "temperature=0.1," in repr(loss)
    assert "temperature=tensor(" in repr(loss.to("meta"))


@pytest.mark.parametrize(
    "number", [1, np.float16(0.5), np.float32(0.3), np.int64(2), np.longdouble(0.2), Fraction(1, 4)]
)
def test_numbers_of_every_type_become_plain(number: Any) -> None:
    """So they can be compared, printed, and compiled, whatever sweep or table they came from."""
    mined = LOSSES["triplet_weighted_mined"](margin=number, negative_coefficients=[number, 1])
    loss: Any = NTXent(temperature=number)
    for objective, settings in (
        (mined.objective, {"margin": float(number), "negative_coefficients": (float(number), 1.0)}),
        (loss.objective, {"temperature": float(number)}),
    ):
        found = vars(objective)
        assert all(found[name] == value and type(found[name]) is type(value) for name, value in settings.items())
    assert type(loss.temperature) is float
    loss.initial_temperature = number  # and again when a setting is changed
    assert type(loss.objective.temperature) is float


@pytest.mark.parametrize("size, plain", [(np.int64(3), 3), (np.uint8(7), 7), (10**400, sys.maxsize)])
def test_sizes_of_every_type_become_plain(size: Any, plain: int) -> None:
    for found in (NTXent(tile_size=size).tile_size, GradientCache(NTXent(), micro_batch_size=size).micro_batch_size):
        assert found == plain
        assert type(found) is int
    x = torch.eye(3)
    assert NTXent(tile_size=size)(x, x) == GradientCache(NTXent(), micro_batch_size=size)(
        nn.Identity(), nn.Identity(), x, x
    )


@each_loss
@pytest.mark.parametrize("tile_size", [None, 3])
def test_shapes_without_numbers(name: str, tile_size: int | None) -> None:
    """torch's FakeTensorMode computes shapes and dtypes alone."""
    with FakeTensorMode():
        x, y = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
        value = LOSSES[name](tile_size=tile_size, reduction="none")(x, y, torch.arange(8))
        value.sum().backward()
    assert (value.shape, value.dtype) == ((8,), torch.float64)
    assert x.grad is not None
    assert x.grad.shape == x.shape
