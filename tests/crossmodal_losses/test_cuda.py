"""The losses on a GPU, where there is one: nothing waits, graphs are captured, bits repeat, odd sizes are right.

``make gpu`` measures more of it, without pytest; these are the checks that every change should pass on a GPU.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import behaviour
from benchmarks.gpu.report import Results
from benchmarks.gpu.setting import PATHS, Setting, gpu, trial
from crossmodal_losses import LOSSES, PairLoss

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TILE = 64


@on_a_gpu
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("check", behaviour.CHECKS.values())
def test_a_step_on_a_gpu(check: Callable[..., None], name: str, path: str) -> None:
    setting, results = replace(gpu(), tile_size=TILE), Results()
    for variant in behaviour.VARIANTS:
        for size in ((1, 7), (33, 65), (TILE + 1, 7), (200, 100)):
            check(results, setting, f"{size}, {variant}", behaviour.step_of(setting, name, path, size, variant))
    assert len(results.found) == 4 * len(behaviour.VARIANTS)
    assert all(result["passed"] for result in results.found), results.found


def parts_of(loss: PairLoss, x: Tensor, y: Tensor, ids: Tensor) -> list[Tensor]:
    """The loss of every anchor, and both gradients times the lengths of the rows, in float64 on the CPU."""
    values = loss(x, y, ids)
    gradients = torch.autograd.grad(values.sum(), (x, y))
    scaled = [gradient * side.norm(dim=1, keepdim=True) for gradient, side in zip(gradients, (x, y), strict=True)]
    return [part.detach().cpu().double() for part in (values, *scaled)]


@pytest.mark.parametrize(
    "setting, sizes, dimensions",
    [
        pytest.param(trial(), (1, 2, 5, 9), (1, 7), id="cpu"),
        pytest.param(gpu(), (1, 2, TILE - 1, TILE + 1, 129), (1, 7, 1000, 1024), id="cuda", marks=on_a_gpu),
    ],
)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", LOSSES)
def test_odd_sizes_with_ties_in_both_directions(
    name: str, path: str, setting: Setting, sizes: tuple[int, ...], dimensions: tuple[int, ...]
) -> None:
    """Every second row is that of before, so that each anchor has two hardest negatives, of which the first counts.

    They are whole numbers: products of equal rows are exact, and hence equal, in whatever order they are added.
    """
    setting = replace(setting, tile_size=min(TILE, setting.tile_size))
    for B, D in itertools.product(sizes, dimensions):
        generator = torch.Generator().manual_seed(B + D)
        twice, ids = torch.arange(B) // 2 * 2, torch.arange(B) // 3
        sides = [torch.randint(-3, 4, (B, D), generator=generator)[twice] for _ in range(2)]
        loss = setting.loss(name, path, B, reduction="none")
        x, y = (side.to(setting.device, torch.float32).requires_grad_() for side in sides)
        found = parts_of(loss, x, y, ids.to(setting.device))
        x, y = (side.double().requires_grad_() for side in sides)
        expected = parts_of(LOSSES[name](reduction="none", tile_size=B), x, y, ids)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * B)
