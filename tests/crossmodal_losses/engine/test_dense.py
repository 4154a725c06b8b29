"""All of S at once: derivatives of every order, and how rows of the hardest negatives are gathered."""

from typing import Any

import pytest
import torch
from comparisons import dense, each_loss, each_reduction, gradients, learning_loss, normal_pair

from crossmodal_losses import LOSSES
from crossmodal_losses.checks import Batch
from crossmodal_losses.engine.dense import FEWEST_TO_GATHER, dense_loss


@each_loss
@each_reduction
@pytest.mark.parametrize("B", [1, 2, FEWEST_TO_GATHER - 1, FEWEST_TO_GATHER])
def test_dense_equals_reference(name: str, reduction: Any, B: int) -> None:
    """With a row of zeros and rows of extreme length; on both sides of where rows are gathered."""
    loss = LOSSES[name](reduction=reduction)
    for scale in (1.0, 2.0**100):
        x, y = (e.detach() for e in normal_pair(B, B, 5))
        x[0] = 0
        y = (y * scale).requires_grad_()
        x.requires_grad_()
        for ids in (None, torch.arange(B) // 2):
            value, expected = dense_loss(Batch(x, y, ids=ids), loss.objective, loss.total), dense(loss, x, y, ids)
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
            for found, exact in zip(gradients(value, (x, y)), gradients(expected, (x, y)), strict=True):
                torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-10 * (1e-3 + float(exact.abs().max())))


@each_loss
def test_derivatives_where_y_is_made_from_x(name: str) -> None:
    """The graph from x to y is walked once, not once inside the loss and once around it."""
    x, W = (e.detach() for e in normal_pair(18, 5, 5))
    x.requires_grad_()
    loss = learning_loss(name).double()
    leaves = (x, *loss.parameters())
    for y in (x, (x @ W).tanh()):
        expected = torch.autograd.grad(dense(loss, x, y), leaves, create_graph=True)
        found = torch.autograd.grad(loss(x, y), leaves, create_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
        second, expected_second = (
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), leaves, retain_graph=True)
            for first in (found, expected)
        )
        torch.testing.assert_close(second, expected_second, rtol=1e-8, atol=1e-9)


@each_loss
def test_many_gradients_at_once(name: str) -> None:
    """As torch.autograd.functional computes them, of the loss of every anchor."""
    x, y = normal_pair(19, 6, 4)
    loss = LOSSES[name](reduction="none")
    one_by_one = torch.autograd.functional.jacobian(lambda x: loss(x, y), x)
    at_once = torch.autograd.functional.jacobian(lambda x: loss(x, y), x, vectorize=True)
    torch.testing.assert_close(at_once, one_by_one)
