"""A loss in tiles under torch.compile."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparisons import each_loss, gradients, normal_pair
from torch import Tensor

from crossmodal_losses import LOSSES, NTXent, PairLoss


@each_loss
@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_graph_breaks(name: str, reduction: Any) -> None:
    torch._dynamo.reset()
    settings: dict[str, Any] = {"learn_temperature": True} if name == "nt_xent" else {}
    loss = LOSSES[name](tile_size=4, reduction=reduction, **settings)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ids in (None, torch.arange(9) // 2):
        x, y = normal_pair(15, 9, 6, torch.float32)
        leaves = (x, y, *loss.parameters())
        value, expected = compiled(x, y, ids), loss(x, y, ids)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients(value, leaves), gradients(expected, leaves))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, y, ids), expected)
        one_sided = gradients(compiled(x, y.detach(), ids), (x,))
        torch.testing.assert_close(one_sided, gradients(loss(x, y.detach(), ids), (x,)))


@each_loss
def test_the_compiler_sees_a_correct_operator(name: str) -> None:
    x, y = normal_pair(16, 9, 4)
    rule = LOSSES[name]().rule
    for ids in (None, torch.arange(9) // 2):
        arguments = (x, y, ids, None, rule.name(), rule.numbers(), "mean", 4, True, True)
        # Not its test of all outputs' gradients at once: those of the gradients are second derivatives, and refused.
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.crossmodal_losses.tiled.default, arguments, test_utils=checks)


@each_loss
def test_the_operators_refuse_a_second_derivative_too(name: str) -> None:
    x, y = normal_pair(16, 9, 4)
    rule = LOSSES[name]().rule
    value = torch.ops.crossmodal_losses.tiled(x, y, None, None, rule.name(), rule.numbers(), "mean", 4, True, True)[0]
    (gx,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="expected one derivative of a loss in tiles, got a second"):
        gx.sum().backward()


INDUCTOR: dict[str, Callable[[], tuple[PairLoss, Callable[[Tensor], Tensor], Any]]] = {
    "a float32 temperature and float64 embeddings": lambda: (
        NTXent(learn_temperature=True, tile_size=4),
        lambda x: x,
        {},
    ),
    "transposed embeddings": lambda: (LOSSES["triplet_max"](tile_size=4), lambda x: x.sin().T.contiguous().T, {}),
    "dynamic shapes": lambda: (NTXent(learn_temperature=True, tile_size=4), lambda x: x, {"dynamic": True}),
    "dynamic shapes, at once": lambda: (NTXent(learn_temperature=True), lambda x: x, {"dynamic": True}),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", INDUCTOR)
def test_the_default_compiler(case: str) -> None:
    torch._dynamo.reset()
    loss, of, options = INDUCTOR[case]()

    def whole(x: Tensor, y: Tensor) -> Tensor:
        return loss(of(x), of(y))

    compiled = torch.compile(whole, fullgraph=True, **options)
    for B in (9, 11):
        x, y = normal_pair(15, B, 6)
        leaves = (x, y, *loss.parameters())
        value, expected = compiled(x, y), whole(x, y)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients(value, leaves), gradients(expected, leaves), rtol=1e-6, atol=1e-7)


@each_loss
def test_rules_survive_as_numbers(name: str) -> None:
    rule = LOSSES[name]().rule
    again = type(rule).from_numbers(rule.numbers(), None)
    assert again.numbers() == rule.numbers()
