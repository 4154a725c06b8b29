"""Every pair by itself: is it a pair or not?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from crossmodal_losses.checks import Reduction, check_bias, check_temperature
from crossmodal_losses.engine.aggregation import EXCLUDED, Aggregation, Kernel, State, Tile, along
from crossmodal_losses.engine.compat import can_look
from crossmodal_losses.engine.objective import Formula, Objective
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.engine.square import Saved, Square
from crossmodal_losses.losses.temperature import LossWithTemperature
from crossmodal_losses.similarity import at_least_float32

# Zhai et al. 2023: where both start.
TEMPERATURE, BIAS = 0.1, -10.0


def _together(temperature: float | Tensor, bias: float | Tensor) -> Sequence[float] | Tensor:
    """Temperature and bias: two numbers, or one tensor [2] where one of them is a tensor."""
    tensors = [value for value in (temperature, bias) if isinstance(value, Tensor)]
    if not tensors:
        return temperature, bias  # type: ignore[return-value]
    like = at_least_float32(tensors[0])
    return torch.stack([v.to(like) if isinstance(v, Tensor) else like.new_full((), v) for v in (temperature, bias)])


@dataclass(frozen=True)
class SoftplusSum(Aggregation):
    """log(1 + exp(-(s_ii / t + b))) + sum_j log(1 + exp(s_ij / t + b)): the pair itself, then its negatives."""

    temperature_and_bias: Sequence[float] | Tensor

    one_pass = True

    @property
    def kernel(self) -> Kernel:
        return Kernel("pairs", (self._temperature, self._bias))

    @property
    def parameter(self) -> Tensor | None:
        """Temperature and bias, [2], if they are a tensor."""
        return self.temperature_and_bias if isinstance(self.temperature_and_bias, Tensor) else None

    @property
    def _temperature(self) -> float | Tensor:
        return self.temperature_and_bias[0]

    @property
    def _bias(self) -> float | Tensor:
        return self.temperature_and_bias[1]

    def over_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        z = S / self._temperature + self._bias
        return (softplus(z, threshold=40) * negative).sum(1) + softplus(-z.diagonal(), threshold=40)

    def prepare(self, tile: Tile) -> Tile:
        """s / t + b, of the opposite sign for the pairs themselves."""
        if tile.same is not None:
            if tile.diagonal:
                tile.same.fill_diagonal_(0)
            tile.values.add_(tile.same, alpha=EXCLUDED)
        tile.values.div_(self._temperature).add_(self._bias)
        if tile.diagonal:
            tile.values.diagonal().neg_()
        return tile

    def tile_state(self, tile: Tile, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        return (torch.ops.aten.softplus.out(tile.values, 1, 40, out=scratch).sum(dim),)

    def merge(self, first: State, second: State) -> State:
        return (first[0] + second[0],)

    def finish(self, state: State, positive: Tensor) -> Tensor:
        return state[0]

    def anchor_factors(self, state: State, grad_aggregate: Tensor) -> Tensor:
        return grad_aggregate / self._temperature

    def grad_tile(
        self, tile: Tile, dim: int, start: int, state: State, positive: Tensor, factors: Tensor, out: Tensor
    ) -> None:
        torch.sigmoid(tile.values, out=out).mul_(along(factors, dim))
        if tile.diagonal:
            out.diagonal().neg_()

    def grad_parameter(self, tile: Tile, grad_S: Tensor, scratch: Tensor) -> Tensor:
        """-sum_ij dL/ds_ij s_ij / t, and t sum_ij dL/ds_ij, where s / t = z - b."""
        grad_times_z = torch.mul(tile.values, grad_S, out=scratch)
        if tile.diagonal:
            grad_times_z.diagonal().neg_()
        total = grad_S.sum()
        return torch.stack([self._bias * total - grad_times_z.sum(), self._temperature * total])

    def grad_parameter_of_positives(self, positive: Tensor, grad_positive: Tensor) -> Tensor:
        """0: they are in the tiles."""
        return grad_positive.new_zeros(2)


@dataclass(frozen=True)
class SigmoidObjective(Objective):
    """The aggregate itself."""

    temperature: float | Tensor
    bias: float | Tensor

    checks: ClassVar = {"temperature": check_temperature, "bias": check_bias}
    pairs_once = True

    @property
    def aggregation(self) -> SoftplusSum:
        return SoftplusSum(_together(self.temperature, self.bias))

    def anchor_loss(self, positive: Tensor, aggregate: Tensor) -> Tensor:
        return aggregate

    def derivatives(self, positive: Tensor, aggregate: Tensor, loss: Tensor) -> tuple[None, Tensor]:
        """0 in p beyond the aggregate, 1 in the aggregate."""
        return None, torch.ones_like(aggregate)

    @property
    def square(self) -> Square | None:
        t, b = self.temperature, self.bias
        if not all(can_look(value) for value in (t, b) if isinstance(value, Tensor)):
            return None
        t, b = (float(value.detach()) if isinstance(value, Tensor) else value for value in (t, b))
        return SquareOfPairs(t, b)

    @property
    def formula(self) -> Formula:
        t, b = self.temperature, self.bias
        return Formula("pairs", (0.0, 0.0) if isinstance(t, Tensor) or isinstance(b, Tensor) else (t, b))

    def numbers(self) -> list[float]:
        """Only -2, if one of the two is a tensor: then both are in the parameter. An empty list does not compile."""
        return [-2] if self.aggregation.parameter is not None else [self.temperature, self.bias]  # type: ignore[list-item]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float], parameter: Tensor | None) -> "SigmoidObjective":
        return cls(*(numbers if parameter is None else parameter.unbind()))


class SquareOfPairs(Square):
    """log(1 + exp(z_ij)) of all pairs, z = s / t + b, of the opposite sign on the diagonal."""

    shifts = True

    def __init__(self, temperature: float, bias: float) -> None:
        self.temperature, self.bias = temperature, bias

    def losses(self, S: Tensor, same: Tensor | None) -> tuple[Tensor, Saved]:
        z = S.div_(self.temperature).add_(self.bias)
        z.diagonal().neg_()
        has_negatives = len(z) > 1 if same is None else not bool(same.all())
        if not has_negatives:
            z.fill_(-torch.inf)
        elif same is not None:
            z.masked_fill_(same.fill_diagonal_(False), -torch.inf)
        return softplus(z, threshold=40).sum(1).unsqueeze(0), (z,)

    def grad_S(self, saved: Saved, upstream: Tensor, divisor: float) -> Tensor:
        grad = torch.sigmoid(saved[0]).mul_((upstream / (divisor * self.temperature)).view(-1, 1))
        grad.diagonal().neg_()
        return grad

    def grad_parameter(self, grad_scale: Tensor, grad_shift: Tensor | None) -> Tensor:
        """-sum_ij dL/ds_ij s_ij / t, and t sum_ij dL/ds_ij."""
        assert grad_shift is not None
        return torch.stack((grad_scale.div_(-self.temperature), grad_shift.mul_(self.temperature)))


def sigmoid(
    S: Tensor,
    *,
    temperature: float | Tensor = TEMPERATURE,
    bias: float | Tensor = BIAS,
    ids: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Sigmoid loss: of every x and y, whether they are a pair, by logistic regression.

    .. math::
        L = -\frac{1}{B} \sum_i \sum_j \log \sigma(z_{ij} (s_{ij} / \tau + b)), \qquad
        z_{ij} = 1 \text{ if } i = j \text{, else } -1

    Zhai et al. 2023 (SigLIP). Every pair counts once, so there are no weights of directions.

    Args:
        S: similarities, floating ``[B, B]``; the positives are on the diagonal.
        temperature: tau, between 1e-6 and 1e6; a tensor of one number receives its gradient.
        bias: b, between -1e6 and 1e6; likewise.
        ids: integers ``[B]``; pairs i != j of one id leave the sum. None: all stay in it.
        reduction: "mean" is the formula above; "sum" leaves out 1/B; "none" gives the ``[B]`` terms of the sum over i.

    Returns:
        A scalar (``[B]`` for "none"), float64 if S is, else float32.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Note:
        As in every loss here, an anchor without a negative (B = 1) costs 0. ``SigLipLoss`` of open_clip is this loss at
        temperature 1 / logit_scale and bias logit_bias. The sum over j is not divided by its length.

    >>> import torch
    >>> sigmoid(torch.eye(2), temperature=1.0, bias=0.0)  # log(1 + 1/e) + log 2
    tensor(1.0064)
    """
    return reference_loss(SigmoidObjective(temperature, bias), S, ids=ids, reduction=reduction)


class Sigmoid(LossWithTemperature):
    """:func:`sigmoid` of the cosine similarities of two batches of embeddings.

    Candidates without a partner are negatives like all others. Term i of ``reduction="none"`` has those of x_i and y_i.

    Args:
        temperature, learn_temperature: as in :class:`~crossmodal_losses.losses.temperature.LossWithTemperature`.
        bias: between -1e6 and 1e6; where a learned one starts.
        learn_bias: the bias is a parameter, ``learned_bias``. **Give loss.parameters() to the optimiser**, and leave it
            out of weight decay.
        reduction, tile_size: those of every :class:`PairLoss`.

    A call takes ``temperature`` and ``bias`` of its own, numbers or tensors of one number, which receive gradients.

    >>> import torch
    >>> Sigmoid(temperature=1.0, bias=0.0)(torch.eye(2), torch.eye(2))
    tensor(1.0064)
    """

    objective_type = SigmoidObjective
    at_call = ("temperature", "bias")

    def __init__(
        self,
        *,
        temperature: float = TEMPERATURE,
        bias: float = BIAS,
        learn_temperature: bool = False,
        learn_bias: bool = False,
        reduction: Reduction = "mean",
        tile_size: int | None = None,
    ) -> None:
        if isinstance(bias, Tensor):
            raise TypeError(
                "expected bias to be a number, got Tensor; to learn it: learn_bias=True; to use one of your own: bias= "
                "at the call"
            )
        super().__init__(
            temperature=temperature,
            bias=bias,
            learn_temperature=learn_temperature,
            reduction=reduction,
            tile_size=tile_size,
        )
        if not isinstance(learn_bias, bool):
            raise TypeError(f"expected learn_bias to be True or False, got {type(learn_bias).__name__}")
        self.initial_bias: float = vars(self)["bias"]
        self.learn_bias = learn_bias
        if learn_bias:
            self.learned_bias = nn.Parameter(torch.tensor([self.initial_bias]))

    @property
    def bias(self) -> float | Tensor:
        """The bias in use; a tensor if it is learned."""
        return at_least_float32(self.learned_bias.reshape(())) if self.learn_bias else self.initial_bias
