"""Rows as operands: scales, inverse norms, products, and the backward of normalisation."""

from typing import Any

import pytest
import torch
from comparisons import normal_pair
from torch._subclasses.fake_tensor import FakeTensorMode

from crossmodal_losses import TripletMax
from crossmodal_losses.checks import Batch
from crossmodal_losses.engine import tiles
from crossmodal_losses.engine.communication import SingleProcess
from crossmodal_losses.engine.objective import Total
from crossmodal_losses.engine.operands import SCALED_AT_ONCE, accumulate, blocks, measure_norms, multiply
from crossmodal_losses.engine.problem import Problem
from crossmodal_losses.similarity import normalise


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 2.0**-100, 2.0**100])
@pytest.mark.parametrize("at_once", [0, 1000], ids=["scaled by blocks", "scaled at once"])
def test_blocks_times_inverse_norms_are_unit_rows(
    dtype: torch.dtype, scale: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCALED_AT_ONCE, "cpu", at_once)
    if dtype == torch.float16:
        scale = scale**0.1
    x, y = (e.detach() for e in normal_pair(0, 7, 5))
    x, y = (scale * x).to(dtype), y.to(dtype)
    x[3] = 0
    operands = measure_norms(Batch(x, y, x[2:6], y[:0]), 3)
    assert [operand and operand.start for operand in operands.parts] == [0, 0, 7, 7]
    for operand, rows in zip(operands.parts, (x, y, x[2:6], y[:0]), strict=True):
        assert operand is not None
        inv_norm = operand.inv_norm[:, None]
        found = [operand.block(block).clone() for block in blocks(operand.whole, 3)]
        unit = torch.cat([inv_norm.new_empty(0, 5), *found]) * inv_norm
        torch.testing.assert_close(unit, normalise(rows.to(unit.dtype)) if len(rows) else unit)
        torch.testing.assert_close(operand.dimensions() * inv_norm, unit)


def test_cuda_takes_the_kernels_and_wide_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as tensors without values tell."""
    pytest.importorskip("triton")
    from fake_cuda import counted

    asked: list[Any] = []
    monkeypatch.setattr(torch, "addmm", lambda *args, out_dtype, out: asked.append(out_dtype))
    with FakeTensorMode(), counted() as launches:
        x = torch.empty(8, 4, device="cuda", dtype=torch.bfloat16)
        operands = measure_norms(Batch(x, x), 4)
        assert operands.x.block(slice(0, 4)).dtype == torch.bfloat16
        S = torch.empty(8, 8, device="cuda")
        multiply(x, x.T, out=S)
        accumulate(S, x, x.T)
        assert asked == [torch.float32]
        positive = torch.empty(8, device="cuda")
        problem = Problem(operands, TripletMax().objective, Total(), (4, 4), SingleProcess())
        epilogue = tiles.epilogue_for(problem, positive)
        assert type(epilogue).__name__ == "Fused"
        in_double = tiles.epilogue_for(problem, positive.double())
        assert type(in_double).__name__ == "Plain"
    assert [launch.kernel for launch in launches.kernels] == ["measure"] * 2
