"""A loss as the engines see it, and what they do with every anchor, whatever the loss."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.engine.objective import Fold, State


class Rule(ABC):
    """A loss as the engine sees it: a fold, and what becomes of it and of the positive."""

    by_name: ClassVar[dict[str, type["Rule"]]] = {}

    def __init_subclass__(cls) -> None:
        Rule.by_name[cls.name()] = cls

    @classmethod
    def name(cls) -> str:
        """By which an operator of torch knows the rule."""
        return f"{cls.__module__}.{cls.__qualname__}"

    @property
    @abstractmethod
    def fold(self) -> Fold:
        """What the loss gathers over the negatives."""

    @abstractmethod
    def of_anchor(self, positive: Tensor, folded: Tensor) -> Tensor:
        """The loss of an anchor in one direction; numbers of any shape."""

    @abstractmethod
    def slopes(self, positive: Tensor, folded: Tensor) -> tuple[Tensor | None, Tensor]:
        """Its derivatives in the positive, as far as it does not see it through the fold (None: 0), and in the fold."""

    @abstractmethod
    def numbers(self) -> list[float]:
        """The settings, at least one, as an operator of torch takes them; one that is a tensor goes beside them."""

    @classmethod
    @abstractmethod
    def from_numbers(cls, numbers: list[float], parameter: Tensor | None) -> "Rule":
        """The inverse of :meth:`numbers`."""


def is_batched(value: Tensor | None) -> bool:
    """Whether a tensor is under vmap, another transformation of torch.func, or autograd's own vmap over gradients."""
    of = torch._C._functorch
    return value is not None and (of.is_functorch_wrapped_tensor(value) or of.is_legacy_batchedtensor(value))


def has_negatives(ids: Tensor | None, positive: Tensor) -> Tensor | None:
    """bool ``[]``: if two ids differ, every anchor has a negative; if not, none has. None stands for true."""
    if ids is None:
        return None if len(positive) > 1 else torch.zeros_like(positive[0], dtype=torch.bool)
    return (ids != ids[0]).any()


def reduced(
    rule: Rule, positive: Tensor, folded: Tensor, has_negative: Tensor | None, reduction: Reduction, B: int
) -> Tensor:
    """The loss, from the positives ``[B]`` and the folds of rows and columns ``[2, B]``; of part of a batch, its part
    of the loss."""
    anchors = rule.of_anchor(positive, folded)
    if has_negative is not None:
        anchors = torch.where(has_negative, anchors, 0 * positive)
    if reduction == "none":
        return anchors.sum(0)
    return anchors.sum() / B if reduction == "mean" else anchors.sum()


def of_positives(fold: Fold, state: State, of_fold: Tensor, direct: Tensor | None = None) -> Tensor:
    """dL/dpositive, ``[B]``: through the fold, and what the loss of an anchor sees of the positive besides."""
    through = fold.weigh_positives(state, of_fold)
    if direct is None:
        return of_fold.new_zeros(of_fold.shape[1]) if through is None else through.sum(0)
    return (direct if through is None else direct + through).expand_as(of_fold).sum(0)


def upstream_of_anchors(
    rule: Rule,
    state: State,
    positive: Tensor,
    folded: Tensor,
    has_negative: Tensor | None,
    reduction: Reduction,
    upstream: Tensor,
    B: int,
) -> tuple[Tensor, Tensor]:
    """dL/dpositive ``[B]`` and dL/dfold ``[2, B]``, given the gradient of what :func:`reduced` returned."""
    if reduction == "mean":
        upstream = upstream / B
    direct, of_fold = rule.slopes(positive, folded)
    of_fold = of_fold * upstream
    if direct is not None:
        direct = direct * upstream
    if has_negative is not None:
        of_fold = torch.where(has_negative, of_fold, 0)
        if direct is not None:
            direct = torch.where(has_negative, direct, 0)
    return of_positives(rule.fold, state, of_fold, direct), of_fold
