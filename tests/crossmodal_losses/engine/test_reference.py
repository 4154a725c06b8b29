"""The reference loss: both directions of an objective, by hand."""

import pytest
import torch

from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.losses.triplet_max import TripletMaxObjective

S = torch.tensor([[0.5, 0.75, 0.0], [0.25, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_rows_and_columns_are_added() -> None:
    """Margin 0.5: rows .5 + .75 - .5, .5 + .25 - .5, 0; columns .5 + .25 - .5, .5 + .75 - .5, 0."""
    each = reference_loss(TripletMaxObjective(0.5), S, ids=None, reduction="none")
    assert each.tolist() == [1.0, 1.0, 0.0]
    assert reference_loss(TripletMaxObjective(0.5), S, ids=None, reduction="sum") == 2
    assert reference_loss(TripletMaxObjective(0.5), S, ids=None, reduction="mean") == pytest.approx(2 / 3)


def test_pairs_of_one_id_are_no_negatives() -> None:
    for ids in (torch.tensor([7, 7, 8]), torch.tensor([7, 7, 7])):
        each = reference_loss(TripletMaxObjective(0.5), S, ids=ids, reduction="none")
        assert each.tolist() == [0.0, 0.0, 0.0]


def test_a_nan_reaches_its_own_row_and_column_alone() -> None:
    with_nan = S.clone()
    with_nan[0, 2] = torch.nan
    each = reference_loss(TripletMaxObjective(0.5), with_nan, ids=None, reduction="none")
    assert each.isnan().tolist() == [True, False, True]
