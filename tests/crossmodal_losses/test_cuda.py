"""The losses on a GPU, where there is one: nothing waits, graphs are captured, bits repeat, odd sizes are right.

``make gpu`` measures more of it, without pytest; these are the checks that every change should pass on a GPU.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import behaviour
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import PATHS, gpu
from crossmodal_losses import LOSSES, PairLoss

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TILE = 64
CHECKS: list[Callable[..., None]] = [
    behaviour.does_not_wait,
    behaviour.repeats_to_the_bit,
    behaviour.is_captured,
    behaviour.on_a_side_stream,
]


@on_a_gpu
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("check", CHECKS)
def test_a_step_on_a_gpu(tmp_path: Path, check: Callable[..., None], name: str, path: str) -> None:
    setting = replace(gpu(), tile_size=TILE)
    report = Report(tmp_path / "gpu.json", "test", setting.device, 60)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for B, D in ((33, 65), (TILE + 1, 7), (200, 100)):
            embeddings = setting.embeddings(B, D, dtype)
            check(report, setting, f"B = {B}, D = {D}, {dtype}", setting.loss(name, path, B), *embeddings)
    assert len(report.results) == 9
    assert all(result["passed"] for result in report.results), report.results


def results(loss: PairLoss, x: Tensor, y: Tensor, ids: Tensor) -> list[Tensor]:
    """The loss of every anchor, and both gradients times the lengths of the rows, in float64 on the CPU."""
    values = loss(x, y, ids)
    gradients = torch.autograd.grad(values.sum(), (x, y))
    scaled = [gradient * side.norm(dim=1, keepdim=True) for gradient, side in zip(gradients, (x, y), strict=True)]
    return [part.detach().cpu().double() for part in (values, *scaled)]


@on_a_gpu
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", LOSSES)
def test_odd_sizes_with_ties_in_both_directions(name: str, path: str) -> None:
    """Every second row is that of before, so that each anchor has two hardest negatives, of which the first counts."""
    setting = replace(gpu(), tile_size=TILE)
    for B in (1, 2, TILE - 1, TILE + 1, 129):
        for D in (1, 7, 1000, 1024):
            generator = torch.Generator().manual_seed(B + D)
            twice, ids = torch.arange(B) // 2 * 2, torch.arange(B) // 3
            sides: list[Any] = [torch.randn(B, D, generator=generator)[twice] for _ in range(2)]
            loss = setting.loss(name, path, B, reduction="none")
            x, y = (side.to(setting.device).requires_grad_() for side in sides)
            found = results(loss, x, y, ids.to(setting.device))
            x, y = (side.double().requires_grad_() for side in sides)
            expected = results(LOSSES[name](reduction="none", tile_size=B), x, y, ids)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * B)
