"""Embeddings that losses are measured on, the measured call, and the conditions of a measurement."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]

# Name of our implementation in every table.
OURS = "crossmodal_losses"


@dataclass(frozen=True)
class Conditions:
    """Settings that all measurements of one benchmark share.

    Attributes:
        losses: names of the measured losses, keys of ``LOSSES``.
        D: number of columns of the embeddings.
        dtype: dtype of the embeddings.
        device: "cpu" or "cuda".
        seconds: least time of the repetitions, per call and size.
        rounds: least number of repetitions.
    """

    losses: tuple[str, ...]
    D: int
    dtype: torch.dtype
    device: str = "cpu"
    seconds: float = 0.0
    rounds: int = 2

    def __str__(self) -> str:
        """Dtype and device, for the line above a table."""
        return f"{self.dtype}, {self.device}"

    def embeddings(self, B: int) -> tuple[Tensor, Tensor]:
        """Return x and y, ``[B, D]``, which require gradients and are the same in every call.

        Similarities of positives are around 0.1, as early in training: every loss has violations, and gradients.
        """
        generator = torch.Generator(self.device).manual_seed(B)

        def normal() -> Tensor:
            return torch.randn(B, self.D, generator=generator, dtype=self.dtype, device=self.device)

        shared = normal()
        return normal().mul_(3).add_(shared).requires_grad_(), normal().mul_(3).add_(shared).requires_grad_()


def gradients(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Run forward and backward of a loss; return its gradients."""
    return torch.autograd.grad(loss(x, y), (x, y))
