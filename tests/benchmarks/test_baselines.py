"""Our losses equal public implementations in value and gradient, up to the constants of benchmarks/baselines.py.

Only batches of distinct pairs, because the baselines take no ids.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.baselines import BASELINES, metric_learning_nt_xent, open_clip_loss, sentence_transformers_loss
from benchmarks.batch import Loss
from crossmodal_losses import LOSSES, NTXent


def assert_equal(ours: Loss, baseline: Loss, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    B = 2 + seed % 9
    x = torch.randn(B, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    y = (x.detach() + torch.randn(B, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    value, expected = ours(x, y), baseline(x, y)
    torch.testing.assert_close(value, expected.to(value.dtype), rtol=1e-6, atol=1e-7)
    gradients = torch.autograd.grad(value, (x, y))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, y)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss, name", [(loss, name) for loss, baselines in BASELINES.items() for name in baselines])
@given(seed=st.integers(0, 2**31))
def test_default_settings(loss: str, name: str, seed: int) -> None:
    assert_equal(LOSSES[loss](), BASELINES[loss][name].loss, seed)


@pytest.mark.parametrize("baseline", [open_clip_loss, sentence_transformers_loss, metric_learning_nt_xent])
@given(seed=st.integers(0, 2**31), temperature=st.sampled_from([0.05, 0.5, 1.0]))
def test_other_temperatures(baseline: Callable[[float], Loss], seed: int, temperature: float) -> None:
    assert_equal(NTXent(temperature=temperature), baseline(temperature), seed)
