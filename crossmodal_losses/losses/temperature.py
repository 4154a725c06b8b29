"""The Module of the losses that have a temperature."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crossmodal_losses.checks import Reduction
from crossmodal_losses.losses.base import PairLoss
from crossmodal_losses.similarity import at_least_float32

# A learned temperature stays in [LOWEST, 1].
LOWEST_LEARNED_TEMPERATURE = 0.01


class LossWithTemperature(PairLoss):
    """A loss with a temperature: fixed, learned, or the caller's own.

    Args:
        temperature: between 1e-6 and 1e6; where a learned one starts, strictly between 0.01 and 1.
        learn_temperature: the temperature is 0.01 ^ sigmoid(p) of a parameter p, ``exponent_logit``, and so stays in
            [0.01, 1] whatever the optimiser does. In the middle of that range a step of p is about a step of
            -log(temperature); towards the ends p moves it less and less. **Give loss.parameters() to the optimiser**,
            which knows nothing of them otherwise, and the temperature stays where it is. Leave p out of weight decay,
            which would draw the temperature to 0.1.
        direction_weights, reduction, tile_size: those of every :class:`~crossmodal_losses.PairLoss`.

    A model that has a scale of its own, such as that of CLIP, passes the temperature at the call, and it receives its
    gradient: ``loss(x, y, temperature=(-model.logit_scale).exp())``.
    """

    at_call: ClassVar[tuple[str, ...]] = ("temperature",)

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        learn_temperature: bool = False,
        direction_weights: Sequence[float] = (1.0, 1.0),
        reduction: Reduction = "mean",
        tile_size: int | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(temperature, Tensor):
            raise TypeError(
                "expected temperature to be a number, got Tensor; to learn it: learn_temperature=True; to use one of "
                "your own: temperature= at the call"
            )
        of_every_loss = {"direction_weights": direction_weights, "reduction": reduction, "tile_size": tile_size}
        super().__init__(temperature=temperature, **of_every_loss, **settings)  # type: ignore[arg-type]
        if not isinstance(learn_temperature, bool):
            raise TypeError(f"expected learn_temperature to be True or False, got {type(learn_temperature).__name__}")
        self.initial_temperature: float = vars(self)["temperature"]
        self.learn_temperature = learn_temperature
        if learn_temperature:
            temperature = self.initial_temperature
            if not LOWEST_LEARNED_TEMPERATURE < temperature < 1:
                raise ValueError(
                    f"expected a learned temperature to start strictly between {LOWEST_LEARNED_TEMPERATURE} and 1, "
                    f"got {temperature}"
                )
            exponent = math.log(temperature) / math.log(LOWEST_LEARNED_TEMPERATURE)
            # Of one dimension: FullyShardedDataParallel takes no parameter without.
            self.exponent_logit = nn.Parameter(torch.tensor([math.log(exponent / (1 - exponent))]))

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use; if it is learned, 0.01 ^ sigmoid(parameter), a differentiable tensor."""
        if not self.learn_temperature:
            return self.initial_temperature
        exponent = at_least_float32(self.exponent_logit.reshape(())).sigmoid()
        # Three operators forward, and three backward. Not torch.pow, which takes one less: torch 2.11 cannot compile
        # its derivative where shapes are dynamic.
        return (math.log(LOWEST_LEARNED_TEMPERATURE) * exponent).exp()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load also what version 0.1 saved, a parameter without dimensions."""
        name = f"{prefix}exponent_logit"
        if name in state_dict and self.learn_temperature:
            state_dict[name] = state_dict[name].reshape(self.exponent_logit.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
