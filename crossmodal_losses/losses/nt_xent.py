"""Equation 7: identify the positive among all pairs of the anchor, by softmax."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from crossmodal_losses.checks import Reduction, check_temperature
from crossmodal_losses.engine.aggregation import LogSumExp
from crossmodal_losses.engine.objective import Objective
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.losses.base import PairLoss
from crossmodal_losses.similarity import at_least_float32

# A learned temperature stays in [LOWEST, 1].
LOWEST_LEARNED_TEMPERATURE = 0.01


@dataclass(frozen=True)
class NTXentObjective(Objective):
    """-log(exp(p/t) / (exp(p/t) + sum_j exp(n_j/t))) = log(1 + exp(h)), h = log sum_j exp((n_j - p)/t)."""

    temperature: float | Tensor

    checks: ClassVar = {"temperature": check_temperature}

    @property
    def aggregation(self) -> LogSumExp:
        return LogSumExp(self.temperature)

    def anchor_loss(self, positive: Tensor, h: Tensor) -> Tensor:
        return softplus(h, threshold=40)  # beyond it, log(1 + exp(h)) = h in float64 too

    def derivatives(self, positive: Tensor, h: Tensor) -> tuple[None, Tensor]:
        """0 in p beyond h, 1 / (1 + exp(-h)) in h."""
        return None, h.sigmoid()


def nt_xent(
    S: Tensor, *, temperature: float | Tensor = 0.07, ids: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy, both directions.

    .. math::
        L = -\frac{1}{B} \Big( \sum_i \log \frac{\exp(s_{ii} / \tau)}{\sum_j \exp(s_{ij} / \tau)}
                             + \sum_i \log \frac{\exp(s_{ii} / \tau)}{\sum_j \exp(s_{ji} / \tau)} \Big)

    Mei et al. 2022, equation 7; Chen et al. 2020 (SimCLR).

    Args:
        S: similarities, floating ``[B, B]``; the positives are on the diagonal.
        temperature: tau, between 1e-6 and 1e6; a tensor without dimensions receives its gradient.
        ids: integers ``[B]``; j leaves the denominator of i != j if their ids are equal. None: all j stay in it.
        reduction: "mean" is the formula above; "sum" leaves out 1/B; "none" gives the ``[B]`` terms of both sums.

    Returns:
        A scalar (``[B]`` for "none"), float64 if S is, else float32.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Note:
        The sum of both directions, not their mean: twice what CLIP implementations compute. If all similarities are
        equal the loss is 2 log B.

    >>> nt_xent(torch.eye(2), temperature=1.0)
    tensor(0.6265)
    """
    return reference_loss(NTXentObjective(temperature), S, ids=ids, reduction=reduction)


class NTXent(PairLoss):
    """:func:`nt_xent` of the cosine similarities of two batches of embeddings.

    Args:
        temperature: between 1e-6 and 1e6; where a learned one starts, strictly between 0.01 and 1.
        learn_temperature: the temperature is 0.01 ^ sigmoid(p) of a parameter p, ``exponent_logit``, and so stays in
            [0.01, 1] whatever the optimiser does. In the middle of that range a step of p is about a step of
            -log(temperature); towards the ends p moves it less and less. Leave p out of weight decay, which would draw
            the temperature to 0.1.
        reduction, tile_size: those of every :class:`PairLoss`.

    >>> NTXent(temperature=1.0)(torch.eye(2), torch.eye(2))
    tensor(0.6265)
    """

    objective_type = NTXentObjective

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        learn_temperature: bool = False,
        reduction: Reduction = "mean",
        tile_size: int | None = None,
    ) -> None:
        if isinstance(temperature, Tensor):
            raise TypeError("expected temperature to be a number, got Tensor; to learn it: learn_temperature=True")
        super().__init__(temperature=temperature, reduction=reduction, tile_size=tile_size)
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
            self.exponent_logit = nn.Parameter(torch.tensor(math.log(exponent / (1 - exponent))))

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use; a differentiable tensor if it is learned: 0.01 ^ sigmoid(parameter)."""
        if not self.learn_temperature:
            return self.initial_temperature
        return (math.log(LOWEST_LEARNED_TEMPERATURE) * at_least_float32(self.exponent_logit).sigmoid()).exp()
