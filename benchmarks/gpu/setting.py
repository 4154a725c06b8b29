"""Sizes and devices of the parts: those of a GPU, and tiny ones with which every part is tried on a CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crossmodal_losses import LOSSES, PairLoss

# How a loss is computed: as it chooses by itself, from all of S, and in tiles.
PATHS = "default", "dense", "tiles"


@dataclass(frozen=True)
class Setting:
    """Where, and how large.

    Attributes:
        device: the device.
        sizes: B of the values.
        dimensions: D of the values; of the last one every size is compared, of all of them one small and one large.
        tile_size: t of the values.
        small: B of the times of small batches.
        behaviour: B and D of what is checked of each path.
        large: B whose time is compared with that of the products.
        D: of all times.
        million: B of one step.
        siglip: B and D of the setting that siglip-kernel publishes.
        whole_tile: t of a tile that may have more than 2^31 entries.
        rounds: repetitions of a time.
    """

    device: torch.device
    sizes: tuple[int, ...]
    dimensions: tuple[int, ...]
    tile_size: int
    small: tuple[int, ...]
    behaviour: tuple[int, int]
    large: tuple[int, ...]
    D: int
    million: int
    siglip: tuple[int, int]
    whole_tile: int
    rounds: int

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU to wait for, to capture, and to measure."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def embeddings(self, B: int, D: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return x and y, [B, D], which require gradients: numbers that bfloat16 and float16 hold exactly."""
        generator = torch.Generator().manual_seed(seed + B)
        shared, x, y = (torch.randn(B, D, generator=generator) for _ in range(3))
        sides = (((rows * 2 + shared) * 16).round() / 16 for rows in (x, y))
        return tuple(rows.to(self.device, dtype).requires_grad_() for rows in sides)  # type: ignore[return-value]

    def on_device(self, B: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return x and y likewise, drawn on the device: for large B."""
        generator = torch.Generator(self.device).manual_seed(B)

        def normal() -> Tensor:
            return torch.randn(B, D, generator=generator, dtype=dtype, device=self.device)

        shared = normal()
        return normal().mul_(2).add_(shared).requires_grad_(), normal().mul_(2).add_(shared).requires_grad_()

    def loss(self, name: str, path: str, B: int, **settings: object) -> PairLoss:
        """Return a loss that takes that path at this B."""
        tile_size = {"default": None, "dense": B, "tiles": max(1, min(self.tile_size, B - 1))}[path]
        return LOSSES[name](tile_size=tile_size, **settings).to(self.device)  # type: ignore[arg-type]


def gpu() -> Setting:
    """The sizes of a GPU."""
    t = 512
    sizes = (1, 2, 24, 32, 127, 128, 129, t - 1, t + 1, 1025)
    of_values = {"sizes": sizes, "dimensions": (1, 7, 1000, 1024), "tile_size": t}
    of_times = {"small": (24, 32, 64, 128, 256, 1024), "large": (16384, 65536), "D": 1024, "million": 1 << 20}
    others = {"behaviour": (100, 512), "siglip": (65536, 768), "whole_tile": 46400, "rounds": 20}
    return Setting(torch.device("cuda"), **of_values, **of_times, **others)  # type: ignore[arg-type]


def trial() -> Setting:
    """Tiny sizes on a CPU."""
    of_values = {"sizes": (1, 5), "dimensions": (1, 7), "tile_size": 4}
    of_times = {"small": (4,), "large": (64,), "D": 8, "million": 96}
    others = {"behaviour": (6, 8), "siglip": (32, 8), "whole_tile": 24, "rounds": 2}
    return Setting(torch.device("cpu"), **of_values, **of_times, **others)  # type: ignore[arg-type]
