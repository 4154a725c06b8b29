"""The kernels of rows do what plain torch does: on the device if there is one, else as triton interprets them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from crossmodal_losses.engine.operands import Operand, Statistics

pytest.importorskip("triton")

from interpreted_kernels import interpret

from crossmodal_losses.engine import rows_triton
from crossmodal_losses.engine.rows_fused import measure, normalisation_backward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = torch.float32, torch.bfloat16, torch.float16
each_dtype = pytest.mark.parametrize("dtype", FLOATS)
each_D = pytest.mark.parametrize("D", [1, 7, 1024, 1100])


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels run on a CPU."""
    if DEVICE == "cuda":
        yield
        return
    interpret(monkeypatch, rows_triton)
    with np.errstate(all="ignore"):
        yield


def rows_of(D: int, dtype: torch.dtype) -> Tensor:
    """Rows of common and of extreme lengths, in memory where they do not lie side by side, and one of zeros."""
    rows = torch.randn(2 * D, 9, generator=torch.Generator().manual_seed(D))[::2].T
    powers = torch.tensor([0, 1, -1, 10, -10, 60, -60, 100, -100.0])
    if dtype == torch.float16:
        powers /= 10
    rows = rows * torch.exp2(powers)[:, None]
    rows[1] = 0
    wide = torch.zeros(9, 2 * D, dtype=dtype, device=DEVICE)
    wide[:, ::2] = rows.to(wide)
    return wide[:, ::2]


@each_D
@each_dtype
def test_lengths(D: int, dtype: torch.dtype) -> None:
    rows = rows_of(D, dtype)
    inv_norm, scale = (values.double() for values in measure(rows))
    norm = rows.double().norm(dim=1)
    assert (float(inv_norm[1]), float(scale[1])) == (0, 1)
    known = norm > 0
    torch.testing.assert_close((scale / inv_norm)[known], norm[known], rtol=1e-6, atol=0)
    assert bool((scale.log2() == scale.log2().round()).all())
    largest = (rows.double().abs().amax(1) / scale)[known]
    assert bool(((largest >= 1) & (largest < 2)).all())


def test_the_smallest_and_the_largest_numbers() -> None:
    rows = torch.tensor([[1e-45, 0], [3e-39, 4e-39], [3e38, 1.5e38], [2.0**127, 2.0**-149]], device=DEVICE)
    inv_norm, scale = measure(rows)
    norm = rows.double().norm(dim=1)
    torch.testing.assert_close(scale.double() / inv_norm.double(), norm, rtol=1e-6, atol=0)
    assert bool((scale / scale == 1).all())


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_neither(poison: float) -> None:
    rows = torch.ones(3, 1100, device=DEVICE)
    rows[1, 1050] = poison
    for values in measure(rows):
        assert values.isnan().tolist() == [False, True, False]


@each_D
@each_dtype
def test_the_derivative_of_normalisation(D: int, dtype: torch.dtype) -> None:
    rows = rows_of(D, dtype)
    inv_norm, scale = measure(rows)
    grad = torch.randn(9, D, generator=torch.Generator().manual_seed(3)).to(DEVICE) * inv_norm[:, None]
    exact, wide = grad.double(), rows.double()
    size = (exact / scale[:, None]).abs().amax(1, keepdim=True).clamp(min=1e-30)
    plain = Operand(wide, Statistics(inv_norm.double(), scale.double()), torch.float64)
    plain.normalisation_backward(exact, plain.whole)
    normalisation_backward(grad, rows, inv_norm, scale)
    assert not grad[1].any()
    torch.testing.assert_close(grad.double() / size, exact / size, rtol=0, atol=2e-6)


def test_what_the_kernel_would_write_wrongly_is_refused() -> None:
    rows = torch.ones(4, 3, device=DEVICE)
    with pytest.raises(ValueError, match=r"expected contiguous rows of a gradient, got strides \(1, 4\)"):
        normalisation_backward(torch.ones(3, 4, device=DEVICE).T, rows, *measure(rows))


def test_no_rows() -> None:
    inv_norm, scale = measure(torch.ones(0, 3, device=DEVICE))
    assert inv_norm.shape == scale.shape == (0,)
    normalisation_backward(torch.ones(0, 3, device=DEVICE), torch.ones(0, 3, device=DEVICE), inv_norm, scale)
