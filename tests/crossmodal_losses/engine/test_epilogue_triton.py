"""The fused kernels do what plain torch does: on the device if there is one, else as triton interprets them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import dense_of_batch, gradients, learning_loss, leaves_of, normal_batch, of_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crossmodal_losses import LOSSES, NTXent, PairLoss, TripletMax
from crossmodal_losses.checks import Batch
from crossmodal_losses.engine import tiles
from crossmodal_losses.engine.aggregation import Aggregation, HardestNegative, HingeSum, LogSumExp
from crossmodal_losses.engine.epilogue import Epilogue, Place, Plain, tile_memory
from crossmodal_losses.engine.objective import Directions, Total
from crossmodal_losses.engine.operands import Operand, Statistics, measure_norms
from crossmodal_losses.losses.sigmoid import SoftplusSum
from crossmodal_losses.losses.sup_con import SoftmaxOfSeveral

pytest.importorskip("triton")

from interpreted_kernels import interpret

from crossmodal_losses.engine import dispatch, epilogue_fused, epilogue_triton, formulas_triton
from crossmodal_losses.engine.epilogue_fused import Fused, supports

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# A device's fast exp is wrong by 1e-7 times its argument, which is up to 40 where it matters.
RTOL, ATOL = (2e-5 if DEVICE == "cuda" else 2e-6), 2e-6


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels run on a CPU. What lies beyond the edges of a tile is never initialised: it may overflow."""
    if DEVICE == "cuda":
        yield
        return
    interpret(monkeypatch, formulas_triton, epilogue_triton)
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epilogue_fused, "BLOCK_ROWS", 16)
    monkeypatch.setattr(epilogue_fused, "BLOCK_COLUMNS", 32)


AGGREGATIONS = {
    "hardest": HardestNegative(),
    "hinges": HingeSum(0.2),
    "t = 0.07": LogSumExp(0.07),
    "t = 0.025": LogSumExp(0.025),
    "t = 0.005": LogSumExp(0.005),
    "learned t": LogSumExp(torch.tensor(0.05, device=DEVICE)),
    "several": SoftmaxOfSeveral(0.07),
    "several, learned t": SoftmaxOfSeveral(torch.tensor(0.05, device=DEVICE)),
    "pairs": SoftplusSum((0.1, -10.0)),
    "pairs, learned": SoftplusSum(torch.tensor([0.05, -3.0], device=DEVICE)),
}
WITH_TILE_GRADIENTS = sorted(AGGREGATIONS.keys() - {"hardest"})

# B, and the rows and columns of a tile in it.
PLACES = {
    "1 x 1, all there is": (1, slice(0, 1), slice(0, 1)),
    "1 x 7": (9, slice(8, 9), slice(1, 8)),
    "7 x 1": (9, slice(1, 8), slice(8, 9)),
    "37 x 65": (102, slice(0, 37), slice(37, 102)),
    "37 x 37 on the diagonal": (40, slice(2, 39), slice(2, 39)),
    "64 x 64": (130, slice(64, 128), slice(0, 64)),
    "64 x 64 on the diagonal": (130, slice(64, 128), slice(64, 128)),
    "129 x 70": (200, slice(70, 199), slice(0, 70)),
    "129 x 129 on the diagonal": (130, slice(1, 130), slice(1, 130)),
}

# Single directions at places of all kinds of edges alone: the interpreter is slow.
each_place_and_direction = pytest.mark.parametrize(
    "place, weights",
    [
        *((place, (1.0, 1.0)) for place in PLACES),
        *(
            (place, weights)
            for place in ("37 x 65", "129 x 129 on the diagonal")
            for weights in ((0.5, 0.0), (0.0, 2.0))
        ),
    ],
)
with_and_without_ids = pytest.mark.parametrize("with_ids", [False, True], ids=["no ids", "ids"])


class Problem:
    """Random embeddings, a row of zeros on either side, some ids equal, or none given; with as many further candidates.

    S and its further candidates, of y or of x, are made from the rows of these.
    """

    def __init__(self, B: int, with_ids: bool = False, weights: tuple[float, float] = (1.0, 1.0)) -> None:
        generator = torch.Generator().manual_seed(B)
        x, y = torch.randn(2, B, 8, generator=generator)
        if B > 8:
            x[5], y[B - 2] = 0, 0
        ids = torch.randint(B // 3 + 1, (B,), generator=generator)
        self.ids = ids.to(DEVICE) if with_ids else None
        self.directions = Directions.of(TripletMax().objective, Total("mean", weights))
        self.operands = measure_norms(Batch(x.to(DEVICE), y.to(DEVICE), ids=self.ids), B)
        self.S = self.operands.x.dimensions() @ self.operands.y.dimensions().T
        self.upstream = torch.randn(2, B, generator=generator).to(DEVICE)
        groups = torch.arange(B) if self.ids is None else ids
        self.upstream *= (groups[:, None] != groups).any(1).to(DEVICE)  # as the engine does
        self.upstream = self.upstream[: len(self.directions.weights)]

    def operand(self, which: Operand) -> Operand:
        """The rows with their ids as they are, as the engine has them on CUDA."""
        return Operand(which.rows, Statistics(which.inv_norm, which.scale, self.ids), which.dtype, which.start)

    def epilogue(self, kind: type[Epilogue], aggregation: Aggregation, I: slice, J: slice) -> Epilogue:  # noqa: E741
        x, y = self.operand(self.operands.x), self.operand(self.operands.y)
        positive = self.S.diagonal() * x.inv_norm * y.inv_norm
        epilogue = kind(aggregation, self.directions, positive, self.operands.dtype)
        place = Place(x, I, y, J, self.directions.of_pairs, I == J)
        tile = self.S[I, J]
        _, products = tile_memory(tile.new_empty(0), tile.shape, epilogue.alignment)
        epilogue.take(products.copy_(tile), place)
        return epilogue

    def state(self, aggregation: Aggregation) -> tuple[Tensor, ...]:
        everything = slice(0, len(self.S))
        states = states_of(self.epilogue(Plain, aggregation, everything, everything))
        return tuple(torch.stack(parts) for parts in zip(*states, strict=True))


def rtol_of(aggregation: Aggregation) -> float:
    """An exponent s / t is rounded a few times in either form, by 6e-8 of at most 1 / t."""
    assert aggregation.kernel is not None
    name, settings = aggregation.kernel
    return RTOL + (0 if name in ("hardest", "hinges") else 3e-7 / float(settings[0]))


def states_of(epilogue: Epilogue) -> list[tuple[Tensor, ...]]:
    """The states of a tile's anchors, in each of its directions."""
    epilogue.add_states()
    return [state for state in map(epilogue.state_of, (0, 1)) if state is not None]


def assert_same_states(
    value: list[tuple[Tensor, ...]], expected: list[tuple[Tensor, ...]], aggregation: Aggregation
) -> None:
    for states, expected_states in zip(value, expected, strict=True):
        assert len(states) == len(expected_states)
        for part, expected_part in zip(states, expected_states, strict=True):
            if aggregation.selects:
                assert part.dtype == expected_part.dtype
                assert torch.equal(part, expected_part)
            else:
                torch.testing.assert_close(part, expected_part, rtol=rtol_of(aggregation), atol=ATOL)


def assert_close_in_scale(value: Tensor, expected: Tensor, rtol: float = RTOL, atol: float = ATOL) -> None:
    scale = float(expected.abs().max()) if len(expected.flatten()) else 0.0
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol * (1e-3 + scale))


@each_place_and_direction
@with_and_without_ids
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_states(name: str, with_ids: bool, place: str, weights: tuple[float, float]) -> None:
    B, I, J = PLACES[place]  # noqa: E741
    batch, aggregation = Problem(B, with_ids, weights), AGGREGATIONS[name]
    fused, plain = (states_of(batch.epilogue(kind, aggregation, I, J)) for kind in (Fused, Plain))
    assert_same_states(fused, plain, aggregation)


@each_place_and_direction
@with_and_without_ids
@pytest.mark.parametrize("name", WITH_TILE_GRADIENTS)
def test_gradients_of_a_tile(name: str, with_ids: bool, place: str, weights: tuple[float, float]) -> None:
    B, I, J = PLACES[place]  # noqa: E741
    batch, aggregation = Problem(B, with_ids, weights), AGGREGATIONS[name]
    state = batch.state(aggregation)
    factors = aggregation.anchor_factors(state, batch.upstream).detach()
    if aggregation.one_pass:
        state = ()
    fused, plain = batch.epilogue(Fused, aggregation, I, J), batch.epilogue(Plain, aggregation, I, J)
    gradient, expected = fused.grad_products(state, factors), plain.grad_products(state, factors)
    rtol = rtol_of(aggregation)
    assert_close_in_scale(gradient, expected, rtol=rtol)
    if aggregation.parameter is not None:
        scale = float(expected.abs().sum() / aggregation.parameter.detach().flatten()[0])
        of_plain = plain.grad_parameter().detach()
        torch.testing.assert_close(fused.grad_parameter(), of_plain, rtol=rtol, atol=ATOL * scale)
    assert fused.any_gradient()

    if aggregation.one_pass:
        fused = batch.epilogue(Fused, aggregation, I, J)
        assert torch.equal(fused.one_pass(factors), gradient)
        of_states = [state for state in map(fused.state_of, (0, 1)) if state is not None]
        assert_same_states(of_states, states_of(batch.epilogue(Plain, aggregation, I, J)), aggregation)
    fused = batch.epilogue(Fused, aggregation, I, J)
    fused.dtype = torch.bfloat16
    rounded = fused.grad_products(state, factors)
    assert rounded.dtype == torch.bfloat16
    assert_close_in_scale(rounded.float(), expected, rtol=2**-7)  # the interpreter cuts off where a device rounds


def first_of_largest(S: Tensor) -> list[int]:
    """Index of the largest entry of every row; by hand."""
    return [row.index(max(row)) for row in S.tolist()]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("values", [1, 2, 5])
@pytest.mark.parametrize("place", ["37 x 65", "37 x 37 on the diagonal", "129 x 70"])
def test_of_equal_similarities_the_lowest_index_wins(place: str, values: int) -> None:
    """Ties lie in one block or in several."""
    B, I, J = PLACES[place]  # noqa: E741
    batch = Problem(B)
    batch.operands.x.inv_norm.fill_(1)
    batch.operands.y.inv_norm.fill_(1)
    batch.S = torch.randint(values, (B, B), generator=torch.Generator().manual_seed(0)).to(DEVICE) / 4 - 0.5
    fused, plain = (states_of(batch.epilogue(kind, HardestNegative(), I, J)) for kind in (Fused, Plain))
    assert_same_states(fused, plain, HardestNegative())
    S = batch.S.clone().fill_diagonal_(-1)[I, J]
    (_, of_rows), (_, of_columns) = fused
    assert (of_rows - J.start).tolist() == first_of_largest(S)
    assert (of_columns - I.start).tolist() == first_of_largest(S.T)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_without_negatives(name: str) -> None:
    """All ids equal: the numbers mean nothing, but they are those of plain torch, and the gradients are 0."""
    batch, aggregation = Problem(70), AGGREGATIONS[name]
    batch.ids = torch.zeros(70, dtype=torch.int64, device=DEVICE)
    I, J = slice(0, 40), slice(40, 70)  # noqa: E741
    fused = batch.epilogue(Fused, aggregation, I, J)
    plain = batch.epilogue(Plain, aggregation, I, J)
    assert_same_states(states_of(fused), states_of(plain), aggregation)
    if not aggregation.selects:
        assert not fused.grad_products(batch.state(aggregation), torch.zeros_like(batch.upstream)).any()


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize(
    "place, entry",
    [("1 x 7", (0, 6)), ("7 x 1", (6, 0)), ("64 x 64", (0, 0)), ("129 x 70", (128, 69)), ("129 x 70", (30, 65))],
)
def test_nan_stays_inside(name: str, place: str, entry: tuple[int, int]) -> None:
    """A NaN at an edge: an index is one of the tile, a sum is NaN, and others do not see it."""
    B, I, J = PLACES[place]  # noqa: E741
    batch, aggregation = Problem(B), AGGREGATIONS[name]
    batch.S[I, J][entry] = torch.nan
    of_rows, of_columns = states_of(batch.epilogue(Fused, aggregation, I, J))
    for states, there in ((of_rows, entry[0]), (of_columns, entry[1])):
        if aggregation.selects:
            assert bool(((states[1] >= 0) & (states[1] < B)).all())
        else:
            assert states[0].isnan().nonzero().flatten().tolist() == [there]


def test_a_block_of_excluded_pairs_at_a_tiny_temperature() -> None:
    """-1e30 / t is -inf."""
    batch, aggregation = Problem(65), LogSumExp(1e-9)  # the last block holds the last pair alone
    everything = slice(0, 65)
    fused, plain = (states_of(batch.epilogue(kind, aggregation, everything, everything)) for kind in (Fused, Plain))
    assert_same_states(fused, plain, aggregation)
    assert all(bool(state.isfinite().all()) for (state,) in fused)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["hardest", "hinges", "t = 0.07", "t = 0.005"])
def test_states_of_many_blocks_and_of_several_tiles(name: str) -> None:
    """More blocks than are merged at a time; and what is merged does not depend on the tiles."""
    batch, aggregation = Problem(530), AGGREGATIONS[name]
    if aggregation.selects:  # equal ones in many blocks, and in both tiles
        batch.operands.x.inv_norm.fill_(1)
        batch.operands.y.inv_norm.fill_(1)
        batch.S = torch.randint(2, (530, 530), generator=torch.Generator().manual_seed(0)).to(DEVICE) / 2
    I, J = slice(0, 530), slice(1, 4)  # noqa: E741
    expected = states_of(batch.epilogue(Plain, aggregation, I, J))
    assert_same_states(states_of(batch.epilogue(Fused, aggregation, I, J)), expected, aggregation)
    epilogue = batch.epilogue(Fused, aggregation, slice(500, 530), J)
    epilogue.add_states()
    others = batch.epilogue(Fused, aggregation, slice(0, 500), J)
    epilogue.take(others.products, others.place)
    assert_same_states(states_of(epilogue), expected, aggregation)


def test_what_kernels_would_read_wrongly_is_refused() -> None:
    batch, I, J = Problem(70), slice(0, 40), slice(40, 70)  # noqa: E741
    epilogue = batch.epilogue(Fused, HardestNegative(), I, J)
    products, place = epilogue.products, epilogue.place
    memory = torch.zeros(64 * 64, device=DEVICE)
    for wrong in (
        batch.S[I, J].contiguous(),
        memory.view(64, 64).T[:40, :30],
        memory[64:].view(63, 64)[:40, :30],
        memory.view(128, 32)[:40, :30],
    ):
        with pytest.raises(ValueError, match="expected rows that are contiguous, in memory of 64 x a multiple of 64"):
            epilogue.take(wrong, place)
    epilogue.take(products, place)
    place.row.inv_norm = torch.ones(70, 2, device=DEVICE)[:, 0]
    with pytest.raises(ValueError, match=r"expected inv_norm_x to be contiguous, got strides \(2,\)"):
        epilogue.take(products, place)


def test_factors_and_state_may_be_views() -> None:
    batch, aggregation = Problem(50), AGGREGATIONS["t = 0.005"]
    I, J = slice(0, 20), slice(20, 50)  # noqa: E741
    state = tuple(part.T.contiguous().T for part in batch.state(aggregation))
    factors = batch.upstream[:1].expand(2, -1)
    fused, plain = batch.epilogue(Fused, aggregation, I, J), batch.epilogue(Plain, aggregation, I, J)
    gradient, expected = fused.grad_products(state, factors), plain.grad_products(state, factors)
    assert_close_in_scale(gradient, expected, rtol=rtol_of(aggregation))


class Waiting(TorchDispatchMode):
    """Refuses what would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_waits_for_nothing(name: str) -> None:
    batch, aggregation = Problem(40, True), AGGREGATIONS[name]
    I, J = slice(0, 20), slice(20, 40)  # noqa: E741
    state = batch.state(aggregation)
    with Waiting():  # type: ignore[no-untyped-call]
        fused = batch.epilogue(Fused, aggregation, I, J)
        fused.add_states()
        if not aggregation.selects:
            fused.grad_products(state, batch.upstream)
            assert fused.any_gradient()


class Another(HingeSum):
    """No kernel knows what it redefines."""


class Without(HingeSum):
    """It says that there is no kernel."""

    kernel = Aggregation.kernel  # type: ignore[assignment]


def test_what_is_supported() -> None:
    assert all(supports(torch.float32, aggregation) for aggregation in AGGREGATIONS.values())
    assert not supports(torch.float64, HardestNegative())
    assert not supports(torch.float32, Another(0.2))
    assert not supports(torch.float32, Without(0.2))
    batch = Problem(3)
    one = slice(0, 1)
    with pytest.raises(NotImplementedError, match="expected a fold of many pairs"):
        batch.epilogue(Fused, HardestNegative(), one, one).grad_products((), batch.upstream)


ENGINE: dict[str, PairLoss] = {
    **{name: loss() for name, loss in LOSSES.items()},
    "nt_xent, t = 0.01": NTXent(temperature=0.01),
    **{f"{name}, learned": learning_loss(name) for name in ("nt_xent", "sup_con", "sigmoid")},
}


@pytest.mark.usefixtures("small_blocks")
@with_and_without_ids
@pytest.mark.parametrize("name", ENGINE)
def test_losses(name: str, with_ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole engine, over wide tiles of several blocks, is the loss of all similarities."""

    monkeypatch.setattr(tiles, "epilogue_type", lambda *_: Fused)
    loss = ENGINE[name].to(DEVICE)
    monkeypatch.setattr(loss, "tile_size", 48)
    monkeypatch.setattr(dispatch, "tile_of", lambda *_: (20, 48))
    for M, N, weights in ((0, 0, (1.0, 1.0)), (0, 30, (1.0, 1.0)), (50, 20, (0.5, 2.0)), (10, 60, (1.0, 0.0))):
        batch = normal_batch(1, 70, M, N, 6, torch.float32, with_ids=with_ids)
        batch = Batch(*(None if v is None else v.detach().to(DEVICE).requires_grad_(v.requires_grad) for v in batch))  # type: ignore[arg-type]
        monkeypatch.setattr(loss, "direction_weights", weights)
        inputs = leaves_of(batch, *loss.parameters())
        dense, value = dense_of_batch(loss, batch), of_batch(loss, batch)
        torch.testing.assert_close(value, dense, rtol=RTOL, atol=ATOL)
        for gradient, expected in zip(gradients(value, inputs), gradients(dense, inputs), strict=True):
            assert_close_in_scale(gradient, expected, rtol=1e-4, atol=5 * ATOL)


SHAPES = "test_faketensor"  # of outputs, which the compiler is told


@pytest.mark.filterwarnings("default")  # the compiler's own imports warn of deprecations
@pytest.mark.parametrize("name", ["nt_xent", "nt_xent, learned", "sup_con", "sigmoid", "triplet_max"])
def test_products_are_kept_where_there_is_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One product less, the same bits, in a second backward pass and under torch.compile, too."""
    made: list[torch.Size] = []

    def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
        made.append(out.shape)
        torch.mm(a, b, out=out)

    monkeypatch.setattr(tiles, "multiply", multiply)
    monkeypatch.setattr(tiles, "epilogue_type", lambda *_: Fused)
    torch._dynamo.reset()
    loss = ENGINE[name].to(DEVICE)
    monkeypatch.setattr(loss, "tile_size", 16)
    batch = normal_batch(2, 37, 9, 20, 6, torch.float32, with_ids=name == "sup_con")
    batch = Batch(*(None if v is None else v.detach().to(DEVICE).requires_grad_(v.requires_grad) for v in batch))  # type: ignore[arg-type]
    inputs = leaves_of(batch, *loss.parameters())
    found, counts = [], []
    compiled = torch.compile(lambda *batch: of_batch(loss, Batch(*batch)), fullgraph=True, backend="aot_eager")
    # In memory there are 128 rows of x in two tiles, and 64 of y and of either kind of candidates.
    for width in (1024, 1023):
        monkeypatch.setattr(dispatch, "tile_of", lambda *_, width=width: (20, width))
        made.clear()
        value = of_batch(loss, batch)
        found += [torch.autograd.grad(value, inputs, retain_graph=True), torch.autograd.grad(value, inputs)]
        counts.append(len(made))
        made.clear()
        found.append(torch.autograd.grad(compiled(*batch), inputs))
        counts.append(len(made))
        made.clear()
        with torch.no_grad():
            torch.testing.assert_close(compiled(*batch), value, rtol=0, atol=0)
        assert len(made) == 5
    assert all(torch.equal(grad, first) for grads in found for grad, first in zip(grads, found[0], strict=True))
    if name == "nt_xent":
        settings = loss.objective.name(), loss.objective.numbers(), "mean", [1.0, 1.0], [20, 1024], [True] * 4 + [False]
        torch.library.opcheck(
            torch.ops.crossmodal_losses.tiled_forward.default, (*batch, None, *settings), test_utils=SHAPES
        )
    of_one_pass = 2 + 2 + 1  # of pairs, of them with either kind of candidates
    if name == "triplet_max":
        assert counts == [of_one_pass] * 4
    elif name == "sigmoid":  # a second backward pass finds the gradients anew
        assert counts == [of_one_pass * passes for passes in (2, 1, 2, 1)]
    else:
        assert counts == [of_one_pass * passes for passes in (1, 1, 3, 2)]
