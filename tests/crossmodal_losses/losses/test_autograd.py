"""Derivatives of every order, torch.func, torch.compile."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparisons import (
    assert_same_loss,
    dense,
    each_loss,
    gradients,
    learning_loss,
    leaves_of,
    normal_batch,
    normal_pair,
    of_batch,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import oracle
from strategies import losses, settings_of
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import crossmodal_losses
from crossmodal_losses import LOSSES, GatheredLoss, RingLoss, TripletSum, cosine_similarity, diagnose, nt_xent
from crossmodal_losses.checks import Batch

# torch's own forward mode still uses it
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

STEP = 1e-6  # of gradcheck's central differences


def smooth_around(name: str, S: Tensor, settings: dict[str, Any]) -> bool:
    """Return whether the oracle has no kinks, ties and jumps within a few STEPs of S: its gradient does not jump."""
    generator = torch.Generator().manual_seed(0)
    gradients: list[Tensor] = []
    for _ in range(6):
        near = (S + 8 * STEP * (2 * torch.rand(S.shape, generator=generator, dtype=S.dtype) - 1)).requires_grad_()
        gradients += torch.autograd.grad(oracle(name, near, **settings).sum(), near)
    return all(torch.allclose(g, gradients[0], rtol=1e-2, atol=1e-2) for g in gradients)


@st.composite
def generic_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    return normal_pair(draw(st.integers(0, 2**31)), draw(st.integers(1, 4)), draw(st.integers(2, 4)))


@given(data=st.data(), name=losses, pair=generic_pairs())
def test_first_and_second_derivatives(data: st.DataObject, name: str, pair: tuple[Tensor, Tensor]) -> None:
    settings = data.draw(settings_of(name))
    assume(settings.get("temperature", 1) >= 0.07)  # colder: central differences have too few digits left
    x, y = pair
    assume(smooth_around(name, cosine_similarity(x, y).detach(), settings))
    loss = LOSSES[name](**settings)
    assert gradcheck(loss, (x, y), eps=STEP, atol=1e-5)
    assert gradgradcheck(loss, (x, y), eps=STEP, atol=1e-4)


def test_zero_rows_have_zero_derivatives_of_every_order() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    y = torch.eye(3, 2, dtype=torch.float64)
    (first,) = torch.autograd.grad(nt_xent(cosine_similarity(x, y)), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(first, torch.zeros_like(x))
    assert torch.equal(second, torch.zeros_like(x))


@each_loss
@pytest.mark.parametrize("of_similarities", [True, False])
@pytest.mark.parametrize("ids", [None, torch.tensor([0, 1, 1, 2])])
def test_under_torch_func(name: str, of_similarities: bool, ids: Tensor | None) -> None:
    """The function of S, and the module as a function of x."""
    generator = torch.Generator().manual_seed(2)
    batch = torch.rand(3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    tangent, y = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)
    function, module = getattr(crossmodal_losses, name), LOSSES[name]()

    def loss(value: Tensor) -> Any:
        return function(value, ids=ids) if of_similarities else module(value, y, ids)

    values = torch.stack([loss(value) for value in batch])
    (gradient,) = torch.autograd.grad(values.sum(), batch)
    batch = batch.detach()
    torch.testing.assert_close(torch.func.vmap(loss)(batch), values)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch), gradient)
    directional = torch.func.jvp(loss, (batch[0],), (tangent,))[1]
    torch.testing.assert_close(directional, (gradient[0] * tangent).sum())
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(loss(forward_ad.make_dual(batch[0], tangent))).tangent
    torch.testing.assert_close(found, directional)
    _, twice = torch.autograd.functional.vhp(loss, batch[0], tangent)
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(loss), (batch[0],), (tangent,))[1], twice)
    hessian = torch.func.hessian(loss)(batch[0])
    torch.testing.assert_close(torch.einsum("ijkl,kl->ij", hessian, tangent), twice)


def test_the_forward_derivative_of_similarities_in_both_inputs() -> None:
    x, y = (value.detach() for value in normal_pair(0, 4, 3))
    a, b = (value.detach() for value in normal_pair(1, 4, 3))
    found = torch.func.jvp(cosine_similarity, (x, y), (a, b))[1]
    torch.testing.assert_close(found, torch.autograd.functional.jvp(cosine_similarity, (x, y), (a, b))[1])


TRANSFORMATIONS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "vmap": lambda loss, x: torch.func.vmap(loss)(x[None]),
    "grad": lambda loss, x: torch.func.grad(loss)(x),
    "jvp": lambda loss, x: torch.func.jvp(loss, (x,), (x,)),
    "hessian": lambda loss, x: torch.func.hessian(loss)(x),
    "batch of gradients": lambda loss, x: torch.autograd.grad(loss(x), x, torch.ones(2), is_grads_batched=True),
}


@each_loss
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_tiles_refuse_torch_func_in_words(name: str, wrapped: bool, transform: Any) -> None:
    x, y = normal_pair(0, 5, 3)
    loss = GatheredLoss(LOSSES[name](tile_size=2)) if wrapped else LOSSES[name](tile_size=2)
    with pytest.raises(ValueError, match=r"expected a loss in tiles outside of torch.func .*, got one inside"):
        transform(lambda x: loss(x, y.detach()), x)


def test_tiles_refuse_tangents_in_words_and_work_beside_them() -> None:
    x, y = normal_pair(0, 5, 3)
    loss = TripletSum(tile_size=2)
    with forward_ad.dual_level():
        torch.testing.assert_close(loss(x, y), dense(loss, x, y))
        with pytest.raises(ValueError, match=r"expected a loss in tiles outside of torch\.func"):
            loss(forward_ad.make_dual(x.detach(), torch.ones(5, 3, dtype=torch.float64)), y)


# In tiles every loss; without, what is compiled is plain torch, of one kind for several losses.
COMPILED = [(name, 3) for name in LOSSES] + [(name, None) for name in ("nt_xent", "triplet_max", "sigmoid")]

INFERENCE = ("x", "y", "ids", "x ids", "y ids")


@each_loss
@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("made_in_inference_mode", INFERENCE)
def test_inference_tensors(name: str, tile_size: int | None, made_in_inference_mode: str) -> None:
    """Embeddings of a frozen encoder, and ids, may have been made in inference mode."""
    x, y = normal_pair(0, 7, 4)
    inputs = {"x": x, "y": y, "ids": torch.arange(7) // 2}
    made = made_in_inference_mode.split()
    inputs |= {key: inputs[key].detach() for key in made}
    loss = learning_loss(name, tile_size=tile_size)
    ordinary = tuple(inputs.values())
    leaves = tuple(leaf for leaf in (*ordinary, *loss.parameters()) if leaf.requires_grad)
    with torch.inference_mode():
        inputs |= {key: inputs[key].clone() for key in made}
        torch.testing.assert_close(loss(**inputs), dense(loss, *ordinary))
    for wrapped in (loss, GatheredLoss(loss), RingLoss(loss)):
        assert_same_loss(wrapped(**inputs), dense(loss, *ordinary), leaves, {}, {})


@pytest.mark.parametrize("name, tile_size", COMPILED)
@pytest.mark.filterwarnings("default")
def test_inference_tensors_in_a_compiled_loss(name: str, tile_size: int | None) -> None:
    torch._dynamo.reset()
    x, _ = normal_pair(0, 7, 4)
    with torch.inference_mode():
        y, ids = x + 1, torch.arange(7) // 2
    loss = learning_loss(name, tile_size=tile_size)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same_loss(compiled(x, y, ids), loss(x, y, ids), (x, *loss.parameters()), {}, {})


FORMS = [(name, 3, None) for name in LOSSES] + [
    ("nt_xent", 3, True),
    ("nt_xent", None, None),
    ("triplet_max", None, True),
]


@pytest.mark.parametrize("name, tile_size, dynamic", FORMS)
@pytest.mark.filterwarnings("default")
def test_compiles_at_most_twice_over_all_batch_sizes(name: str, tile_size: int | None, dynamic: bool | None) -> None:
    torch._dynamo.reset()
    compilations = CompileCounterWithBackend("aot_eager")
    loss = learning_loss(name, tile_size=tile_size)
    compiled = torch.compile(loss, fullgraph=True, backend=compilations, dynamic=dynamic)
    for B in (12, 7, 20, 31):
        x, y = normal_pair(B, B, 4)
        ids = torch.arange(B) // 2
        assert_same_loss(compiled(x, y, ids), loss(x, y, ids), (x, y, *loss.parameters()), {}, {})
    assert compilations.frame_count <= 2


@pytest.mark.parametrize("name, tile_size", COMPILED)
@pytest.mark.filterwarnings("default")
def test_sizes_that_are_marked_dynamic(name: str, tile_size: int | None) -> None:
    torch._dynamo.reset()
    x, y = normal_pair(0, 12, 4)
    for value in (x, y):
        torch._dynamo.mark_dynamic(value, 0)
    loss = LOSSES[name](tile_size=tile_size)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same_loss(compiled(x, y), loss(x, y), (x, y), {}, {})


@pytest.mark.parametrize("name, tile_size", COMPILED)
@pytest.mark.filterwarnings("default")
def test_exports_with_any_batch_size(name: str, tile_size: int | None) -> None:
    loss, B = LOSSES[name](tile_size=tile_size), torch.export.Dim("B", min=4, max=1000)
    example = tuple(value.detach() for value in normal_pair(0, 12, 4))
    exported = torch.export.export(loss, example, dynamic_shapes={"x": {0: B}, "y": {0: B}})
    x, y = (value.detach() for value in normal_pair(1, 33, 4))
    torch.testing.assert_close(exported.module()(x, y), loss(x, y))


WANTED = [wanted for wanted in itertools.product([False, True], repeat=2) if any(wanted)]


@each_loss
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("form", ["dense", "large dense", "tiles", "of similarities"])
def test_every_subset_of_wanted_gradients(name: str, wanted: tuple[bool, ...], form: str) -> None:
    """The gradients that are wanted are those of all, and are there; no other is."""
    x, y = normal_pair(0, 70 if form == "large dense" else 9, 4)
    loss = learning_loss(name, tile_size=4 if form == "tiles" else None)
    compute: Any = (lambda x, y: dense(loss, x, y)) if form == "of similarities" else loss
    expected = gradients(compute(x, y), (x, y))
    leaves = tuple(value.detach().requires_grad_(want) for value, want in zip((x, y), wanted, strict=True))
    compute(*leaves).backward()
    for value, gradient, want in zip(leaves, expected, wanted, strict=True):
        if want:
            torch.testing.assert_close(value.grad, 2 * gradient)  # the upstream gradient of one number is 0.5
        else:
            assert value.grad is None


@each_loss
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4))[1:])
@pytest.mark.parametrize("tile_size", [None, 4])
def test_gradients_reach_candidates_without_a_partner_where_they_are_wanted(
    name: str, wanted: tuple[bool, ...], tile_size: int | None
) -> None:
    batch, loss = normal_batch(0, 9, 5, 7, 4, with_ids=True), learning_loss(name, tile_size=tile_size)
    embeddings = leaves_of(batch)
    expected = gradients(of_batch(loss, batch), embeddings)
    parts: list[Any] = [value.detach().requires_grad_(want) for value, want in zip(embeddings, wanted, strict=True)]
    of_batch(loss, Batch(*[*parts, *batch.all_ids])).backward(torch.tensor(0.5))
    for value, gradient, want in zip(parts, expected, wanted, strict=True):
        if want:
            torch.testing.assert_close(value.grad, gradient)
        else:
            assert value.grad is None


@each_loss
def test_candidates_without_a_partner_under_torch_func(name: str) -> None:
    batch, loss = Batch(*(v.detach() for v in normal_batch(3, 4, 2, 3, 4, with_ids=True))), LOSSES[name]()  # type: ignore[union-attr]

    def of(negatives: Tensor) -> Tensor:
        return of_batch(loss, batch._replace(negatives_y=negatives))

    assert batch.negatives_y is not None
    given, tangent = batch.negatives_y, batch.negatives_y.flip(0).clone()
    leaf = given.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(of)(given), gradient)
    torch.testing.assert_close(torch.func.vmap(of)(given[None])[0], of(given))
    torch.testing.assert_close(torch.func.jvp(of, (given,), (tangent,))[1], (gradient * tangent).sum())
    _, twice = torch.autograd.functional.vhp(of, given, tangent)
    torch.testing.assert_close(torch.einsum("ijkl,kl->ij", torch.func.hessian(of)(given), tangent), twice)


@pytest.mark.parametrize("name, tile_size", [("triplet_max", 3), ("sup_con", 3), ("sigmoid", 3), ("nt_xent", None)])
@pytest.mark.filterwarnings("default")
def test_compiles_at_most_twice_over_all_numbers_of_candidates(name: str, tile_size: int | None) -> None:
    torch._dynamo.reset()
    compilations, loss = CompileCounterWithBackend("aot_eager"), learning_loss(name, tile_size=tile_size)
    compiled = torch.compile(loss, fullgraph=True, backend=compilations)
    for B, M, N in ((12, 8, 10), (7, 5, 9), (20, 31, 6)):
        batch = normal_batch(B, B, M, N, 4, with_ids=True)
        leaves = leaves_of(batch, *loss.parameters())
        assert_same_loss(of_batch(compiled, batch), of_batch(loss, batch), leaves, {}, {})
    assert compilations.frame_count <= 2


@pytest.mark.parametrize("tile_size", [None, 3])
def test_sup_con_without_ids_is_nt_xent_to_the_bit(tile_size: int | None) -> None:
    batch = normal_batch(0, 9, 5, 7, 4, torch.float32)
    one, other = (of_batch(LOSSES[name](tile_size=tile_size), batch) for name in ("sup_con", "nt_xent"))
    assert torch.equal(one, other)
    assert all(map(torch.equal, gradients(one, leaves_of(batch)), gradients(other, leaves_of(batch))))


@pytest.mark.parametrize("name", ["nt_xent", "sup_con", "sigmoid"])
@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_temperature_of_the_caller_receives_its_gradient(name: str, tile_size: int | None, shape: Any) -> None:
    x, y = normal_pair(0, 7, 4)
    given = {"temperature": torch.full(shape, 0.2, dtype=torch.float64, requires_grad=True)}
    if name == "sigmoid":
        given["bias"] = torch.full(shape, -3.0, dtype=torch.float64, requires_grad=True)
    value = LOSSES[name](tile_size=tile_size)(x, y, torch.arange(7) // 2, **given)
    S = cosine_similarity(x, y)
    settings: dict[str, Any] = {key: value.reshape(()) for key, value in given.items()}
    expected = oracle(name, S, torch.arange(7) // 2, "mean", **settings)
    assert_same_loss(value, expected, (x, y, *given.values()), {}, {})


@each_loss
@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
def test_compiles_without_graph_breaks(name: str) -> None:
    torch._dynamo.reset()
    loss = learning_loss(name)
    compiled = torch.compile(loss, fullgraph=True)
    # The compiler's code for a CPU handles 16 numbers at a time: fewer pairs would not try all of it.
    for ids in (None, torch.arange(33) // 2):
        x, y = normal_pair(3, 33, 40, torch.float32)
        leaves = (x, y, *loss.parameters())
        assert_same_loss(compiled(x, y, ids), loss(x, y, ids), leaves, {}, {"rtol": 1e-4, "atol": 1e-6})


@pytest.mark.filterwarnings("default")
def test_the_compiled_gradient_with_a_fixed_temperature() -> None:
    """Of ``S - S.diagonal()[:, None]`` the default compiler returns wrong gradients on a CPU, from 17 pairs on."""
    torch._dynamo.reset()
    x, y = normal_pair(6, 33, 40, torch.float32)
    loss = LOSSES["nt_xent"]()
    compiled = torch.compile(loss, fullgraph=True)
    assert_same_loss(compiled(x, y), loss(x, y), (x, y), {}, {"rtol": 1e-4, "atol": 1e-6})


@pytest.mark.filterwarnings("default")
def test_the_settings_of_a_compiled_function_may_change() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(crossmodal_losses.triplet_sum, fullgraph=True, backend="aot_eager")
    S = torch.rand(4, 4, generator=torch.Generator().manual_seed(4))
    for margin in (0.1, 0.2, 0.4):
        torch.testing.assert_close(compiled(S, margin=margin), crossmodal_losses.triplet_sum(S, margin=margin))
    compiled_diagnosis = torch.compile(diagnose, fullgraph=True, backend="aot_eager")
    assert compiled_diagnosis(S, S).positive == diagnose(S, S).positive


@pytest.mark.filterwarnings("default")
def test_compiles_without_gradients_too() -> None:
    torch._dynamo.reset()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(5))
    for name, module in LOSSES.items():
        compiled = torch.compile(module(), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, x.flip(0)), module()(x, x.flip(0)), msg=name)
