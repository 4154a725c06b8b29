"""The Module that all losses have in common: its settings."""

import pytest
from comparisons import each_loss

from crossmodal_losses import LOSSES, NTXent, TripletMax, TripletWeighted
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
    assert repr(loss) == "TripletMax(margin=0.4, reduction='mean', tile_size=None)"
    loss.margin = -1
    with pytest.raises(ValueError, match="expected margin to be finite and >= 0, got -1"):
        _ = loss.objective


def test_the_text_of_a_module() -> None:
    assert repr(TripletWeighted(positive_coefficients=[1, 2], reduction="sum")) == (
        "TripletWeighted(positive_coefficients=(1, 2), negative_coefficients=(0.03, -0.4, 0.9), reduction='sum', "
        "tile_size=None)"
    )
    assert repr(NTXent(learn_temperature=True, tile_size=8)) == (
        "NTXent(temperature=0.07, learn_temperature=True, reduction='mean', tile_size=8)"
    )
