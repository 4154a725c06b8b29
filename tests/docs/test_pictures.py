"""The pictures show the gradient of the losses, whose rules are known without them."""

import pytest
import torch

from crossmodal_losses import LOSSES
from docs.pictures import IDS, LOWERED, RAISED, B, gradient, picture, reached, similarities

POSITIVE = torch.eye(B, dtype=torch.bool)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_picture_has_a_cell_for_each_gradient(loss: str) -> None:
    grad, drawn = gradient(loss), picture(loss)
    assert drawn.count(f'fill="{RAISED}" fill-opacity') == int((grad < 0).sum())
    assert drawn.count(f'fill="{LOWERED}" fill-opacity') == int((grad > 0).sum())
    assert drawn.count("<circle") == int((grad == 0).sum())
    assert sum(reached(loss)) == int((grad != 0).sum())


def test_what_the_losses_look_at() -> None:
    S = similarities()
    own = S.diagonal()
    violating = (own[:, None] - S < 0.2) | (own[None, :] - S < 0.2)
    assert torch.equal(gradient("triplet_sum") > 0, violating & ~POSITIVE)
    of_hardest = gradient("triplet_max") > 0
    assert 0 < of_hardest.sum() < (violating & ~POSITIVE).sum()
    for loss in ("nt_xent", "sigmoid"):
        assert torch.equal(gradient(loss) < 0, POSITIVE)
        assert (gradient(loss) != 0).all()
    together = IDS["sup_con"][:, None] == IDS["sup_con"]
    assert (gradient("sup_con")[~together] > 0).all()
    assert (gradient("sup_con")[together & ~POSITIVE] < 0).any()
