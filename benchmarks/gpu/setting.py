"""Sizes and devices of the parts: those of a GPU, and tiny ones with which every part is tried on a CPU."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.frozen import HIDDEN
from benchmarks.gpu.launches import DENSE, TILE, TILED, D
from crossmodal_losses import LOSSES, PairLoss

# How a loss is computed: as it chooses by itself, from all of S, and in tiles.
PATHS = "default", "dense", "tiles"


@dataclass(frozen=True)
class Counted:
    """The sizes at which launches are counted: B of all of S, and of several tiles; D; the rows of a tile."""

    dense: int
    tiled: int
    D: int
    tile_size: int


@dataclass(frozen=True)
class Setting:
    """Where, and how large.

    Attributes:
        device: the device.
        sizes: B of the values.
        dimensions: D of the values; of the last one every size is compared, of all of them one small and one large.
        tile_size: t of the values.
        wide: B and D of the values around the rows of the largest tile, with one tile and with several that are kept.
        others: B, and the numbers of candidates without a partner, of x and of y.
        behaviour: B and D of what is checked of each path.
        counted: the sizes at which launches are counted.
        small: B of the times of small batches.
        large: B whose time is compared with that of the products.
        D: of all times.
        million: B of one step.
        siglip: B and D of the setting that siglip-kernel publishes.
        whole_tile: t of a tile that may have more than 2^31 entries.
        hidden: columns between the layers of the paper's heads.
        rounds: repetitions of a time.
        processes: how many check and compile at once; 0: this one alone.
    """

    device: torch.device
    sizes: tuple[int, ...]
    dimensions: tuple[int, ...]
    tile_size: int
    wide: tuple[tuple[int, int], ...]
    others: tuple[int, int, int]
    behaviour: tuple[tuple[int, int], ...]
    counted: Counted
    small: tuple[int, ...]
    large: tuple[int, ...]
    D: int
    million: int
    siglip: tuple[int, int]
    whole_tile: int
    hidden: int
    rounds: int
    processes: int

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU to wait for, to capture, and to measure."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def embeddings(self, B: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return x and y, [B, D], which require gradients: numbers that bfloat16 and float16 hold exactly.

        Products of their rows are exact in float32, too: sums of less than 2^24 of the unit 2^-8.
        """
        shared, x, y = self._normal(B, D)
        sides = (((rows * 2 + shared) * 16).round() / 16 for rows in (x, y))
        return tuple(rows.to(self.device, dtype).requires_grad_() for rows in sides)  # type: ignore[return-value]

    def signs(self, B: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return likewise rows of 1 and -1, times powers of two: every dtype finds the same violations and ties.

        The last n columns are not 0, n the largest power of 4. Hence lengths are powers of two, a similarity is k / n
        with a whole number k, and no two are the margin of 0.2 apart.
        """
        n = 4 ** ((D.bit_length() - 1) // 2)
        shared, x, y = self._normal(B, D)
        powers = torch.arange(B)[:, None] % 5 - 2.0
        zeros = torch.arange(D - n)
        sides = ((rows * 2 + shared).sign().index_fill_(1, zeros, 0) * 2**powers for rows in (x, y))
        return tuple(rows.to(self.device, dtype).requires_grad_() for rows in sides)  # type: ignore[return-value]

    def _normal(self, B: int, D: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(B)
        return [torch.randn(B, D, generator=generator) for _ in range(3)]

    def on_device(self, B: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return x and y, drawn on the device: for large B. They are whole numbers, which half precision holds."""
        generator = torch.Generator(self.device).manual_seed(B)

        def normal() -> Tensor:
            return torch.randn(B, D, generator=generator, dtype=dtype, device=self.device)

        shared = normal()
        sides = (normal().mul_(2).add_(shared).mul_(16).round_() for _ in range(2))
        return tuple(rows.requires_grad_() for rows in sides)  # type: ignore[return-value]

    def loss(self, name: str, path: str, B: int, **settings: object) -> PairLoss:
        """Return a loss that takes that path at this B."""
        tile_size = {"default": None, "dense": B, "tiles": max(1, min(self.tile_size, B - 1))}[path]
        return LOSSES[name](tile_size=tile_size, **settings).to(self.device)  # type: ignore[arg-type]


def gpu() -> Setting:
    """The sizes of a GPU."""
    t = 512
    sizes = (1, 2, 24, 32, 127, 128, 129, t - 1, t + 1, 1025)
    of_values: Mapping[str, object] = {
        "sizes": sizes,
        "dimensions": (1, 7, 1000, 1024),
        "tile_size": t,
        "wide": tuple((B, 64) for B in (TILE - 1, TILE, TILE + 1)),
        "others": (129, 30, 65),
    }
    of_behaviour = {"behaviour": ((100, 512), (1, 7)), "counted": Counted(DENSE, TILED, D, TILE), "whole_tile": 46400}
    of_times = {"small": (24, 32, 64, 128, 256, 1024), "large": (16384, 65536), "D": 1024, "million": 1 << 20}
    others = {"siglip": (65536, 768), "hidden": HIDDEN, "rounds": 20, "processes": min(8, os.cpu_count() or 1)}
    return Setting(torch.device("cuda"), **of_values, **of_behaviour, **of_times, **others)  # type: ignore[arg-type]


def trial() -> Setting:
    """Tiny sizes on a CPU."""
    of_values: Mapping[str, object] = {
        "sizes": (1, 5),
        "dimensions": (1, 7),
        "tile_size": 4,
        "wide": ((9, 3),),
        "others": (5, 2, 3),
    }
    of_behaviour = {"behaviour": ((6, 8),), "counted": Counted(4, 10, 8, 6), "whole_tile": 24}
    of_times = {"small": (4,), "large": (64,), "D": 8, "million": 96}
    others = {"siglip": (32, 8), "hidden": 16, "rounds": 2, "processes": 0}
    return Setting(torch.device("cpu"), **of_values, **of_behaviour, **of_times, **others)  # type: ignore[arg-type]
