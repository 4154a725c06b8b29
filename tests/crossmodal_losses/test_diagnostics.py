"""``diagnose`` equals loops over the similarities, and recognises collapse."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import cosine_similarity, hardest, negatives
from strategies import embeddings, ids_for
from torch import Tensor

from crossmodal_losses import diagnose


@given(data=st.data(), pair=embeddings(), margin=st.sampled_from([0.0, 0.2, 1.0]))
def test_equals_loops(data: st.DataObject, pair: tuple[Tensor, Tensor], margin: float) -> None:
    x, y = pair
    B = len(x)
    ids = data.draw(ids_for(B))
    diagnosis = diagnose(x, y, ids, margin=margin)
    S = cosine_similarity(x, y)
    others = [negatives(i, B, None if ids is None else ids.tolist()) for i in range(B)]

    torch.testing.assert_close(diagnosis.positive, sum(S[i, i] for i in range(B)) / B)
    torch.testing.assert_close(diagnosis.similarity, S.mean())
    torch.testing.assert_close(diagnosis.spread, ((S - S.mean()) ** 2).mean().sqrt(), atol=1e-7, rtol=1e-7)
    hard = [float(hardest([T[i, j] for j in others[i]])) for T in (S, S.T) for i in range(B) if others[i]]
    assert float(diagnosis.hardest_negative) == pytest.approx(sum(hard) / len(hard) if hard else math.nan, nan_ok=True)

    # Around exact ties rounding decides; count what lies clearly on one side, and bound the rest.
    near, clear, ties, total = 1e-9, 0, 0, 0
    for T in (S, S.T):
        for i in range(B):
            for j in others[i]:
                gap = float(margin + T[i, j] - T[i, i])
                total, clear, ties = total + 1, clear + (gap > near), ties + (abs(gap) <= near)
    violating = float(diagnosis.violating) * total if total else 0
    assert clear - 1e-3 <= violating <= clear + ties + 1e-3  # a fraction in float32, times the total
    assert math.isnan(float(diagnosis.violating)) == (total == 0)

    for recall, T in ((diagnosis.recall_x_to_y, S), (diagnosis.recall_y_to_x, S.T)):
        gaps = [min([float(T[i, i] - T[i, j]) for j in others[i]], default=1.0) for i in range(B)]
        assert sum(g > near for g in gaps) - 1e-9 <= float(recall) * B <= sum(g > -near for g in gaps) + 1e-9


def at_angles(degrees: list[float]) -> Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


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
