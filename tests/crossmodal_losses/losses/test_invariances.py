"""Changes of the input that must not change a loss."""

from typing import Any

import torch
from comparisons import exact_pair, of_batch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, embeddings, ids_for, losses, similarities
from torch import Tensor

import crossmodal_losses
from crossmodal_losses import LOSSES
from crossmodal_losses.checks import Batch


@given(data=st.data(), name=losses)
def test_permuting_the_pairs_changes_nothing(data: st.DataObject, name: str) -> None:
    S = data.draw(similarities())
    ids = data.draw(ids_for(len(S)))
    order = torch.tensor(data.draw(st.permutations(range(len(S)))))
    loss = getattr(crossmodal_losses, name)
    anchors = loss(S, ids=ids, reduction="none")
    permuted = loss(S[order][:, order], ids=None if ids is None else ids[order], reduction="none")
    torch.testing.assert_close(permuted, anchors[order], rtol=1e-12, atol=1e-12)


@given(data=st.data(), name=losses, t=st.integers(1, 3))
def test_swapping_the_modalities_changes_nothing(data: st.DataObject, name: str, t: int) -> None:
    batch = data.draw(batches(t, exact_pair))
    x, y, negatives_x, negatives_y, ids, ids_x, ids_y = batch
    swapped = Batch(y, x, negatives_y, negatives_x, ids, ids_y, ids_x)
    weights: dict[str, Any]
    reverse: dict[str, Any]
    weights, reverse = (
        ({}, {}) if name == "sigmoid" else ({"direction_weights": (2, 0.5)}, {"direction_weights": (0.5, 2)})
    )
    for tile_size in (t, None):
        one_way: Any = LOSSES[name](tile_size=tile_size, **weights)
        other: Any = LOSSES[name](tile_size=tile_size, **reverse)
        torch.testing.assert_close(of_batch(one_way, batch), of_batch(other, swapped), rtol=1e-9, atol=1e-9)


@given(data=st.data(), name=losses, pair=embeddings(), scale=st.sampled_from([2.0**-600, 2.0**-3, 2.0**7, 2.0**600]))
def test_scaling_an_embedding_changes_nothing(
    data: st.DataObject, name: str, pair: tuple[Tensor, Tensor], scale: float
) -> None:
    x, y = pair
    row = data.draw(st.integers(0, len(x) - 1))
    scaled = x.clone()
    scaled[row] *= scale
    loss, in_tiles = LOSSES[name](), LOSSES[name](tile_size=1)
    # To rounding: batches of extreme lengths take another form.
    torch.testing.assert_close(loss(scaled, y), loss(x, y), rtol=1e-12, atol=1e-12)
    if len(x) > 1:
        assert torch.equal(in_tiles(scaled, y), in_tiles(x, y))  # a power of two: exactly


@given(data=st.data(), name=losses.filter(lambda name: name != "sup_con"))  # to which they are positives
def test_pairs_of_one_id_have_no_influence(data: st.DataObject, name: str) -> None:
    S = data.draw(similarities(st.integers(3, 7)))
    a, b = data.draw(st.permutations(range(len(S))))[:2]
    ids = torch.arange(len(S))
    ids[a] = ids[b]
    loss = getattr(crossmodal_losses, name)

    S.requires_grad_()
    value = loss(S, ids=ids)
    changed = S.detach().clone()
    changed[a, b], changed[b, a] = 1, -1
    assert torch.equal(loss(changed, ids=ids), value)
    (gradient,) = torch.autograd.grad(value, S)
    assert gradient[a, b] == 0
    assert gradient[b, a] == 0
