"""Objectives: derivatives, settings as numbers, an objective of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from comparisons import dense, gradients, normal_pair
from hypothesis import given
from hypothesis import strategies as st
from strategies import losses, settings_of
from torch import Tensor

from crossmodal_losses import LOSSES, PairLoss
from crossmodal_losses.engine.aggregation import HardestNegative
from crossmodal_losses.engine.objective import Objective


@given(data=st.data(), name=losses)
def test_objectives_survive_as_numbers(data: st.DataObject, name: str) -> None:
    objective = LOSSES[name](**data.draw(settings_of(name))).objective
    assert Objective.registry[objective.name()].from_numbers(objective.numbers(), None) == objective


@dataclass(frozen=True)
class SoftMarginObjective(Objective):
    """log(1 + exp(a (n - p))) of the hardest negative, plus constants: settings of every kind."""

    sharpness: float = 4.0
    constants: Sequence[float] = (0.0, 0.5)

    aggregation = HardestNegative()

    def anchor_loss(self, positive: Tensor, hardest: Tensor) -> Tensor:
        return (self.sharpness * (hardest - positive)).exp().log1p() + sum(self.constants)

    def derivatives(self, positive: Tensor, hardest: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.sharpness * (self.sharpness * (hardest - positive)).sigmoid()
        return -slope, slope


class SoftMargin(PairLoss):
    objective_type = SoftMarginObjective


@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
def test_an_objective_of_ones_own_is_a_loss_in_every_engine() -> None:
    """On CUDA too: no kernel of small batches need know it."""
    x, y = normal_pair(0, 11, 4)
    assert SoftMargin().objective.formula is None
    for tile_size in (4, None):
        loss = SoftMargin(sharpness=3.0, tile_size=tile_size)
        expected = dense(loss, x, y)
        expected_gradients = gradients(expected, (x, y))
        torch._dynamo.reset()
        for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
            value = call(x, y)
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(gradients(value, (x, y)), expected_gradients)


ABSTRACT = ["aggregation", "anchor_loss", "derivatives"]


@pytest.mark.parametrize("name", ABSTRACT)
def test_an_objective_without_one_of_its_parts_is_not_made(name: str) -> None:
    parts = {key: value for key, value in vars(SoftMarginObjective).items() if key in ABSTRACT and key != name}
    with pytest.raises(TypeError, match=f"abstract.* '?{name}'?"):
        type("Partial", (Objective,), parts)()


def test_the_settings_of_a_loss_of_ones_own_are_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        SoftMargin("sum")  # type: ignore[call-arg, arg-type]
