"""Objectives: the loss of an anchor, made of its positive and of an aggregation over its negatives."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.engine.aggregation import Aggregation, State


class Objective(ABC):
    """The loss of one anchor in one direction. A subclass is a frozen dataclass of the settings.

    Settings are floats, tuples of floats, and at most one tensor, the aggregation's parameter.
    """

    registry: ClassVar[dict[str, type["Objective"]]] = {}
    __match_args__: ClassVar[tuple[str, ...]]  # the names of the settings, as dataclass leaves them
    checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {}  # of settings; a check returns what is kept

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
    def derivatives(self, positive: Tensor, aggregate: Tensor) -> tuple[Tensor | None, Tensor]:
        """Derivatives of :meth:`anchor_loss` in the positive (None: 0) and in the aggregate."""

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


class Anchors(NamedTuple):
    """The local anchors: rows first, then columns. If two ids differ every anchor has a negative, if not, none has."""

    positive: Tensor  # similarities of the positives, [rows]
    state: State  # of the aggregation over all candidates, each part [2, rows]
    aggregate: Tensor  # finished, [2, rows]
    has_negative: Tensor | None  # bool []; None stands for true

    @classmethod
    def of(
        cls, objective: Objective, positive: Tensor, state: State, ids: Tensor | None, B: int, nan_factor: Tensor | None
    ) -> "Anchors":
        """The anchors with that state in a batch of B pairs with those ids."""
        aggregate = objective.aggregation.finish(state, positive)
        if nan_factor is not None:
            positive, aggregate = positive * nan_factor, aggregate * nan_factor
        if ids is None:
            return cls(positive, state, aggregate, None if B > 1 else torch.zeros_like(positive[0], dtype=torch.bool))
        return cls(positive, state, aggregate, (ids != ids[0]).any())

    def loss(self, objective: Objective, reduction: Reduction, B: int) -> Tensor:
        """The loss; of some of the B anchors, their part of the loss."""
        anchors = objective.anchor_loss(self.positive, self.aggregate)
        if self.has_negative is not None:
            anchors = torch.where(self.has_negative, anchors, 0 * self.positive)
        if reduction == "none":
            return anchors.sum(0)
        return anchors.sum() / B if reduction == "mean" else anchors.sum()

    def gradients(self, objective: Objective, reduction: Reduction, B: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dpositive ``[rows]`` and dL/daggregate ``[2, rows]``, given the gradient of what :meth:`loss` returned."""
        if reduction == "mean":
            upstream = upstream / B
        direct, grad_aggregate = objective.derivatives(self.positive, self.aggregate)
        grad_aggregate = grad_aggregate * upstream
        if direct is not None:
            direct = direct * upstream
        if self.has_negative is not None:
            grad_aggregate = torch.where(self.has_negative, grad_aggregate, 0)
            if direct is not None:
                direct = torch.where(self.has_negative, direct, 0)
        return grad_of_positives(objective.aggregation, self.state, grad_aggregate, direct), grad_aggregate


def grad_of_positives(
    aggregation: Aggregation, state: State, grad_aggregate: Tensor, direct: Tensor | None = None
) -> Tensor:
    """dL/dpositive, ``[rows]``: through the aggregate, and directly through the loss of an anchor."""
    through = aggregation.grad_positive(state, grad_aggregate)
    if direct is None:
        return grad_aggregate.new_zeros(grad_aggregate.shape[1]) if through is None else through.sum(0)
    return (direct if through is None else direct + through).expand_as(grad_aggregate).sum(0)
