"""Our losses equal public implementations in value and gradient, up to the constants of benchmarks/baselines.py.

Only batches of distinct pairs, because the baselines take no ids.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, logsigmoid

from benchmarks import baselines
from benchmarks.autograd import logits
from benchmarks.baselines import (
    ALL_BASELINES,
    BASELINES,
    LIGER,
    SIGLIP_KERNEL,
    metric_learning_nt_xent,
    open_clip_loss,
    sentence_transformers_loss,
)
from benchmarks.batch import Loss
from crossmodal_losses import LOSSES, NTXent, SupCon


def assert_equal(ours: Loss, baseline: Loss, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    B = 2 + seed % 9
    x = torch.randn(B, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    y = (x.detach() + torch.randn(B, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    value, expected = ours(x, y), baseline(x, y)
    torch.testing.assert_close(value, expected.to(value.dtype), rtol=1e-6, atol=1e-7)
    gradients = torch.autograd.grad(value, (x, y))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, y)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "loss, name", [(loss, name) for loss, of in BASELINES.items() for name in of if of[name].largest]
)
@given(seed=st.integers(0, 2**31))
def test_default_settings(loss: str, name: str, seed: int) -> None:
    assert_equal(LOSSES[loss](), BASELINES[loss][name].loss, seed)


def test_kernels_for_cuda_are_called_with_the_numbers_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their definitions stand for them: siglip-kernel's reference, and the cross-entropy of a product."""

    def siglip(x: torch.Tensor, y: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
        return -logsigmoid(signs * (x @ y.T * log_scale.exp() + bias)).sum() / len(x)

    def linear(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(x @ weight.T, labels)

    modules = {
        "siglip_kernel": SimpleNamespace(fused_siglip_loss=siglip),
        "liger_kernel.transformers.functional": SimpleNamespace(liger_fused_linear_cross_entropy=linear),
    }
    monkeypatch.setattr(baselines, "import_module", modules.__getitem__)
    for loss, name in (("sigmoid", SIGLIP_KERNEL), ("nt_xent", LIGER)):
        assert_equal(LOSSES[loss](), ALL_BASELINES[loss][name].loss, seed=7)
        monkeypatch.setattr(baselines, "find_spec", lambda needs: needs)
        for there in (False, True):
            monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
            assert ALL_BASELINES[loss][name].is_available() == there
        monkeypatch.setattr(baselines, "find_spec", lambda _: None)
        assert not ALL_BASELINES[loss][name].is_available()


@pytest.mark.parametrize("baseline", [open_clip_loss, sentence_transformers_loss, metric_learning_nt_xent])
@given(seed=st.integers(0, 2**31), temperature=st.sampled_from([0.05, 0.5, 1.0]))
def test_other_temperatures(baseline: Callable[[float], Loss], seed: int, temperature: float) -> None:
    assert_equal(NTXent(temperature=temperature), baseline(temperature), seed)


@given(seed=st.integers(0, 2**31))
def test_weights_of_directions(seed: int) -> None:
    """(0.5, 0.5) is open_clip's loss, which its baseline has twice, and (1, 0) torch's cross-entropy of the rows."""
    if find_spec("open_clip"):
        clip = open_clip_loss(0.07)
        assert_equal(NTXent(direction_weights=(0.5, 0.5)), lambda x, y: clip(x, y) / 2, seed)
    one = NTXent(direction_weights=(1, 0), tile_size=2)
    assert_equal(one, lambda x, y: cross_entropy(logits(x, y), torch.arange(len(x))), seed)


@pytest.mark.skipif(not find_spec("pytorch_metric_learning"), reason="needs pytorch-metric-learning")
@pytest.mark.parametrize("tile_size", [None, 3])
def test_several_positives_equal_those_of_pytorch_metric_learning(tile_size: int | None) -> None:
    sup_con_loss = import_module("pytorch_metric_learning.losses").SupConLoss(temperature=0.1)
    ids = torch.tensor([0, 1, 0, 2, 1, 0])

    def of_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return sup_con_loss(x, ids, ref_emb=y, ref_labels=ids.clone())  # type: ignore[no-any-return]

    loss = SupCon(temperature=0.1, direction_weights=(1, 0), tile_size=tile_size)
    assert_equal(lambda x, y: loss(x, y, ids), of_rows, seed=4)
