"""Objectives: the loss of an anchor, made of its positive and of an aggregation over its candidates; and their total.

Direction 0 has the x_i as anchors, the rows of S, and the y_j as candidates; direction 1 the other way round.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.engine.aggregation import Aggregation, State
from crossmodal_losses.engine.operands import Operand, Operands
from crossmodal_losses.engine.square import Square


class Formula(NamedTuple):
    r"""The loss of an anchor as the kernels of small batches on CUDA know it: a name, and at most 8 numbers.

    ==================  ===============================================================================================
    hinges              sum_j [m + n_j - p]_+: m
    polynomials         [A(p) + B(max_j n_j)]_+, A(s) = a_0 + a_1 s + a_2 s^2: a_0, a_1, a_2, b_0, b_1, b_2
    mined polynomials   [A(p)]_+ + [B(n)]_+ if n = max_j n_j > p - m and p < q, else 0: the same six, m, q
    softmax             log(1 + sum_j exp((n_j - p) / t)): t, or 0 where the aggregation's parameter is t
    warm softmax        the same from t = 0.025 up
    softmax of several  that over all other pairs, less the mean of (s - p) / t over the pairs of the anchor's id: t
    pairs               sum_j log(1 + exp(n_j / t + b)) + log(1 + exp(-p / t - b)), of the rows alone: t, b
    ==================  ===============================================================================================
    """

    name: str
    numbers: tuple[float, ...]


class Objective(ABC):
    """The loss of one anchor in one direction. A subclass is a frozen dataclass of the settings.

    Settings are floats, tuples of floats, and at most one tensor, the aggregation's parameter.
    """

    registry: ClassVar[dict[str, type["Objective"]]] = {}
    __match_args__: ClassVar[tuple[str, ...]]  # the names of the settings, as dataclass leaves them
    checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {}  # of settings; a check returns what is kept
    # An anchor without a negative costs exactly 0, whatever the equation says.
    needs_negatives: ClassVar[bool] = True
    # Every pair (x_i, y_j) counts once, in direction 0, not once for each of its anchors.
    pairs_once: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, check in self.checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def __init_subclass__(cls) -> None:
        """Register the class for the custom operator."""
        Objective.registry[cls.name()] = cls

    @classmethod
    def name(cls) -> str:
        """Name under which the custom operator looks the objective up."""
        return f"{cls.__module__}.{cls.__qualname__}"

    @property
    @abstractmethod
    def aggregation(self) -> Aggregation:
        """The aggregation over the negatives."""

    @abstractmethod
    def anchor_loss(self, positive: Tensor, aggregate: Tensor) -> Tensor:
        """The loss of an anchor in one direction, elementwise."""

    @abstractmethod
    def derivatives(self, positive: Tensor, aggregate: Tensor, loss: Tensor) -> tuple[Tensor | None, Tensor]:
        """Derivatives of :meth:`anchor_loss`, which gave the loss, in the positive (None: 0) and in the aggregate."""

    @property
    def square(self) -> Square | None:
        """A form in few operators for small batches of pairs, if there is one."""
        return None

    @property
    def formula(self) -> Formula | None:
        """The form of small batches on CUDA, if their kernels know it."""
        return None

    def without_ids(self) -> "Objective":
        """The objective of a batch without ids, where a simpler one is the same."""
        return self

    def numbers(self) -> list[float]:
        """Encode the settings for the custom operator; the parameter is passed beside them.

        The length, then the numbers of a sequence; -1, then a number; -2 for the parameter.
        """
        numbers: list[float] = []
        for value in (getattr(self, name) for name in self.__match_args__):
            if isinstance(value, Tensor):
                numbers.append(-2)
            elif isinstance(value, Sequence):
                numbers += [len(value), *value]
            else:
                numbers += [-1, value]
        return numbers

    @classmethod
    def from_numbers(cls, numbers: Sequence[float], parameter: Tensor | None) -> "Objective":
        """Decode :meth:`numbers`."""
        settings: list[float | tuple[float, ...] | Tensor | None] = []
        rest = iter(numbers)
        for kind in rest:
            if kind >= 0:
                settings.append(tuple(islice(rest, int(kind))))
            else:
                settings.append(next(rest) if kind == -1 else parameter)
        return cls(*settings)


class Total(NamedTuple):
    """How the losses of the anchors are added up."""

    reduction: Reduction = "mean"
    weights: tuple[float, float] = (1.0, 1.0)  # of the two directions

    def divisor(self, B: int) -> float:
        """What the sum of all anchors' losses is divided by, where the directions have one weight."""
        return (B if self.reduction == "mean" else 1) / self.weights[0]


# A part of S: rows and columns, each with its index among the parts, and the directions in which it counts.
Region = tuple[int, Operand, int, Operand, tuple[int, ...]]


class Directions(NamedTuple):
    """Which directions are computed, and where the losses of their anchors go."""

    used: tuple[int, ...]
    of_pairs: tuple[int, ...]  # those in which x_i and y_j are candidates of each other
    slots: dict[int, int]  # the place of each direction in a state, [k, B]
    weights: tuple[float, ...]  # of the k slots

    @classmethod
    def of(cls, objective: Objective, total: Total) -> "Directions":
        """Those with a weight; with pairs_once, both go to the pair, and x_i and y_j meet once."""
        if objective.pairs_once:
            return cls((0, 1), (0,), {0: 0, 1: 0}, (1.0,))
        used = tuple(k for k in (0, 1) if total.weights[k])
        return cls(used, used, {k: slot for slot, k in enumerate(used)}, tuple(total.weights[k] for k in used))

    def weighted(self, values: Tensor) -> Tensor:
        """Multiply the values of every slot, ``[k, n]``, by its weight."""
        if set(self.weights) == {1.0}:
            return values
        return torch.stack([weight * value for weight, value in zip(self.weights, values.unbind(), strict=True)])

    def rows_beside(self, part: int, operands: Operands) -> list[tuple[int, Operand, tuple[int, ...]]]:
        """The local rows that meet the columns of y (part 0), or those of its candidates without a partner (part 1).

        Each with its index among the operands, and the directions that count. Candidates without a partner are never
        compared with each other.
        """
        x, negatives_x = operands.x, operands.negatives_x
        if part == 1:
            return [(0, x, (0,))] if 0 in self.used else []
        if negatives_x is None or not len(negatives_x.rows) or 1 not in self.used:
            return [(0, x, self.of_pairs)]
        return [(0, x, self.of_pairs), (2, negatives_x, (1,))]

    def regions(self, operands: Operands) -> list[Region]:
        """The parts of S of a single process."""
        columns = [(0, 1, operands.y)]
        if operands.negatives_y is not None and len(operands.negatives_y.rows):
            columns.append((1, 3, operands.negatives_y))
        return [
            (i, row, j, column, of_region)
            for part, j, column in columns
            for i, row, of_region in self.rows_beside(part, operands)
        ]


def stacked(states: Sequence[State | None]) -> State:
    """The state of all slots, each part ``[k, n]``."""
    return tuple(torch.stack(parts) for parts in zip(*[state for state in states if state is not None], strict=True))


# How many candidates without a partner there are in a direction, and their ids.
Others = tuple[int, Tensor | None]


def have_negatives(
    objective: Objective, directions: Directions, positive: Tensor, ids: Tensor | None, others: Sequence[Others]
) -> Tensor | None:
    """Whether the anchors of each slot have negatives, bool ``[]`` or ``[k, 1]``; None stands for true.

    Positives and ids, ``[B]``, are those of all pairs. In each slot either every anchor has a negative or none has: of
    pairs with different ids each is a negative of the other.
    """
    if not objective.needs_negatives:
        return None
    in_batch: bool | Tensor = positive.shape[0] > 1 if ids is None else (ids != ids[0]).any()
    found = [in_batch] * len(directions.weights)
    for k in directions.used:
        count, other_ids = others[k]
        if count:
            slot = directions.slots[k]
            found[slot] = found[slot] | (True if ids is None or other_ids is None else (other_ids != ids[0]).any())
    if all(has is True for has in found):
        return None
    flags = [has if isinstance(has, Tensor) else positive.new_full((), has, dtype=torch.bool) for has in found]
    return flags[0] if all(has is found[0] for has in found) else torch.stack(flags)[:, None]


class Anchors(NamedTuple):
    """The local anchors of the directions that are computed."""

    directions: Directions
    positive: Tensor  # similarities of the positives, [rows]
    state: State  # of the aggregation over all candidates, each part [k, rows]
    aggregate: Tensor  # finished, [k, rows]
    has_negative: Tensor | None  # bool, [] or [k, 1]; None stands for true

    @classmethod
    def of(
        cls,
        objective: Objective,
        directions: Directions,
        positive: Tensor,
        state: State,
        has_negative: Tensor | None,
        nan_factor: Tensor | None,
    ) -> "Anchors":
        """The anchors with that state; their loss is NaN if the factor is."""
        aggregate = objective.aggregation.finish(state, positive)
        if nan_factor is not None:
            positive, aggregate = positive * nan_factor, aggregate * nan_factor
        return cls(directions, positive, state, aggregate, has_negative)

    def loss(self, objective: Objective, reduction: Reduction, B: int) -> Tensor:
        """The loss; of some of the B anchors, their part of the loss."""
        anchors = objective.anchor_loss(self.positive, self.aggregate)
        if self.has_negative is not None:
            anchors = torch.where(self.has_negative, anchors, 0 * self.positive)
        anchors = self.directions.weighted(anchors)
        if reduction == "none":
            return anchors.sum(0)
        return anchors.sum() / B if reduction == "mean" else anchors.sum()

    def gradients(self, objective: Objective, reduction: Reduction, B: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dpositive ``[rows]`` and dL/daggregate ``[k, rows]``, given the gradient of what :meth:`loss` returned."""
        if reduction == "mean":
            upstream = upstream / B
        loss = objective.anchor_loss(self.positive, self.aggregate)
        direct, grad_aggregate = objective.derivatives(self.positive, self.aggregate, loss)
        grad_aggregate = self.directions.weighted(grad_aggregate * upstream)
        if direct is not None:
            direct = self.directions.weighted(direct * upstream)
        if self.has_negative is not None:
            grad_aggregate = torch.where(self.has_negative, grad_aggregate, 0)
            if direct is not None:
                direct = torch.where(self.has_negative, direct, 0)
        grad_positive = grad_of_positives(objective.aggregation, self.state, self.positive, grad_aggregate, direct)
        return grad_positive, grad_aggregate


def grad_of_positives(
    aggregation: Aggregation, state: State, positive: Tensor, grad_aggregate: Tensor, direct: Tensor | None = None
) -> Tensor:
    """dL/dpositive, ``[rows]``: through the aggregate, and directly through the loss of an anchor."""
    through = aggregation.grad_positive(state, positive, grad_aggregate)
    if direct is None:
        return grad_aggregate.new_zeros(grad_aggregate.shape[1]) if through is None else through.sum(0)
    return (direct if through is None else direct + through).expand_as(grad_aggregate).sum(0)
