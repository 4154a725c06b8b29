"""Several positives."""

import math

import pytest
import torch
from comparisons import normal_pair

from crossmodal_losses import NTXent, SupCon, nt_xent, sup_con


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_without_ids_it_is_nt_xent_to_the_bit(tile_size: int | None, temperature: float) -> None:
    x, y = normal_pair(0, 8, 4, torch.float32)
    more = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for loss in (SupCon, NTXent):
        value = loss(temperature=temperature, tile_size=tile_size)(x, y, negatives_y=more)
        found.append((value, *torch.autograd.grad(value, (x, y))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    S = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(sup_con(S), nt_xent(S))


def test_with_ids_that_differ_it_is_nt_xent() -> None:
    x, y = normal_pair(0, 8, 4)
    torch.testing.assert_close(SupCon()(x, y, torch.arange(8)), NTXent()(x, y))


def test_worked_by_hand() -> None:
    """Pairs 0 and 1 belong together: each is a positive of the other, at temperature 1."""
    S = torch.tensor([[0.5, 0.25, 0.0], [0.0, 1.0, 0.5], [0.25, 0.0, 0.75]], dtype=torch.float64)
    ids = torch.tensor([4, 4, 9])

    def anchor(scores: list[float], positives: list[int]) -> float:
        log = math.log(sum(math.exp(s) for s in scores))
        return log - sum(scores[p] for p in positives) / len(positives)

    together = [[0, 1], [0, 1], [2]]
    expected = [anchor(S[i].tolist(), together[i]) + anchor(S[:, i].tolist(), together[i]) for i in range(3)]
    found = sup_con(S, ids=ids, temperature=1.0, reduction="none")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_positives_alone() -> None:
    """It follows its formula: P positives, all found alike, cost log P in each direction; one costs nothing."""
    S = torch.full((3, 3), 0.5, dtype=torch.float64)
    assert float(sup_con(S, ids=torch.zeros(3, dtype=torch.long))) == pytest.approx(2 * math.log(3))
    assert float(sup_con(S[:1, :1], ids=torch.zeros(1, dtype=torch.long))) == 0


def test_candidates_of_the_own_id_are_positives() -> None:
    x, y = normal_pair(0, 2, 4)
    ids = torch.tensor([0, 1])
    joined = SupCon(direction_weights=(1, 0))(x, y, ids, negatives_y=y[:1], negative_ids_y=ids[:1])
    S = torch.nn.functional.cosine_similarity(x[:, None], torch.cat([y, y[:1]])[None], dim=2) / 0.07
    log = S.logsumexp(1)
    expected = (log[0] - (S[0, 0] + S[0, 2]) / 2 + log[1] - S[1, 1]) / 2
    torch.testing.assert_close(joined, expected)
