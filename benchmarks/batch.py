"""The batches that losses are measured on, and the call that is measured."""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]

# How our implementation is called in every table.
OURS = "crossmodal_losses"


def embeddings(B: int, D: int, *, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """x and y, ``[B, D]``, always the same for one B and D.

    Positives are around 0.1, as early in training: every loss has violations, and gradients.
    """
    generator = torch.Generator(device).manual_seed(B)
    shared = torch.randn(B, D, generator=generator, dtype=dtype, device=device)

    def side() -> Tensor:
        noise = torch.randn(B, D, generator=generator, dtype=dtype, device=device)
        return noise.mul_(3).add_(shared).requires_grad_()

    return side(), side()


def gradients(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward."""
    return torch.autograd.grad(loss(x, y), (x, y))
