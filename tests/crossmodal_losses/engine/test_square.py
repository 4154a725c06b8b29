"""The form for small batches: as few operators as were counted, and the values and gradients of the reference."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from comparisons import assert_same_loss, dense, exact_pair, learning_loss, normal_pair
from hypothesis import given
from hypothesis import strategies as st
from strategies import ids_for, reductions, settings_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crossmodal_losses import LOSSES, NTXent
from crossmodal_losses.engine.square import Square, SquareBatch

# fmt: off
VIEWS = {
    "alias", "as_strided", "detach", "diagonal", "expand", "permute", "select", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
}
# fmt: on

# Operators of a forward and a backward pass that are no views, at default settings, and for anything else on top.
MOST = {
    "nt_xent": 42,
    "sup_con": 42,
    "triplet_max": 42,
    "triplet_sum": 44,
    "sigmoid": 34,
    "triplet_weighted": 60,
    "triplet_weighted_mined": 66,
}
MORE = 12


class Operators(TorchDispatchMode):
    """The operators that are no views, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def operators(loss: Any, ids: Tensor | None = None) -> Counter[str]:
    x, y = normal_pair(0, 32, 8, torch.float32)
    with Operators() as seen:
        value = loss(x, y, ids)
        value.backward(torch.ones_like(value) if value.dim() else None)
    counts: Counter[str] = seen.counts
    return counts


@pytest.mark.parametrize("name", MOST)
def test_the_number_of_operators(name: str) -> None:
    assert operators(LOSSES[name]()).total() <= MOST[name]
    for reduction in ("sum", "none"):
        assert operators(LOSSES[name](reduction=reduction)).total() <= MOST[name] + MORE
    of_several = 17 if name == "sup_con" else MORE  # with ids it has several positives
    assert operators(LOSSES[name](), torch.arange(32) // 2).total() <= MOST[name] + of_several


def test_the_number_of_operators_of_a_learned_temperature() -> None:
    assert operators(NTXent(learn_temperature=True)).total() <= MOST["nt_xent"] + MORE
    assert operators(learning_loss("sigmoid")).total() <= MOST["sigmoid"] + MORE + 3  # a bias, too


@pytest.mark.parametrize("name", MOST)
@given(data=st.data(), seed=st.integers(0, 2**31), reduction=reductions)
def test_equals_the_reference(name: str, data: st.DataObject, seed: int, reduction: Any) -> None:
    """With ties, duplicates, B = 1, ids; also the gradients of a learned temperature and bias."""
    B = data.draw(st.integers(1, 9))
    exact = data.draw(st.booleans())
    x, y = exact_pair(seed, B) if exact else normal_pair(seed, B, 5)
    x, y = (rows.detach().clone() for rows in (x, y))
    for rows in (x, y):
        # A row of zeros takes the form for every batch; one of length 2 keeps similarities exact.
        rows[rows.abs().sum(1) == 0] = torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64)
        rows.requires_grad_()
    settings = data.draw(settings_of(name))
    settings["reduction"] = reduction
    if "temperature" in settings and 0.01 < settings["temperature"] < 1 and data.draw(st.booleans()):
        settings["learn_temperature"] = True
    if "bias" in settings and data.draw(st.booleans()):
        settings["learn_bias"] = True
    loss = LOSSES[name](**settings).double()
    ids = data.draw(ids_for(B))
    leaves = (x, y, *loss.parameters())
    close = {"rtol": 1e-9, "atol": 1e-11}
    assert_same_loss(loss(x, y, ids), dense(loss, x, y, ids), leaves, close, {"rtol": 1e-8, "atol": 1e-10})


@pytest.mark.parametrize("name", MOST)
def test_a_second_backward_pass_finds_the_same(name: str) -> None:
    loss = learning_loss(name)
    x, y = normal_pair(3, 12, 6, torch.float32)
    value = loss(x, y)
    leaves = (x, y, *loss.parameters())
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(value, leaves), strict=True))
    value = loss(x, y.detach())
    assert torch.equal(torch.autograd.grad(value, x)[0], first[0])


@pytest.mark.parametrize(("D", "kept"), [(23, 1), (24, 2)])
def test_similarities_are_kept_where_they_are_fewer_than_entries_of_x(D: int, kept: int) -> None:
    """Beside them, the exponentials."""
    sizes: list[int] = []

    def count(value: Tensor) -> Tensor:
        sizes.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        NTXent()(*normal_pair(0, 23, D))
    assert sizes.count(23 * 23) - (2 if D == 23 else 0) == kept


@pytest.mark.parametrize("name", ["nt_xent", "sup_con", "sigmoid"])
def test_a_temperature_that_cannot_be_read_is_left_to_the_form_for_every_batch(name: str) -> None:
    loss = LOSSES[name]()
    assert loss.objective.square is not None
    assert loss.objective_with({"temperature": torch.empty((), device="meta")}).square is None


@pytest.mark.parametrize("name", ["nt_xent", "sup_con"])
def test_the_gradient_of_pairs_that_are_found_keeps_its_digits(name: str) -> None:
    """A loss of 1e-6, of anchors that have one positive."""
    y, noise = torch.randn(2, 32, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, loss, ids = y + 0.3 * noise, LOSSES[name](temperature=0.05), torch.arange(32)
    found = []
    for dtype in (torch.float32, torch.float64):
        rows = x.to(dtype).requires_grad_()
        value = loss(rows, y.to(dtype), ids)
        assert 1e-8 < value.item() < 1e-5
        found.append(torch.autograd.grad(value, rows)[0].double())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-5


def test_a_hinge_at_0_has_no_gradient() -> None:
    """All similarities are 0.5, and so are the zeros of one of the polynomials."""
    x, y = torch.eye(4)[:2].requires_grad_(), torch.ones(2, 4)
    at_0, above = (-0.5, 1.0), (0.5, 1.0)
    for of_positive, of_negative in ((at_0, above), (above, at_0)):
        settings: dict[str, Any] = {"positive_coefficients": of_positive, "negative_coefficients": of_negative}
        loss = LOSSES["triplet_weighted_mined"](margin=1.0, **settings)
        found, expected = (torch.autograd.grad(call(x, y), x)[0] for call in (loss, partial(dense, loss)))
        assert float(expected.abs().max()) > 0.1
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("D", [6, 24])  # S is kept where B < D
def test_each_gradient_alone(D: int) -> None:
    x, y = normal_pair(7, 23, D)
    loss = NTXent(learn_temperature=True).double()
    leaves = (x, y, *loss.parameters())
    together = torch.autograd.grad(loss(x, y), leaves)
    for k, needed in enumerate(leaves):
        loss.requires_grad_(k == 2)
        a, b = (value if value is needed else value.detach() for value in (x, y))
        torch.testing.assert_close(torch.autograd.grad(loss(a, b), needed)[0], together[k])


@pytest.mark.parametrize("poison", [0.0, 1e-30, 1e30, torch.inf, torch.nan])
def test_lengths_that_need_a_scale_are_left_to_the_form_for_every_batch(poison: float) -> None:
    x, y = (rows.detach() for rows in normal_pair(0, 4, 3))
    assert SquareBatch.of(x, y) is not None
    assert SquareBatch.of(x, torch.cat([y[1:], torch.full_like(y[:1], poison)])) is None


def test_a_form_without_a_parameter_has_no_gradient_of_it() -> None:
    square = LOSSES["triplet_sum"]().objective.square
    assert isinstance(square, Square)
    with pytest.raises(NotImplementedError):
        square.grad_parameter(torch.ones(()), None)
