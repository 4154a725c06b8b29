"""Inputs and expected values that several tests share: pairs of embeddings, and a loss over all of S."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch
from oracles import Others, oracle
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crossmodal_losses import LOSSES, PairLoss, cosine_similarity
from crossmodal_losses.checks import Batch
from crossmodal_losses.engine.reference import reference_loss_of_batch
from crossmodal_losses.similarity import similarities

each_loss = pytest.mark.parametrize("name", sorted(LOSSES))
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def dense(loss: PairLoss, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
    """Compute a loss from all of S in differentiable torch."""
    return loss.of_similarities(cosine_similarity(x, y), ids=ids)


def of_batch(loss: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Call a loss."""
    x, y, negatives_x, negatives_y, ids, negative_ids_x, negative_ids_y = batch
    negatives = {"negatives_x": negatives_x, "negatives_y": negatives_y}
    return loss(x, y, ids, **negatives, negative_ids_x=negative_ids_x, negative_ids_y=negative_ids_y)


def dense_of_batch(loss: PairLoss, batch: Batch) -> Tensor:
    """Compute a loss from all of S in differentiable torch."""
    return reference_loss_of_batch(batch, loss.objective, loss.total)


def leaves_of(batch: Batch, *others: Tensor) -> tuple[Tensor, ...]:
    """Return the embeddings, and others, that need a gradient."""
    return tuple(value for value in (*batch.embeddings, *others) if value is not None and value.requires_grad)


def oracle_of_batch(name: str, batch: Batch, reduction: str, **settings: Any) -> Tensor:
    """Return the loss as a loop."""
    x, y, negatives_x, negatives_y, ids, negative_ids_x, negative_ids_y = batch
    of_x = None if negatives_y is None else Others(similarities(x, negatives_y), negative_ids_y)
    of_y = None if negatives_x is None else Others(similarities(y, negatives_x), negative_ids_x)
    return oracle(name, similarities(x, y), ids, reduction, of_x, of_y, **settings)


def normal_batch(
    seed: int, B: int, M: int, N: int, D: int, dtype: torch.dtype = torch.float64, with_ids: bool = False
) -> Batch:
    """Return a batch whose embeddings require gradients; ids are equal within pairs and beyond."""
    x, y = (rows.detach() for rows in normal_pair(seed, B + max(M, N), D, dtype))
    parts = (rows.clone().requires_grad_() for rows in (x[:B], y[:B], x[B : B + M], y[B : B + N]))
    ids = (torch.arange(B) // 2, torch.arange(M) // 2, torch.arange(N) // 2 + 1) if with_ids else ()
    return Batch(*parts, *ids)


def normal_pair(seed: int, B: int, D: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return x and y, ``[B, D]``, whose i-th rows are similar, and which require gradients."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    y = x + torch.randn(B, D, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def exact_pair(seed: int, B: int) -> tuple[Tensor, Tensor]:
    """Return x and y, ``[B, 5]``, whose similarities are multiples of 1/4 in every order of computation.

    A row has one entry of +-1, or four of them, or is zero, times a power of two. There are many ties and hinges at 0.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for _ in range(2):
        signs = torch.randint(2, (B, 5), generator=generator) * 2.0 - 1
        place = torch.randint(5, (B, 1), generator=generator)
        four = signs.scatter(1, place, 0)
        one = torch.zeros(B, 5).scatter(1, place, signs)
        kind = torch.randint(5, (B, 1), generator=generator)
        scale = torch.tensor([1.0, 1.0, 1.0, 2.0**-3, 2.0**60])[torch.randint(5, (B, 1), generator=generator)]
        sides.append((torch.where(kind < 2, four, one) * (kind < 4) * scale).double())
    return sides[0], sides[1]


def gradients(value: Tensor, inputs: tuple[Tensor, ...], retain_graph: bool = False) -> tuple[Tensor, ...]:
    """Return the gradients for an upstream gradient that differs from anchor to anchor."""
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return torch.autograd.grad(value, inputs, upstream, retain_graph, materialize_grads=True)


def assert_same_loss(
    value: Tensor,
    expected: Tensor,
    inputs: tuple[Tensor, ...],
    close: dict[str, Any],
    close_gradients: dict[str, Any],
    again: bool = False,
) -> None:
    """Compare a loss and its gradients, given two tolerances; an empty one is that of torch.

    What is expected may be compared again if so told; a compiled loss may not.
    """
    torch.testing.assert_close(value, expected, **close)
    found = gradients(value, inputs)
    torch.testing.assert_close(found, gradients(expected, inputs, retain_graph=again), **close_gradients)


def learning_loss(name: str, **settings: Any) -> PairLoss:
    """A loss that learns its temperature if it has one, and its bias."""
    settings |= {setting: True for setting in signature(LOSSES[name]).parameters if setting.startswith("learn_")}
    return LOSSES[name](**settings)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        self.entries = max([self.entries, *(value.numel() for value in made if isinstance(value, Tensor))])
        return result
