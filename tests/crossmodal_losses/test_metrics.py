"""Retrieval metrics equal a loop that sorts, in both directions; their limits in memory; what is refused."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from comparisons import Largest, exact_pair
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalMRR

from crossmodal_losses import metrics as module
from crossmodal_losses import retrieval_metrics

KS = (1, 2, 5, 10, 16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def test_worked_by_hand() -> None:
    """Three images, of 2, 1 and 1 captions."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    metrics = retrieval_metrics(x, y, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1, 2]), ks=(1, 2, 5))
    # Images to captions. 1st: 1, 0, 0, 1: its own at 1 (tied with the 4th: rank 2) and 0 (with the 3rd: rank 4).
    # 2nd: 0, 1, 1, 0: its own tied with the 2nd: rank 2. 3rd: .6, .8, .8, .6: behind two, tied with one: rank 4.
    found = metrics.x_to_y
    assert found.ranks.tolist() == [2, 2, 4]
    assert found.recall == pytest.approx({1: 0, 2: 2 / 3, 5: 1})
    assert found.map == pytest.approx({1: 0, 2: (1 / 2 / 2 + 1 / 2) / 3, 5: ((1 / 2 + 2 / 4) / 2 + 1 / 2 + 1 / 4) / 3})
    assert (found.median_rank, found.candidates) == (2, 4)
    assert found.mean_rank == pytest.approx(8 / 3)
    # Captions to images. 1st: 1, 0, .6 -> rank 1. 2nd: 0, 1, .8 -> rank 3. 3rd -> rank 1. 4th: 1, 0, .6 -> rank 2.
    found = metrics.y_to_x
    assert found.ranks.tolist() == [1, 3, 1, 2]
    assert found.recall == {1: 0.5, 2: 0.75, 5: 1}
    assert found.map == pytest.approx({1: 0.5, 2: 0.625, 5: (1 + 1 / 3 + 1 + 1 / 2) / 4})
    assert (found.median_rank, found.mean_rank, found.candidates) == (1.5, 1.75, 3)


@st.composite
def ids_of_both_sides(draw: st.DrawFn, N: int, M: int) -> tuple[Tensor, Tensor]:
    """Draw ids of which each is on both sides: one to one, one to many, many to one, many to many."""
    values = draw(st.lists(st.integers(-128, 127), min_size=1, max_size=min(N, M), unique=True))
    sides = []
    for size in (N, M):
        further = draw(st.lists(st.sampled_from(values), min_size=size - len(values), max_size=size - len(values)))
        sides.append(torch.tensor(draw(st.permutations([*values, *further])), dtype=draw(st.sampled_from(INTEGERS))))
    return sides[0], sides[1]


def random_relation(seed: int, N: int, M: int) -> Tensor:
    """Return which of N rows are relevant to which of M, bool ``[N, M]``, at least one to each."""
    generator = torch.Generator().manual_seed(seed)
    relation = torch.rand(N, M, generator=generator) < torch.rand((), generator=generator)
    relation[torch.arange(N), torch.randint(M, (N,), generator=generator)] = True
    relation[torch.randint(N, (M,), generator=generator), torch.arange(M)] = True
    return relation


@given(st.data(), st.booleans())
def test_both_directions_equal_loops(data: st.DataObject, by_ids: bool) -> None:
    """With ties, duplicates and rows of zeros, in blocks of any number of queries, for k beyond the candidates too."""
    N, M = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14))
    x, y = exact_pair(data.draw(st.integers(0, 2**31)), max(N, M))
    x, y = x[:N], y[:M]
    if by_ids:
        x_ids, y_ids = data.draw(ids_of_both_sides(N, M))
        relevant: dict[str, Tensor] = {"x_ids": x_ids, "y_ids": y_ids}
        relevance = [[i == j for j in y_ids.tolist()] for i in x_ids.tolist()]
    else:
        relation = random_relation(data.draw(st.integers(0, 2**31)), N, M)
        relevance = relation.tolist()
        pairs = torch.cat([relation.nonzero().flip(0), relation.nonzero()[::2]])  # in another order, some twice
        relevant = {"relevant": pairs.to(data.draw(st.sampled_from(INTEGERS)))}
    dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", data.draw(st.sampled_from([1, 200, 500, 2**26])))
        metrics = retrieval_metrics(x.to(data.draw(dtypes)), y.to(data.draw(dtypes)), **relevant, ks=KS)
    S, transposed = oracles.cosine_similarity(x, y), list(zip(*relevance, strict=True))
    for found, scores, of_queries in ((metrics.x_to_y, S, relevance), (metrics.y_to_x, S.T, transposed)):
        for k in KS:
            expected = oracles.retrieval_metrics(scores, of_queries, k)
            assert found.recall[k] == expected["recall"]
            assert found.map[k] == pytest.approx(expected["map"], rel=1e-6)
        assert found.ranks.tolist() == expected["ranks"]
        assert found.median_rank == expected["median_rank"]
        assert found.mean_rank == pytest.approx(expected["mean_rank"], rel=1e-12)
        assert found.candidates == scores.shape[1]


def random_pairs(N: int = 60, D: int = 8, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator)
    return x, x + noise * torch.randn(N, D, generator=generator)


def assert_same(found: Any, expected: Any) -> None:
    assert found == expected
    assert torch.equal(found.x_to_y.ranks, expected.x_to_y.ranks)
    assert torch.equal(found.y_to_x.ranks, expected.y_to_x.ranks)


def test_without_ids_the_rows_are_pairs() -> None:
    x, y = random_pairs()
    ids = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert_same(retrieval_metrics(x, y), retrieval_metrics(x, y, ids, ids))


def test_relevant_pairs_may_be_any_relation() -> None:
    """Of three images the first has both captions, the second only the first caption, the third only the second."""
    x, y = torch.eye(3), torch.eye(3)[:2]
    metrics = retrieval_metrics(x, y, relevant=torch.tensor([[2, 1], [0, 0], [0, 1], [1, 0], [0, 1]]), ks=(1, 2))
    # Images to captions: 1, 0, both right; 0, 1, the first is right; 0, 0, a tie.
    assert metrics.x_to_y.ranks.tolist() == [1, 2, 2]
    assert metrics.x_to_y.map == pytest.approx({1: 1 / 3, 2: (1 + 1 / 2 + 1 / 2) / 3})
    # Captions to images: 1, 0, 0, right are the first and one of the tie; 0, 1, 0, right are both but the second.
    assert metrics.y_to_x.ranks.tolist() == [1, 2]
    assert metrics.y_to_x.map == pytest.approx({1: 1 / 2, 2: (1 / 2 + 1 / 2 / 2) / 2})


def test_lengths_of_rows_do_not_count() -> None:
    x, y = random_pairs()
    expected = retrieval_metrics(normalize(x), normalize(y))
    assert 0.3 < expected.x_to_y.recall[1] < 0.9
    lengths = torch.linspace(-80, 80, len(x)).exp2()[:, None]
    for a, b in ((x, y), (lengths * x, y), (x, y * lengths), (lengths * x, y / lengths)):
        found = retrieval_metrics(a, b)
        assert torch.equal(found.x_to_y.ranks, expected.x_to_y.ranks)
        assert torch.equal(found.y_to_x.ranks, expected.y_to_x.ranks)


def test_normalised_rows_are_ranked_by_their_plain_products() -> None:
    """Also where similarities are so alike that another rounding would change their order."""
    x, y = (normalize(1 + 1e-4 * side) for side in random_pairs(300, 64))
    metrics = retrieval_metrics(x, y)
    for found, S in ((metrics.x_to_y, x @ y.T), (metrics.y_to_x, y @ x.T)):
        assert len(S.unique()) < 50
        positive = S.diagonal()[:, None]
        assert torch.equal(found.ranks, (positive <= S).sum(1))


@pytest.mark.parametrize("row", [torch.zeros(4), torch.ones(4)])
def test_collapsed_embeddings_are_at_the_bottom(row: Tensor) -> None:
    """Every candidate ties with the relevant ones: nothing is found before the candidates end."""
    x_ids = torch.arange(60)
    y_ids = x_ids.repeat_interleave(5)
    metrics = retrieval_metrics(row.expand(60, 4), row.expand(300, 4), x_ids, y_ids, ks=(1, 50, 59, 60, 300))
    assert metrics.y_to_x.recall == {1: 0, 50: 0, 59: 0, 60: 1, 300: 1}
    assert metrics.y_to_x.median_rank == metrics.y_to_x.mean_rank == 60
    assert metrics.x_to_y.recall == {1: 0, 50: 0, 59: 0, 60: 0, 300: 1}
    assert metrics.x_to_y.median_rank == 296
    assert metrics.x_to_y.map[60] == 0


def test_the_similarities_are_never_stored_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 2**16)
    x, y = random_pairs(1500, 8)
    ids = torch.arange(1500) // 2
    with Largest() as largest:
        retrieval_metrics(x, y, ids, ids, ks=(1, 2000))
    assert x.numel() <= largest.entries <= 2**16 / 4  # float32
    with Largest() as largest:
        retrieval_metrics(x.double(), y.double(), ids, ids)
    assert largest.entries == x.numel()


class Waits(TorchDispatchMode):
    """The number of operations that wait for a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select")
        self.count += func.overloadpacket.__name__ in names
        return func(*args, **(kwargs or {}))


def test_blocks_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of waiting operations does not grow with the number of blocks."""
    x, y = random_pairs()
    counts = []
    pairs = torch.arange(len(x))[:, None].expand(-1, 2)
    for relevant in (None, pairs):
        for bytes_of_block in (2**26, 1000):
            monkeypatch.setattr(module, "BLOCK_BYTES", bytes_of_block)
            with Waits() as waits:
                retrieval_metrics(x, y, relevant=relevant)
            counts.append(waits.count)
    assert counts[0] == counts[1] > 0
    assert counts[2] == counts[3] > 0


def test_half_precision_is_computed_in_float32_under_autocast_too() -> None:
    x, y = ((1 + 0.1 * side).bfloat16() for side in random_pairs())  # similarities that are the same in bfloat16
    expected = retrieval_metrics(x.float(), y.float())
    assert 0.3 < expected.x_to_y.recall[1] < 0.9
    assert_same(retrieval_metrics(x, y), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(retrieval_metrics(x, y), expected)
        assert_same(retrieval_metrics(x.float(), y.float()), expected)
    assert_same(retrieval_metrics(x.half(), y.double()), retrieval_metrics(x.double(), y.double()))


def test_the_default_dtype_and_gradients_change_nothing() -> None:
    x, y = random_pairs()
    expected = retrieval_metrics(x, y)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(retrieval_metrics(x, y), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: torch.empty(0)):
        assert_same(retrieval_metrics(x.requires_grad_(), y), expected)
    assert not kept
    with torch.inference_mode():
        assert_same(retrieval_metrics(x + 0, y + 0), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    x, y = exact_pair(0, 60)
    ids = torch.arange(60) // 3
    assert_same(retrieval_metrics(*(part.cuda() for part in (x, y, ids, ids))), retrieval_metrics(x, y, ids, ids))


def numbers() -> Iterator[int]:
    yield from (1, 5)


@pytest.mark.parametrize("ks", [[1, 5], (5, 1, 5), range(1, 6, 4), np.array([1, 5]), numbers()])
def test_ks_of_any_kind(ks: Any) -> None:
    x, y = random_pairs()
    expected, found = retrieval_metrics(x, y).x_to_y, retrieval_metrics(x, y, ks=ks).x_to_y
    assert found.recall == {k: expected.recall[k] for k in (1, 5)}
    assert found.map == {k: expected.map[k] for k in (1, 5)}
    assert all(type(k) is int for k in found.recall)


def test_a_k_beyond_everything() -> None:
    x, y = random_pairs()
    ids = torch.arange(len(x)) // 2
    metrics = retrieval_metrics(x, y, ids, ids, ks=(60, 61, 10**18))
    for direction in (metrics.x_to_y, metrics.y_to_x):
        assert set(direction.recall.values()) == {1}
        assert direction.map[60] == direction.map[61] == direction.map[10**18] < 1


def test_results_are_frozen_and_compared_by_their_numbers() -> None:
    x, y = random_pairs()
    metrics = retrieval_metrics(x, y)
    with pytest.raises(dataclasses.FrozenInstanceError):
        metrics.x_to_y.mean_rank = 0.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        metrics.x_to_y = metrics.y_to_x  # type: ignore[misc]
    assert metrics == retrieval_metrics(x, y)
    assert metrics != retrieval_metrics(x, y.flip(0))
    assert "mean_rank=" in repr(metrics)
    assert "ranks=" not in repr(metrics)  # thousands of numbers
    assert list(metrics.x_to_y.recall) == list(metrics.y_to_x.map) == [1, 5, 10]


@pytest.mark.parametrize("captions", [1, 5])
def test_torchmetrics_agrees(captions: int) -> None:
    """Without ties, which it breaks at random; precision where a query has one target, since it divides by those found.

    It takes similarities for probabilities and drops what is not positive.
    """
    torch.manual_seed(0)
    clips, dimension = 60, 8
    owner = torch.arange(clips).repeat_interleave(captions)
    audio = normalize(torch.randn(clips, dimension).double())
    text = normalize(0.5 * torch.randn(len(owner), dimension) + audio[owner])
    metrics = retrieval_metrics(audio, text, torch.arange(clips), owner, ks=(1, 5, 10, 50))
    S, own = 1 + audio @ text.T, torch.arange(clips)[:, None] == owner
    for found, scores, target in ((metrics.y_to_x, S.T, own.T), (metrics.x_to_y, S, own)):
        query = torch.arange(len(scores))[:, None].expand_as(scores)
        flat = {"preds": scores.flatten(), "target": target.flatten(), "indexes": query.flatten()}
        for k in (1, 5, 10, 50):
            assert found.recall[k] == pytest.approx(float(RetrievalHitRate(top_k=k)(**flat)))
        if target.sum(1).max() == 1:
            assert found.map[10] == pytest.approx(float(RetrievalMAP(top_k=10)(**flat)))
        assert float((1 / found.ranks).mean()) == pytest.approx(float(RetrievalMRR()(**flat)))
    assert 0.1 < metrics.y_to_x.recall[1] < 0.9


X, Y = torch.eye(3), torch.eye(3)[[0, 0, 1, 2]]
X_IDS, Y_IDS = torch.arange(3), torch.tensor([0, 0, 1, 2])
PAIRED: dict[str, Any] = {"x_ids": None, "y_ids": None}
PAIRS, PLACE = torch.stack([Y_IDS, torch.arange(4)], 1), torch.tensor([0, 1])


@pytest.mark.parametrize(
    "error, words, given",
    [
        (TypeError, "expected x to be a tensor, got list", {"x": [[1.0]]}),
        (TypeError, "expected y to be of a floating dtype (float16, bfloat16, float32, float64), got torch.int64",
         {"y": Y.long()}),
        (TypeError, "expected y to be a dense tensor of this process, got one of layout", {"y": Y.to_sparse()}),
        (ValueError, "expected x of shape [rows, D] with rows >= 1 and D >= 1, got [3]", {"x": X[0]}),
        (ValueError, "expected y of shape [rows, D] with rows >= 1 and D >= 1, got [0, 3]", {"y": Y[:0]}),
        (ValueError, "expected y of shape [rows, D] with rows >= 1 and D >= 1, got [4, 0]", {"y": Y[:, :0]}),
        (ValueError, "expected x and y of one D, got [3, 3] and [4, 2]", {"y": Y[:, :2]}),
        (ValueError, "expected x and y on one device, got cpu and meta", {"y": Y.to("meta")}),
        (ValueError, "expected both x_ids and y_ids, or neither, got x_ids alone", {"y_ids": None}),
        (ValueError, "expected both x_ids and y_ids, or neither, got y_ids alone", {"x_ids": None}),
        (ValueError, "expected x_ids and y_ids, since x and y differ in length, got 3 and 4 rows",
         {"x_ids": None, "y_ids": None}),
        (TypeError, "expected x_ids to be an integer tensor [rows], got list", {"x_ids": [0, 1, 2]}),
        (TypeError, "expected y_ids of an integer dtype (int8, uint8, int16, int32, int64), got torch.float32",
         {"y_ids": Y_IDS.float()}),
        (TypeError, "expected y_ids to be a dense tensor of this process", {"y_ids": Y_IDS.to_sparse()}),
        (ValueError, "expected x_ids of shape [3], one for each row of x, got [4]", {"x_ids": Y_IDS}),
        (ValueError, "expected y_ids of shape [4], one for each row of y, got [4, 1]", {"y_ids": Y_IDS[:, None]}),
        (ValueError, "expected x_ids on the device of x, cpu, got meta", {"x_ids": X_IDS.to("meta")}),
        (ValueError, "expected every row of x to have a row of y of its id, got none for 1 of 3, such as x[1], id 7",
         {"x_ids": torch.tensor([0, 7, 2]), "y_ids": torch.tensor([0, 0, 0, 2])}),
        (ValueError, "expected every row of y to have a row of x of its id, got none for 2 of 4, such as y[2], id -1",
         {"x_ids": torch.zeros(3, dtype=torch.uint8), "y_ids": torch.tensor([0, 0, -1, 256])}),
        (ValueError, "expected ids or relevant, got both", {"relevant": PAIRS}),
        (ValueError, "expected ids or relevant, got both", {"relevant": PAIRS, "y_ids": None}),
        (ValueError, "expected ids or relevant, got both", {"relevant": PAIRS, "x_ids": None}),
        (TypeError, "expected relevant to be an integer tensor [pairs, 2], got list", {**PAIRED, "relevant": [[0, 0]]}),
        (TypeError, "expected relevant of an integer dtype (int8, uint8, int16, int32, int64), got torch.bool",
         {**PAIRED, "relevant": PAIRS.bool()}),
        (TypeError, "expected relevant to be a dense tensor", {**PAIRED, "relevant": PAIRS.to_sparse()}),
        (ValueError, "expected relevant of shape [pairs, 2] with pairs >= 1, got [4]", {**PAIRED, "relevant": Y_IDS}),
        (ValueError, "expected relevant of shape [pairs, 2] with pairs >= 1, got [4, 1]",
         {**PAIRED, "relevant": PAIRS[:, :1]}),
        (ValueError, "expected relevant of shape [pairs, 2] with pairs >= 1, got [0, 2]",
         {**PAIRED, "relevant": PAIRS[:0]}),
        (ValueError, "expected relevant on the device of x, cpu, got meta", {**PAIRED, "relevant": PAIRS.to("meta")}),
        (ValueError, "expected relevant to hold rows of x from 0 to 2, got 3", {**PAIRED, "relevant": PAIRS.flip(1)}),
        (ValueError, "expected relevant to hold rows of y from 0 to 3, got -1", {**PAIRED, "relevant": PAIRS - PLACE}),
        (ValueError, "expected every row of x in a pair of relevant rows, got none for 1 of 3, such as x[2]",
         {**PAIRED, "relevant": PAIRS[:3]}),
        (ValueError, "expected every row of y in a pair of relevant rows, got none for 2 of 4, such as y[0]",
         {**PAIRED, "relevant": torch.tensor([[0, 1], [1, 1], [2, 3]])}),
        (TypeError, "expected ks to be whole numbers such as (1, 5, 10), got int", {"ks": 5}),
        (TypeError, "expected ks to be whole numbers such as (1, 5, 10), got str", {"ks": "15"}),
        (TypeError, "expected ks[1] to be a whole number, got float", {"ks": (1, 5.0)}),
        (ValueError, "expected ks[0] to be >= 1, got 0", {"ks": [0]}),
        (ValueError, "expected ks to hold at least one whole number, got none", {"ks": []}),
    ],
)  # fmt: skip
def test_what_is_refused(error: type[Exception], words: str, given: dict[str, Any]) -> None:
    with pytest.raises(error, match=re.escape(words)):
        retrieval_metrics(**{"x": X, "y": Y, "x_ids": X_IDS, "y_ids": Y_IDS, **given})


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["x", "y"])
def test_embeddings_that_are_not_finite_are_refused(side: str, poison: float) -> None:
    sides = {"x": X.clone(), "y": Y.clone()}
    sides[side][1, 1] = poison
    with pytest.raises(ValueError, match=f"expected finite embeddings {side}, got NaN or inf"):
        retrieval_metrics(**sides, x_ids=X_IDS, y_ids=Y_IDS)
