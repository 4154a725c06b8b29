"""Data and model of the examples, so that each example shows its training alone."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of noisy views, of 20 and of 30 numbers, of the same hidden vector."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(size, 5, generator=generator)
        self.views = [
            hidden @ torch.randn(5, width, generator=generator) + 0.1 * torch.randn(size, width, generator=generator)
            for width in (20, 30)
        ]

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.views[0][index], self.views[1][index]


class DualEncoder(nn.Module):
    """Two small encoders, always with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.g = (nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16)) for width in (20, 30))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.f(a), self.g(b)
