"""Inputs and expected values that several tests share: pairs of embeddings, and a loss over all of S."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crossmodal_losses import LOSSES, NTXent, PairLoss, cosine_similarity

each_loss = pytest.mark.parametrize("name", sorted(LOSSES))
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def dense(loss: PairLoss, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
    """Compute a loss from all of S in differentiable torch."""
    return loss.of_similarities(cosine_similarity(x, y), ids=ids)


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


def gradients(value: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the gradients for an upstream gradient that differs from anchor to anchor."""
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return torch.autograd.grad(value, inputs, upstream)


def assert_same_loss(
    value: Tensor, expected: Tensor, inputs: tuple[Tensor, ...], close: dict[str, Any], close_gradients: dict[str, Any]
) -> None:
    """Compare a loss and its gradients, given two tolerances; an empty one is that of torch."""
    torch.testing.assert_close(value, expected, **close)
    torch.testing.assert_close(gradients(value, inputs), gradients(expected, inputs), **close_gradients)


def learning_loss(name: str, **settings: Any) -> PairLoss:
    """A loss that learns its temperature if it has one."""
    return NTXent(learn_temperature=True, **settings) if name == "nt_xent" else LOSSES[name](**settings)


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
