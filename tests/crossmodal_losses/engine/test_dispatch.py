"""The choice of the engine."""

import pytest
import torch
from comparisons import Largest, dense, each_loss, gradients, normal_pair

from crossmodal_losses import LOSSES
from crossmodal_losses.engine import dispatch


@each_loss
def test_without_a_tile_size_small_batches_are_dense_and_large_ones_tiled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of S up to a batch size, tiles from the next one on; the same gradients on both sides."""
    monkeypatch.setattr(dispatch, "LARGEST_DENSE", 20)
    monkeypatch.setattr(dispatch, "LARGEST_DENSE_OF_TWO_PASSES", 20)
    monkeypatch.setattr(dispatch, "TILE", {"cpu": 8})
    for B in (20, 21):
        x, y = normal_pair(13, B, 5)
        loss = LOSSES[name]()
        with Largest() as seen:
            found = gradients(loss(x, y), (x, y))
        assert (seen.entries >= B * B) == (B == 20)
        torch.testing.assert_close(found, gradients(dense(loss, x, y), (x, y)), rtol=1e-9, atol=1e-10)


def test_limits_depend_on_the_aggregation_and_the_device() -> None:
    one_pass, two_passes = (LOSSES[name]().objective.aggregation for name in ("triplet_sum", "nt_xent"))
    assert dispatch.largest_dense(one_pass) < dispatch.largest_dense(two_passes)
    assert dispatch.largest_tile(torch.device("cpu")) < dispatch.largest_tile(torch.device("cuda"))
    assert dispatch.largest_tile(torch.device("mps")) == dispatch.largest_tile(torch.device("cpu"))


@each_loss
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode still uses it
def test_modules_under_torch_func(name: str) -> None:
    x, y = (e.detach() for e in normal_pair(14, 5, 4))
    loss = LOSSES[name]()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, y), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x, y), expected)
    stacked = torch.stack([x, 2 * x.flip(0)])
    torch.testing.assert_close(torch.func.vmap(loss, (0, None))(stacked, y), torch.stack([loss(s, y) for s in stacked]))
    directional = torch.func.jvp(lambda x: loss(x, y), (x,), (y,))[1]
    torch.testing.assert_close(directional, (expected * y).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, y)
        tangent = torch.autograd.forward_ad.unpack_dual(loss(dual, y)).tangent
    torch.testing.assert_close(tangent, directional)
