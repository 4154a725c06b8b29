"""All of S at once: derivatives of every order, and how rows of the hardest negatives are gathered."""

from typing import Any

import pytest
import torch
from comparisons import (
    dense,
    dense_of_batch,
    each_loss,
    each_reduction,
    gradients,
    learning_loss,
    leaves_of,
    normal_batch,
    normal_pair,
)
from torch import Tensor

from crossmodal_losses import LOSSES
from crossmodal_losses.checks import Batch
from crossmodal_losses.engine import dense as engine
from crossmodal_losses.engine import operands
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


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with other embeddings, which require gradients."""
    cast = [None if rows is None else rows.detach().to(dtype).requires_grad_() for rows in batch.embeddings]
    return Batch(*cast, *batch.all_ids)  # type: ignore[arg-type, call-arg]


@each_loss
@pytest.mark.parametrize("B", [10, FEWEST_TO_GATHER])
def test_bfloat16_rows_are_multiplied_as_they_are(name: str, B: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA; here their product is computed in float32. The gradient has the error of its own rounding alone."""
    shapes: list[torch.Size] = []

    def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
        assert a.dtype == b.dtype == torch.bfloat16
        shapes.append(out.shape)
        torch.mm(a.float(), b.float(), out=out)

    monkeypatch.setattr(operands, "multiplies_into_float32", lambda rows: True)
    monkeypatch.setattr(engine, "multiply", multiply)
    loss, eps = LOSSES[name](), torch.finfo(torch.bfloat16).eps
    for scale in (1.0, 2.0**-100, 2.0**100):
        batch = normal_batch(5, B, 3, 7, 16, with_ids=name == "sup_con")
        batch = batch._replace(x=batch.x * scale)
        rounded = in_dtype(batch, torch.bfloat16)
        exact = in_dtype(rounded, torch.float64)
        shapes.clear()
        value, expected = dense_loss(rounded, loss.objective, loss.total), dense_of_batch(loss, exact)
        assert shapes == [(B, B), (3, B), (B, 7)]
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        for g, e in zip(gradients(value, leaves_of(rounded)), gradients(expected, leaves_of(exact)), strict=True):
            assert g.dtype == torch.bfloat16
            torch.testing.assert_close(g.double(), e, rtol=eps, atol=1e-5 * float(e.abs().max()))


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
