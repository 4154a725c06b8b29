"""Gradients of the hardest negatives: ties, repeated partners, blocks of dimensions."""

import pytest
import torch
from comparisons import normal_pair
from torch import Tensor

from crossmodal_losses import LOSSES, cosine_similarity
from crossmodal_losses.engine import hardest_backward
from crossmodal_losses.engine.communication import ColumnPass, SingleProcess
from crossmodal_losses.engine.hardest_backward import add_hardest, hardest_gradients
from crossmodal_losses.engine.operands import measure_norms


def pairs_and_gradients(scale: float) -> tuple[Tensor, ...]:
    """Embeddings, and for S with a gradient at the diagonal and at one index of every row and column: its gradients."""
    B = 9
    x, y = (e.detach() for e in normal_pair(0, B, 70))
    x, y = (scale * x).requires_grad_(), y.requires_grad_()
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(B - 6, (2, B), generator=generator)  # several anchors have the same hardest negative
    grad_positive = torch.randn(B, generator=generator, dtype=torch.float64)
    grad_aggregate = torch.randn(2, B, generator=generator, dtype=torch.float64)
    S = cosine_similarity(x, y)
    anchors = torch.arange(B)
    loss = (S.diagonal() * grad_positive).sum()
    loss = loss + (S[anchors, index[0]] * grad_aggregate[0]).sum() + (S[index[1], anchors] * grad_aggregate[1]).sum()
    return x, y, index, grad_positive, grad_aggregate, *torch.autograd.grad(loss, (x, y))


@pytest.mark.parametrize("scale", [1.0, 2.0**60])
def test_gradients_of_selected_pairs(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled rows come in blocks of dimensions."""
    monkeypatch.setattr(hardest_backward, "ENTRIES", 100)
    x, y, index, grad_positive, grad_aggregate, *expected = pairs_and_gradients(scale)
    operands = measure_norms(x, y, 4)
    assert (operands.scales is None) == (scale == 1)
    with torch.no_grad():
        found = hardest_gradients(operands, index, grad_positive, grad_aggregate, (True, True))
        for grad, expected_grad in zip(found, expected, strict=True):
            torch.testing.assert_close(grad, expected_grad)
        assert hardest_gradients(operands, index, grad_positive, grad_aggregate, (False, False)) == (None, None)


def test_sums_over_columns_are_the_same_before_normalisation() -> None:
    x, y, index, _, grad_aggregate, *_ = pairs_and_gradients(1.0)
    with torch.no_grad():
        operands = measure_norms(x, y, 4)
        one_pass = ColumnPass(y, torch.float64)
        grad_x = torch.zeros_like(x)
        add_hardest(operands, index, grad_aggregate, SingleProcess().columns(one_pass), grad_x)
        assert one_pass.grad_y is not None
        for side in (0, 1):
            total = (grad_x, one_pass.grad_y)[side]
            operand = (operands.x, operands.y)[side]
            operand.normalisation_backward(total, operands.inv_norm[side], operands.local_slice)
        found = hardest_gradients(operands, index, torch.zeros(9, dtype=torch.float64), grad_aggregate, (True, True))
    torch.testing.assert_close((grad_x, one_pass.grad_y), found)


@pytest.mark.parametrize("name", [name for name in sorted(LOSSES) if LOSSES[name]().objective.aggregation.selects])
@pytest.mark.parametrize("B", [150, 300])  # torch's own max up to 128 x 128 entries, arithmetic beyond
def test_of_equal_hardest_negatives_the_lowest_index_takes_the_gradient(name: str, B: int) -> None:
    """y[0] and x[0] are anchors whose negatives 1 ... B - 1 are all the same."""
    x, y = torch.zeros(B, 3, dtype=torch.float64), torch.zeros(B, 3, dtype=torch.float64)
    x[:, 0], y[:, 0] = 1, 1
    x[0], y[0] = torch.tensor([1.0, 1, 1]), torch.tensor([1.0, 1, -1])
    x.requires_grad_()
    y.requires_grad_()
    for tile_size in (B, 140, 37):
        anchors = LOSSES[name](reduction="none", tile_size=tile_size)(x, y)
        gx, gy = torch.autograd.grad(anchors[0], (x, y))
        assert gx.abs().sum(1).nonzero().flatten().tolist() == [0, 1]
        assert gy.abs().sum(1).nonzero().flatten().tolist() == [0, 1]
