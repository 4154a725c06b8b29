"""``diagnose`` equals loops over the similarities, and recognises collapse."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from comparisons import Largest
from hypothesis import given
from hypothesis import strategies as st
from oracles import cosine_similarity, hardest
from strategies import embeddings, ids_for
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from crossmodal_losses import Diagnosis, diagnose
from crossmodal_losses.engine.dispatch import TILE


def at_angles(degrees: list[float]) -> Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def in_tiles_of(t: int | None, *args: Any, **kwargs: Any) -> Diagnosis:
    """Diagnose in tiles of t x t; None: in those of the package."""
    with pytest.MonkeyPatch.context() as patch:
        if t is not None:
            patch.setitem(TILE, "cpu", (t, t))
        return diagnose(*args, **kwargs)


@given(data=st.data(), pair=embeddings(), margin=st.sampled_from([0.0, 0.2, 1.0]))
def test_equals_loops(data: st.DataObject, pair: tuple[Tensor, Tensor], margin: float) -> None:
    """The last rows of x and of y are candidates without a partner, or there are none, or all rows are pairs."""
    rows = len(pair[0])
    B = data.draw(st.integers(1, rows))
    all_ids = data.draw(ids_for(rows))
    few_ids = None if all_ids is None else all_ids[:B]
    with_x, with_y, of_no_id = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.booleans())
    if all_ids is not None and of_no_id:  # numbers that no pair has, and which diagnose does not get
        all_ids = torch.cat([all_ids[:B].long(), 1000 + torch.arange(rows - B)])
    given: dict[str, Any] = {}
    for side, has, values in (("x", with_x, pair[0]), ("y", with_y, pair[1])):
        if has:
            more_ids = None if all_ids is None or of_no_id else all_ids[B:]
            given |= {f"negatives_{side}": values[B:], f"negative_ids_{side}": more_ids}
    t = data.draw(st.sampled_from([1, 2, 3, None]))
    diagnosis = in_tiles_of(t, pair[0][:B], pair[1][:B], few_ids, margin=margin, **given)

    whole = cosine_similarity(*pair)
    ids = list(range(rows)) if all_ids is None else all_ids.tolist()
    last = {0: rows if with_y else B, 1: rows if with_x else B}
    S = [whole[i, j] for i in range(last[1]) for j in range(last[0]) if i < B or j < B]
    of_anchors = [  # the positive and the negatives of every anchor, in both directions
        [(T[i, i], [T[i, j] for j in range(last[k]) if ids[j] != ids[i]]) for i in range(B)]
        for k, T in enumerate((whole, whole.T))
    ]
    anchors = [anchor for direction in of_anchors for anchor in direction]

    torch.testing.assert_close(diagnosis.positive, sum(whole[i, i] for i in range(B)) / B)
    mean = torch.stack(S).mean()
    torch.testing.assert_close(diagnosis.similarity, mean)
    variance = torch.stack([(s - mean) ** 2 for s in S]).mean()
    torch.testing.assert_close(diagnosis.spread, variance.sqrt(), atol=1e-7, rtol=1e-7)
    assert bool(diagnosis.collapsed) == (bool(max(S) - min(S) <= 0.02) and any(negatives for _, negatives in anchors))
    hard = [float(hardest(negatives)) for _, negatives in anchors if negatives]
    assert float(diagnosis.hardest_negative) == pytest.approx(sum(hard) / len(hard) if hard else math.nan, nan_ok=True)

    # Around exact ties rounding decides; count what lies clearly on one side, and bound the rest.
    near = 1e-9
    gaps = [float(margin + s - positive) for positive, negatives in anchors for s in negatives]
    clear, ties, total = sum(gap > near for gap in gaps), sum(abs(gap) <= near for gap in gaps), len(gaps)
    violating = float(diagnosis.violating) * total if total else 0
    assert clear - 1e-3 <= violating <= clear + ties + 1e-3  # a fraction, times the total
    assert math.isnan(float(diagnosis.violating)) == (total == 0)

    for recall, direction in zip((diagnosis.recall_x_to_y, diagnosis.recall_y_to_x), of_anchors, strict=True):
        gaps = [min([float(positive - s) for s in negatives], default=1.0) for positive, negatives in direction]
        assert sum(g > near for g in gaps) - 1e-9 <= float(recall) * B <= sum(g > -near for g in gaps) + 1e-9


def test_the_range_is_that_of_all_tiles() -> None:
    for x in (at_angles([0, 11.7, 5]), at_angles([11.7, 0, 5])):
        for y in (x, x.flip(0)):
            assert not in_tiles_of(2, x, y).collapsed


def test_costs_one_product_and_no_more_memory_than_a_tile() -> None:
    """FLOPs of B x (B + N) + M x B; and no tensor is larger than a tile."""
    B, M, N, D, t = 96, 40, 30, 8, 24
    generator = torch.Generator().manual_seed(0)
    x, y, negatives_x, negatives_y = (torch.randn(rows, D, generator=generator) for rows in (B, B, M, N))
    for dtype in (torch.float32, torch.bfloat16):
        given = [part.to(dtype) for part in (x, y, negatives_x, negatives_y)]
        with FlopCounterMode(display=False) as flops, Largest() as largest:
            in_tiles_of(t, *given[:2], negatives_x=given[2], negatives_y=given[3])
        assert flops.get_total_flops() == 2 * D * (B * (B + N) + M * B)
        assert largest.entries == t * t


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_first(dtype: torch.dtype) -> None:
    """Statistics are those of the rounded embeddings in float32, not rounded again."""
    generator = torch.Generator().manual_seed(0)
    x, y, queue = (torch.randn(rows, 64, generator=generator).to(dtype) for rows in (50, 50, 20))
    found = in_tiles_of(16, x, y, negatives_y=queue)
    expected = diagnose(x.double(), y.double(), negatives_y=queue.double())
    for name, value in dataclasses.asdict(expected).items():
        torch.testing.assert_close(getattr(found, name), value.float() if value.is_floating_point() else value)


def test_the_spread_of_nearly_equal_similarities_keeps_its_digits() -> None:
    angles = at_angles([k / 100 for k in range(40)])
    whole = cosine_similarity(angles, angles)
    spread = in_tiles_of(7, angles, angles).spread
    torch.testing.assert_close(spread, whole.std(correction=0), rtol=1e-9, atol=0)


def test_limits_of_collapse_of_violation_and_of_recall() -> None:
    """Similarities of a direction with itself, and with another at this angle, range over 1 - cos(angle)."""
    for angle, collapsed in ((11.3, True), (11.7, False)):  # 0.0194, 0.0208
        x = at_angles([0, angle])
        assert bool(diagnose(x, x).collapsed) == collapsed
    ties = diagnose(torch.ones(3, 1), torch.ones(3, 1), margin=0.0)
    assert ties.violating == 0  # equal is not more
    assert ties.recall_x_to_y == ties.recall_y_to_x == 0  # a tie counts as a miss


def test_healthy_batches_have_not_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1024, generator=generator)
    assert not diagnose(x, torch.randn(64, 1024, generator=generator)).collapsed
    assert not diagnose(x, x).collapsed
    assert not diagnose(x[:1], x[:1]).collapsed  # one pair: no negatives
    assert not diagnose(x[:1], x[:1], negatives_y=x[1:2]).collapsed
    assert diagnose(x[:1], x[:1], negatives_y=x[:1]).collapsed
    assert not diagnose(torch.ones(3, 2), torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)).collapsed


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_gives_nan(poison: float) -> None:
    x = torch.eye(3)
    x[1, 1] = poison
    diagnosis = dataclasses.asdict(diagnose(x, torch.eye(3)))
    assert not diagnosis.pop("collapsed")
    assert all(value.isnan() for value in diagnosis.values())


def test_is_without_gradient_and_without_dimensions() -> None:
    x = torch.eye(3, requires_grad=True)
    for value in dataclasses.asdict(diagnose(x, x)).values():
        assert value.shape == ()
        assert not value.requires_grad


def test_a_diagnosis_does_not_change() -> None:
    diagnosis = diagnose(torch.eye(3), torch.eye(3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        diagnosis.positive = torch.ones(())  # type: ignore[misc]
