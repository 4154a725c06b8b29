"""What a loss gathers over the negatives of an anchor: the hardest of them, a sum of hinges, a log-sum-exp.

A fold is defined by :meth:`Fold.of_rows`, plain differentiable torch over the whole of S. The other methods are the
same fold over one tile of S, along its rows or its columns, and the derivative of that, for the engines.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from crossmodal_losses.similarity import hardest_negative

# What stands in a tile for a pair that is no negative: less than every similarity, and finite also when divided by a
# temperature, so that a weight of 0 makes it vanish.
EXCLUDED = -1e30

# From here up exp(s / t) lies between exp(-40) and exp(40). Sums of that, and their inverses times any loss scale, are
# in the range of float32: no running maximum is needed.
COLDEST_WITHOUT_MAXIMUM = 0.025

# The entries of a tile up to which torch's max with indices is faster than arithmetic, on a CPU.
LARGEST_FOR_MAX = 128 * 128

State = tuple[Tensor, ...]


def along(values: Tensor, dim: int) -> Tensor:
    """One number an anchor, broadcast over its candidates, which lie along dim of the tile."""
    return values.unsqueeze(dim)


class Fold(ABC):
    """An associative fold over the negatives of every anchor.

    Of a tile, either the rows are the anchors and their candidates lie along dim 1, or the columns, and dim 0.
    """

    # The fold is one of the similarities: its state is (similarity, index), and all other pairs have weight 0.
    selects: ClassVar[bool] = False
    # The weight of a pair depends on the positives and the upstream gradient of the fold, on no other pair.
    one_pass: ClassVar[bool] = False

    @abstractmethod
    def of_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        """The definition: over the negatives of every row of S, ``[B, B], [B, B] bool -> [B]``."""

    def prepare(self, S: Tensor) -> Tensor:
        """A tile as the other methods want it: S itself, or something computed in its place."""
        return S

    @abstractmethod
    def of_tile(self, tile: Tensor, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        """The states of a prepared tile's anchors.

        Args:
            start: the index in the batch of the first candidate.
            positive: the similarity of each anchor's positive.
            scratch: like the tile, to compute in.
        """

    @abstractmethod
    def merge(self, first: State, then: State) -> State:
        """The state over the candidates of both, whichever have the lower indices."""

    @abstractmethod
    def finish(self, state: State, positive: Tensor) -> Tensor:
        """From the state over all candidates to the fold; numbers of any shape."""

    def coefficients(self, state: State, upstream: Tensor) -> Tensor:
        """What :meth:`weigh` wants to know of every anchor, ``[2, B]``, given dL/dfold.

        A fold of one pass does not look at the state.
        """
        return upstream

    @abstractmethod
    def weigh(
        self, tile: Tensor, dim: int, start: int, state: State, positive: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        """dL/ds of every pair of a prepared tile into ``out``, as far as its anchors along dim see it."""

    def weigh_positives(self, state: State, upstream: Tensor) -> Tensor | None:
        """dL/ds of the positives, as far as the fold itself depends on them."""
        return None

    @property
    def parameter(self) -> Tensor | None:
        """The setting that is a tensor and may want its gradient."""
        return None

    def slope(self, tile: Tensor, weights: Tensor, scratch: Tensor) -> Tensor:
        """What the pairs of a weighed tile add to the derivative in the parameter."""
        raise NotImplementedError

    def slope_of_positives(self, positive: Tensor, upstream: Tensor) -> Tensor:
        """What the positives add to it."""
        raise NotImplementedError


class Hardest(Fold):
    """max_j s_ij; of equal ones the lowest j takes the gradient."""

    selects = True

    def of_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        return hardest_negative(S, negative)

    def of_tile(self, tile: Tensor, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        if tile.device.type != "cpu" or tile.numel() <= LARGEST_FOR_MAX:
            hardest, first = tile.max(dim)  # the first of equal ones
            return hardest, first.add_(start) if start else first
        # On a CPU that can cost as much as the matrix product. Instead, number the candidates downwards: of those that
        # attain the maximum, the first has the highest number.
        count = tile.shape[dim]
        hardest = tile.amax(dim)
        downwards = torch.arange(count, 0, -1, dtype=tile.dtype, device=tile.device)
        attained = torch.eq(tile, along(hardest, dim), out=scratch).mul_(along(downwards, 1 - dim))
        first = (count - attained.amax(dim)).clamp_(max=count - 1)  # nothing equals a NaN
        return hardest, first.long().add_(start)

    def merge(self, first: State, then: State) -> State:
        harder = (then[0] > first[0]) | ((then[0] == first[0]) & (then[1] < first[1]))
        return torch.where(harder, then[0], first[0]), torch.where(harder, then[1], first[1])

    def finish(self, state: State, positive: Tensor) -> Tensor:
        return state[0]

    def weigh(
        self, tile: Tensor, dim: int, start: int, state: State, positive: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        out.zero_().scatter_(dim, along(state[1] - start, dim), along(coefficients, dim))


class HingeSum(Fold):
    """sum_j [m + s_ij - s_ii]_+, with gradient 0 where a hinge is at 0."""

    one_pass = True

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def of_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        positive = S.diagonal()[:, None]
        return ((self.margin + S - positive).relu() * negative).sum(1)

    def _hinges(self, tile: Tensor, dim: int, positive: Tensor, out: Tensor) -> Tensor:
        return torch.add(tile, along(self.margin - positive, dim), out=out).relu_()

    def of_tile(self, tile: Tensor, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        hinges = self._hinges(tile, dim, positive, scratch)
        total = hinges.sum(dim)
        return total, hinges.sign_().sum(dim)  # and the number of violating negatives

    def merge(self, first: State, then: State) -> State:
        return first[0] + then[0], first[1] + then[1]

    def finish(self, state: State, positive: Tensor) -> Tensor:
        return state[0]

    def weigh(
        self, tile: Tensor, dim: int, start: int, state: State, positive: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        self._hinges(tile, dim, positive, out).sign_().mul_(along(coefficients, dim))

    def weigh_positives(self, state: State, upstream: Tensor) -> Tensor:
        return -upstream * state[1]


class LogSumExp(Fold):
    """log sum_j exp((s_ij - s_ii) / t)."""

    def __init__(self, temperature: float | Tensor) -> None:
        self.temperature = temperature

    @property
    def is_warm(self) -> bool:
        """Whether one exp(s / t) serves both directions. The value of a tensor takes waiting for: then not."""
        return not isinstance(self.temperature, Tensor) and self.temperature >= COLDEST_WITHOUT_MAXIMUM

    @property
    def parameter(self) -> Tensor | None:
        return self.temperature if isinstance(self.temperature, Tensor) else None

    def of_rows(self, S: Tensor, negative: Tensor) -> Tensor:
        # In this form a loss near 0 keeps all its digits, and so does its gradient.
        difference = (S - S.diagonal()[:, None]) / self.temperature
        return difference.masked_fill(~negative, torch.finfo(S.dtype).min).logsumexp(1)

    def prepare(self, S: Tensor) -> Tensor:
        S.div_(self.temperature)
        return S.exp_() if self.is_warm else S

    def of_tile(self, tile: Tensor, dim: int, start: int, positive: Tensor, scratch: Tensor) -> State:
        if self.is_warm:
            return (tile.sum(dim),)
        largest = tile.amax(dim)
        return (torch.sub(tile, along(largest, dim), out=scratch).exp_().sum(dim).log_().add_(largest),)

    def merge(self, first: State, then: State) -> State:
        return (first[0] + then[0] if self.is_warm else torch.logaddexp(first[0], then[0]),)

    def finish(self, state: State, positive: Tensor) -> Tensor:
        log = state[0].log() if self.is_warm else state[0]
        return log - positive / self.temperature

    def coefficients(self, state: State, upstream: Tensor) -> Tensor:
        slope = upstream / self.temperature
        if self.is_warm:  # the sum is 0 where there is no negative, and so is the slope
            slope.div_(state[0].clamp(min=torch.finfo(slope.dtype).tiny))
        return slope

    def weigh(
        self, tile: Tensor, dim: int, start: int, state: State, positive: Tensor, coefficients: Tensor, out: Tensor
    ) -> None:
        if self.is_warm:
            torch.mul(tile, along(coefficients, dim), out=out)
        else:
            torch.sub(tile, along(state[0], dim), out=out).exp_().mul_(along(coefficients, dim))

    def weigh_positives(self, state: State, upstream: Tensor) -> Tensor:
        return upstream / -self.temperature

    def slope(self, tile: Tensor, weights: Tensor, scratch: Tensor) -> Tensor:
        return -torch.mul(tile, weights, out=scratch).sum()

    def slope_of_positives(self, positive: Tensor, upstream: Tensor) -> Tensor:
        return (upstream * positive).sum() / self.temperature**2
