"""Equation 7: identify the positive among all pairs of the anchor, by softmax."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from crossmodal_losses.checks import Reduction, check_temperature
from crossmodal_losses.engine.aggregation import COLDEST_WITHOUT_MAXIMUM, LogSumExp, along
from crossmodal_losses.engine.compat import can_look
from crossmodal_losses.engine.objective import Formula, Objective
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.engine.square import Saved, Square, exclude
from crossmodal_losses.losses.temperature import LossWithTemperature


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

    def derivatives(self, positive: Tensor, h: Tensor, loss: Tensor) -> tuple[None, Tensor]:
        """0 in p beyond h, 1 / (1 + exp(-h)) in h."""
        return None, h.sigmoid()

    @property
    def square(self) -> Square | None:
        t = warm_temperature(self.temperature)
        return None if t is None else SquareOfExponentials(t)

    @property
    def formula(self) -> Formula:
        if isinstance(self.temperature, Tensor):
            return Formula("softmax", (0.0,))
        return Formula("warm softmax" if self.aggregation.is_warm else "softmax", (self.temperature,))


def warm_temperature(temperature: float | Tensor) -> float | None:
    """The temperature as a number; None if it cannot be read, or if an exponential may over- or underflow."""
    if isinstance(temperature, Tensor):
        if not can_look(temperature):
            return None
        temperature = float(temperature.detach())
    return temperature if temperature >= COLDEST_WITHOUT_MAXIMUM else None


class SquareOfExponentials(Square):
    """log(1 + sum_j exp(n_j / t) / exp(p / t)), for temperatures from 0.025 up: no exponential over- or underflows."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def losses(self, S: Tensor, same: Tensor | None) -> tuple[Tensor, Saved]:
        exponentials = S.div_(self.temperature).exp_()
        of_positive = exponentials.diagonal().clone()
        exclude(exponentials, same, 0)
        of_negatives = torch.stack((exponentials.sum(1), exponentials.sum(0)))
        return torch.div(of_negatives, of_positive).log1p_(), (exponentials, of_positive, of_negatives)

    def grad_S(self, saved: Saved, upstream: Tensor, divisor: float) -> Tensor:
        exponentials, of_positive, of_negatives = saved
        factors = torch.div(upstream / (divisor * self.temperature), of_negatives + of_positive)
        of_rows, of_columns = factors.unbind()
        grad = torch.add(along(of_rows, 1), along(of_columns, 0)).mul_(exponentials)
        grad.diagonal().sub_(factors.mul_(of_negatives).sum(0))
        return grad

    def grad_parameter(self, grad_scale: Tensor, grad_shift: Tensor | None) -> Tensor:
        """The loss is a function of S / t."""
        return grad_scale.div_(-self.temperature)


def nt_xent(
    S: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    direction_weights: Sequence[float] = (1.0, 1.0),
    ids: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy, both directions.

    .. math::
        L = -\frac{1}{B} \Big( \sum_i \log \frac{\exp(s_{ii} / \tau)}{\sum_j \exp(s_{ij} / \tau)}
                             + \sum_i \log \frac{\exp(s_{ii} / \tau)}{\sum_j \exp(s_{ji} / \tau)} \Big)

    Mei et al. 2022, equation 7; Chen et al. 2020 (SimCLR).

    Args:
        S: similarities, floating ``[B, B]``; the positives are on the diagonal.
        temperature: tau, between 1e-6 and 1e6; a tensor of one number receives its gradient.
        direction_weights: (w_x, w_y), factors of the sum over the rows and of that over the columns.
        ids: integers ``[B]``; j leaves the denominator of i != j if their ids are equal. None: all j stay in it.
        reduction: "mean" is the formula above; "sum" leaves out 1/B; "none" gives the ``[B]`` terms of both sums.

    Returns:
        A scalar (``[B]`` for "none"), float64 if S is, else float32.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Note:
        The sum of both directions, not their mean: twice what CLIP implementations compute. If all similarities are
        equal the loss is 2 log B.

    >>> import torch
    >>> nt_xent(torch.eye(2), temperature=1.0)
    tensor(0.6265)
    """
    return reference_loss(
        NTXentObjective(temperature), S, ids=ids, reduction=reduction, direction_weights=direction_weights
    )


class NTXent(LossWithTemperature):
    """:func:`nt_xent` of the cosine similarities of two batches of embeddings.

    Settings are those of :class:`~crossmodal_losses.losses.temperature.LossWithTemperature`: ``temperature``, which a
    call may replace, ``learn_temperature``, and those of every :class:`PairLoss`.

    >>> import torch
    >>> NTXent(temperature=1.0)(torch.eye(2), torch.eye(2))
    tensor(0.6265)
    >>> scale = torch.tensor([2.0], requires_grad=True)  # of a model
    >>> NTXent()(torch.eye(2), torch.eye(2), temperature=1 / scale).backward()
    """

    objective_type = NTXentObjective
