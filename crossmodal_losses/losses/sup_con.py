"""Several positives: all items of the anchor's id are to be found among all candidates, by softmax."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from crossmodal_losses.checks import Reduction, check_temperature
from crossmodal_losses.engine.aggregation import EXCLUDED, Aggregation, Kernel, State, Tile, along, log_sum_exp
from crossmodal_losses.engine.objective import Formula, Objective
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.engine.square import Saved, Square
from crossmodal_losses.losses.nt_xent import NTXentObjective, SquareOfExponentials, warm_temperature
from crossmodal_losses.losses.temperature import LossWithTemperature


@dataclass(frozen=True)
class SoftmaxOfSeveral(Aggregation):
    """log sum_j exp(s_ij / t) - mean_p s_ip / t over all candidates j, and over the positives p, i among both.

    With h = log sum_{j != i} exp((s_ij - s_ii) / t) and P positives that is log(1 + exp(h)) - sum_p (s_ip - s_ii) / (P
    t), which keeps its digits where it is near 0.
    """

    temperature: float | Tensor

    @property
    def kernel(self) -> Kernel:
        return Kernel("several", (self.temperature,))

    @property
    def parameter(self) -> Tensor | None:
        """The temperature, if it is a tensor."""
        return self.temperature if isinstance(self.temperature, Tensor) else None

    def over_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        i = torch.arange(S.shape[0], device=S.device)[:, None]
        itself = i == torch.arange(S.shape[1], device=S.device)
        difference = (S - torch.where(itself, S, 0).sum(1, keepdim=True)) / self.temperature
        h = difference.masked_fill(itself, torch.finfo(S.dtype).min).logsumexp(1)
        positives = (~negative).sum(1)
        return softplus(h, threshold=40) - (difference * ~negative).sum(1) / positives

    def prepare(self, tile: Tile) -> Tile:
        """s / t; the pair itself counts apart."""
        if tile.diagonal:
            tile.values.fill_diagonal_(EXCLUDED)
            if tile.same is not None:
                tile.same.fill_diagonal_(0)
        tile.values.div_(self.temperature)
        return tile

    def tile_state(self, tile: Tile, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        """log sum_j exp(s_ij / t), sum_p s_ip / t, and the number of p, over j != i and p != i."""
        log = log_sum_exp(tile.values, dim, scratch)
        if tile.same is None:
            return log, torch.zeros_like(log), torch.zeros_like(log)
        return log, torch.mul(tile.values, tile.same, out=scratch).sum(dim), tile.same.sum(dim)

    def merge(self, first: State, second: State) -> State:
        return torch.logaddexp(first[0], second[0]), first[1] + second[1], first[2] + second[2]

    def finish(self, state: State, positive: Tensor) -> Tensor:
        log, total, count = state
        own = positive / self.temperature
        return softplus(log - own, threshold=40) - (total - count * own) / (count + 1)

    def anchor_factors(self, state: State, grad_aggregate: Tensor) -> Tensor:
        return grad_aggregate / self.temperature

    def grad_tile(
        self, tile: Tile, dim: int, start: int, state: State, positive: Tensor, factors: Tensor, out: Tensor
    ) -> None:
        """exp(s_ij / t) over the sum of these, less 1 / P for the positives."""
        log, _, count = state
        log = torch.logaddexp(log, positive / self.temperature)
        torch.sub(tile.values, along(log, dim), out=out).exp_()
        if tile.same is not None:
            out.sub_(tile.same / along(count + 1, dim))
        out.mul_(along(factors, dim))

    def grad_positive(self, state: State, positive: Tensor, grad_aggregate: Tensor) -> Tensor:
        """The softmax of the positive, less 1 / P; written so that it keeps its digits where it is near 0."""
        log, _, count = state
        not_found = (log - positive / self.temperature).sigmoid()
        return (count / (count + 1) - not_found) * grad_aggregate / self.temperature

    def grad_parameter(self, tile: Tile, grad_S: Tensor, scratch: Tensor) -> Tensor:
        """-sum_ij dL/ds_ij s_ij / t: the loss is a function of S / t."""
        return -torch.mul(tile.values, grad_S, out=scratch).sum()

    def grad_parameter_of_positives(self, positive: Tensor, grad_positive: Tensor) -> Tensor:
        return (grad_positive * positive).sum() / -self.temperature


@dataclass(frozen=True)
class SupConObjective(Objective):
    """The aggregate itself."""

    temperature: float | Tensor

    checks: ClassVar = {"temperature": check_temperature}
    needs_negatives = False

    @property
    def aggregation(self) -> SoftmaxOfSeveral:
        return SoftmaxOfSeveral(self.temperature)

    def anchor_loss(self, positive: Tensor, aggregate: Tensor) -> Tensor:
        return aggregate

    def derivatives(self, positive: Tensor, aggregate: Tensor, loss: Tensor) -> tuple[None, Tensor]:
        """0 in p beyond the aggregate, 1 in the aggregate."""
        return None, torch.ones_like(aggregate)

    @property
    def square(self) -> Square | None:
        t = warm_temperature(self.temperature)
        return None if t is None else SquareOfSeveral(t)

    @property
    def formula(self) -> Formula:
        t = self.temperature
        return Formula("softmax of several", (0.0 if isinstance(t, Tensor) else t,))

    def without_ids(self) -> NTXentObjective:
        """With one positive an anchor it is NT-Xent."""
        return NTXentObjective(self.temperature)


class SquareOfSeveral(SquareOfExponentials):
    """log(1 + sum_{j != i} exp(s_ij / t) / exp(s_ii / t)) - sum_p (s_ip - s_ii) / (P t), p = i among the P positives.

    For temperatures from 0.025 up.
    """

    def losses(self, S: Tensor, same: Tensor | None) -> tuple[Tensor, Saved]:
        assert same is not None, "expected ids: without them it is NT-Xent"
        positives, count = torch.mul(S, same), same.sum(1, dtype=S.dtype)
        means = torch.stack((positives.sum(1), positives.sum(0))).div_(count)
        of_several = means.sub_(S.diagonal()).div_(self.temperature)
        losses, saved = super().losses(S, None)
        return losses.sub_(of_several), (*saved, same, count)

    def grad_S(self, saved: Saved, upstream: Tensor, divisor: float) -> Tensor:
        *of_all, same, count = saved
        grad = super().grad_S(tuple(of_all), upstream, divisor)
        upstream = upstream / (divisor * self.temperature)
        share = upstream / count
        shares = torch.add(along(share, 1), along(share, 0)).mul_(same)
        shares.diagonal().sub_(upstream, alpha=2)  # exactly 0 with one positive
        return grad.sub_(shares)


def sup_con(
    S: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    direction_weights: Sequence[float] = (1.0, 1.0),
    ids: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Supervised contrastive loss: the mean log-likelihood of all positives of an anchor, both directions.

    .. math::
        L = -\frac{1}{B} \sum_i \frac{1}{|P(i)|} \sum_{p \in P(i)}
            \log \frac{\exp(s_{ip} / \tau)}{\sum_j \exp(s_{ij} / \tau)}
          + \log \frac{\exp(s_{pi} / \tau)}{\sum_j \exp(s_{ji} / \tau)}

    Khosla et al. 2020, L_out, across two modalities. P(i) are all j with the id of i, i itself among them.

    Args:
        S: similarities, floating ``[B, B]``; pairs are on the diagonal.
        temperature: tau, between 1e-6 and 1e6; a tensor of one number receives its gradient.
        direction_weights: (w_x, w_y), factors of the sum over the rows and of that over the columns.
        ids: integers ``[B]``; j is a positive of i if their ids are equal. None: this is :func:`nt_xent`.
        reduction: "mean" is the formula above; "sum" leaves out 1/B; "none" gives the ``[B]`` terms of the sum over i.

    Returns:
        A scalar (``[B]`` for "none"), float64 if S is, else float32.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Note:
        It follows the formula also where an anchor has positives alone; B = 1 gives 0. With P positives an anchor costs
        at least log P, where it finds all of them alike. ``SupConLoss`` of pytorch-metric-learning, given x as
        embeddings and y as references, is one direction of it.

    >>> sup_con(torch.eye(2), temperature=1.0)
    tensor(0.6265)
    >>> sup_con(torch.ones(2, 2), ids=torch.tensor([5, 5]))  # 2 log 2
    tensor(1.3863)
    """
    objective = SupConObjective(temperature)
    return reference_loss(objective, S, ids=ids, reduction=reduction, direction_weights=direction_weights)


class SupCon(LossWithTemperature):
    """:func:`sup_con` of the cosine similarities of two batches of embeddings.

    Extra candidates with the anchor's id are positives, too.

    Settings are those of :class:`~crossmodal_losses.losses.temperature.LossWithTemperature`.

    >>> SupCon(temperature=1.0)(torch.eye(2), torch.eye(2))
    tensor(0.6265)
    """

    objective_type = SupConObjective
