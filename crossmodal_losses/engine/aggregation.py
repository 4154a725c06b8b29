"""Aggregations over the candidates of an anchor: the hardest negative, a sum of hinges, a log-sum-exp.

An aggregation is defined by :meth:`Aggregation.over_rows`, plain differentiable torch over the whole of S. The other
methods compute the same over one tile of S, along its rows or its columns, and the derivative of that, for the engines.
A loss may define one of its own, in its file.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.similarity import hardest_negative

# Stands in a tile for a pair that is no negative: less than every similarity, and finite also when divided by a
# temperature, so that a factor of 0 makes it vanish.
EXCLUDED = -1e30

# From here up exp(s / t) lies between exp(-40) and exp(40). Sums of that, and their inverses times any loss scale, are
# in the range of float32: no running maximum is needed.
COLDEST_WITHOUT_MAXIMUM = 0.025

# The entries of a tile up to which torch's max with indices is faster than arithmetic, on a CPU.
LARGEST_FOR_MAX = 128 * 128

State = tuple[Tensor, ...]


def along(values: Tensor, dim: int) -> Tensor:
    """Broadcast one number per anchor over its candidates, which lie along dim of the tile."""
    return values.unsqueeze(dim)


class Tile(NamedTuple):
    """The similarities of some rows with some columns; after :meth:`Aggregation.prepare`, in the form that it takes."""

    values: Tensor
    same: Tensor | None  # 1 where row and column have one id, else 0; None: without ids
    diagonal: bool  # whether the positives are on the diagonal; elsewhere there are none


class Kernel(NamedTuple):
    """An aggregation as epilogue_triton.py has it: a name in the list there, and its settings."""

    name: str
    settings: tuple[float | Tensor, ...] = ()


class Aggregation(ABC):
    """An associative reduction over the candidates of every anchor; by default, over its negatives.

    In a tile either the rows are the anchors and their candidates lie along dim 1, or the columns, and dim 0.
    """

    # The aggregate is one of the similarities. The state is (similarity, index); all other pairs have gradient 0.
    selects: ClassVar[bool] = False
    # The gradient of a pair depends on positives and on the gradient of the aggregate, on no other pair.
    one_pass: ClassVar[bool] = False
    # Most pairs of a trained model have gradient 0.
    sparse: ClassVar[bool] = False

    @abstractmethod
    def over_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        """Aggregate over the rows of S: the definition, ``[B, C], [B, C] bool -> [B]``.

        The i-th candidate is the positive of the i-th row; which ones are its negatives, the second argument says.
        """

    def prepare(self, tile: Tile) -> Tile:
        """Turn a tile of similarities, in place, into the form that the other methods take."""
        return exclude(tile)

    @abstractmethod
    def tile_state(self, tile: Tile, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        """Reduce a prepared tile, whose first candidate has index start, along dim to the states of its anchors."""

    @abstractmethod
    def merge(self, first: State, second: State) -> State:
        """Combine the states of two disjoint sets of candidates, in any order."""

    @abstractmethod
    def finish(self, state: State, positive: Tensor) -> Tensor:
        """Turn the state over all candidates into the aggregate, elementwise."""

    def anchor_factors(self, state: State, grad_aggregate: Tensor) -> Tensor:
        """Per-anchor factors for the gradient of a tile, ``[k, B]``. For one_pass the state is not read."""
        return grad_aggregate

    def largest_gradient(self, state: State, factors: Tensor) -> Tensor:
        """Upper bounds of abs(dL/ds_ij) over the candidates of every anchor, ``[k, B]``."""
        return factors.abs()

    @abstractmethod
    def grad_tile(
        self, tile: Tile, dim: int, start: int, state: State, positive: Tensor, factors: Tensor, out: Tensor
    ) -> None:
        """Write dL/dS of a prepared tile into ``out``, for the anchors whose candidates lie along dim."""

    def grad_positive(self, state: State, positive: Tensor, grad_aggregate: Tensor) -> Tensor | None:
        """dL/ds of the positives through the aggregate; None stands for 0."""
        return None

    @property
    def kernel(self) -> Kernel | None:
        """How the kernels of tiles on CUDA call it, if they know it. A subclass says it anew."""
        return None

    @property
    def parameter(self) -> Tensor | None:
        """The setting that is a tensor and may need a gradient."""
        return None

    def grad_parameter(self, tile: Tile, grad_S: Tensor, scratch: Tensor) -> Tensor:
        """Contribution of a prepared tile to the gradient of the parameter."""
        raise NotImplementedError

    def grad_parameter_of_positives(self, positive: Tensor, grad_positive: Tensor) -> Tensor:
        """Contribution of the positives to the gradient of the parameter, given dL/ds of them."""
        raise NotImplementedError


def exclude(tile: Tile) -> Tile:
    """Put EXCLUDED in the place of pairs that are no negatives."""
    if tile.same is not None:
        tile.values.add_(tile.same, alpha=EXCLUDED)
    elif tile.diagonal:
        tile.values.fill_diagonal_(EXCLUDED)
    return tile


class HardestNegative(Aggregation):
    """max_j s_ij; of equal ones the lowest j takes the gradient."""

    selects = True
    kernel = Kernel("hardest")

    def over_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        return hardest_negative(S, negative)

    def tile_state(self, tile: Tile, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        """Similarity and index of the hardest negative."""
        values = tile.values
        if values.device.type != "cpu" or values.numel() <= LARGEST_FOR_MAX:
            hardest, first = values.max(dim)  # the first of equal ones
            return hardest, first.add_(start) if start else first
        # On a CPU that can cost as much as the matrix product. Instead, number the candidates downwards: of those that
        # attain the maximum, the first has the highest number.
        count = values.shape[dim]
        hardest = values.amax(dim)
        downwards = torch.arange(count, 0, -1, dtype=values.dtype, device=values.device)
        attained = torch.eq(values, along(hardest, dim), out=scratch).mul_(along(downwards, 1 - dim))
        first = (count - attained.amax(dim)).clamp_(max=count - 1)  # nothing equals a NaN
        return hardest, first.long().add_(start)

    def merge(self, first: State, second: State) -> State:
        harder = (second[0] > first[0]) | ((second[0] == first[0]) & (second[1] < first[1]))
        return torch.where(harder, second[0], first[0]), torch.where(harder, second[1], first[1])

    def finish(self, state: State, positive: Tensor) -> Tensor:
        return state[0]

    def grad_tile(
        self, tile: Tile, dim: int, start: int, state: State, positive: Tensor, factors: Tensor, out: Tensor
    ) -> None:
        """The factor at the hardest negative, 0 elsewhere. The tile is the whole of S."""
        out.zero_().scatter_(dim, along(state[1] - start, dim), along(factors, dim))


@dataclass(frozen=True)
class HingeSum(Aggregation):
    """sum_j [m + s_ij - s_ii]_+, with gradient 0 where a hinge is at 0."""

    margin: float

    one_pass = True
    sparse = True

    @property
    def kernel(self) -> Kernel:
        return Kernel("hinges", (self.margin,))

    def over_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        positive = S.diagonal()[:, None]
        return ((self.margin + S - positive).relu() * negative).sum(1)

    def _hinges(self, tile: Tile, dim: int, positive: Tensor, out: Tensor) -> Tensor:
        return torch.add(tile.values, along(self.margin - positive, dim), out=out).relu_()

    def tile_state(self, tile: Tile, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        """Sum of the hinges, and the number of violating negatives."""
        hinges = self._hinges(tile, dim, positive, scratch)
        return hinges.sum(dim), hinges.sign_().sum(dim)  # the hinges above 0 are the violating negatives

    def merge(self, first: State, second: State) -> State:
        return first[0] + second[0], first[1] + second[1]

    def finish(self, state: State, positive: Tensor) -> Tensor:
        return state[0]

    def grad_tile(
        self, tile: Tile, dim: int, start: int, state: State, positive: Tensor, factors: Tensor, out: Tensor
    ) -> None:
        self._hinges(tile, dim, positive, out).sign_().mul_(along(factors, dim))

    def grad_positive(self, state: State, positive: Tensor, grad_aggregate: Tensor) -> Tensor:
        return -grad_aggregate * state[1]


@dataclass(frozen=True)
class LogSumExp(Aggregation):
    """log sum_j exp((s_ij - s_ii) / t)."""

    temperature: float | Tensor

    @property
    def is_warm(self) -> bool:
        """True if one exp(s / t) serves both directions; not for a tensor: reading it takes waiting for the device."""
        return not isinstance(self.temperature, Tensor) and self.temperature >= COLDEST_WITHOUT_MAXIMUM

    @property
    def kernel(self) -> Kernel:
        return Kernel("exponentials" if self.is_warm else "logarithm", (self.temperature,))

    @property
    def parameter(self) -> Tensor | None:
        """The temperature, if it is a tensor."""
        return self.temperature if isinstance(self.temperature, Tensor) else None

    def over_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        # In this form a loss near 0 keeps all its digits, and so does its gradient.
        # Not S.diagonal(): for the gradient of that, torch 2.11 to 2.15 compiles wrong code on a CPU. Nor S.gather():
        # the gradient of that is compiled to a call of its own.
        i = torch.arange(S.shape[0], device=S.device)[:, None]
        itself = i == torch.arange(S.shape[1], device=S.device)
        positive = torch.where(itself, S, 0).sum(1, keepdim=True)
        difference = (S - positive) / self.temperature
        return difference.masked_fill(~negative, torch.finfo(S.dtype).min).logsumexp(1)

    def prepare(self, tile: Tile) -> Tile:
        """exp(s / t) if warm, else s / t."""
        values = exclude(tile).values.div_(self.temperature)
        if self.is_warm:
            values.exp_()
        return tile

    def tile_state(self, tile: Tile, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        """sum_j exp(s_ij / t) if warm, else its logarithm."""
        return (tile.values.sum(dim) if self.is_warm else log_sum_exp(tile.values, dim, scratch),)

    def merge(self, first: State, second: State) -> State:
        return (first[0] + second[0] if self.is_warm else torch.logaddexp(first[0], second[0]),)

    def finish(self, state: State, positive: Tensor) -> Tensor:
        log = state[0].log() if self.is_warm else state[0]
        return log - positive / self.temperature

    def anchor_factors(self, state: State, grad_aggregate: Tensor) -> Tensor:
        """dL/d aggregate / t, if warm divided by sum_j exp(s_ij / t)."""
        factors = grad_aggregate / self.temperature
        if self.is_warm:  # the sum is 0 where there is no negative, and so is the gradient
            factors.div_(state[0].clamp(min=torch.finfo(factors.dtype).tiny))
        return factors

    def largest_gradient(self, state: State, factors: Tensor) -> Tensor:
        """No exp(s / t) is larger than the sum of all."""
        return (factors * state[0] if self.is_warm else factors).abs()

    def grad_tile(
        self, tile: Tile, dim: int, start: int, state: State, positive: Tensor, factors: Tensor, out: Tensor
    ) -> None:
        if self.is_warm:
            torch.mul(tile.values, along(factors, dim), out=out)
        else:
            torch.sub(tile.values, along(state[0], dim), out=out).exp_().mul_(along(factors, dim))

    def grad_positive(self, state: State, positive: Tensor, grad_aggregate: Tensor) -> Tensor:
        return grad_aggregate / -self.temperature

    def grad_parameter(self, tile: Tile, grad_S: Tensor, scratch: Tensor) -> Tensor:
        """-sum_ij dL/ds_ij s_ij / t; the parameter is learned, so the tile is s / t."""
        return -torch.mul(tile.values, grad_S, out=scratch).sum()

    def grad_parameter_of_positives(self, positive: Tensor, grad_positive: Tensor) -> Tensor:
        """-sum_i dL/ds_ii s_ii / t: the loss is a function of S / t."""
        return (grad_positive * positive).sum() / -self.temperature


def log_sum_exp(values: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """log sum_j exp(v_j) along dim of a tile, shifted by the largest v_j."""
    largest = values.amax(dim)
    return torch.sub(values, along(largest, dim), out=scratch).exp_().sum(dim).log_().add_(largest)
