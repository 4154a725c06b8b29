"""The gradients where every anchor weighs only its positive and one selected negative: rows, gathered and summed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from crossmodal_losses.folds import State
from crossmodal_losses.sides import Sides, blocks

# Where rows have to be scaled or widened, so many entries at a time, but at least so many columns.
ENTRIES, NARROWEST = 1 << 20, 32


def of_selected(
    sides: Sides, state: State, positive: Tensor, of_positive: Tensor, of_fold: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and y; O(B D), in a fixed order of summation on every device.

    Args:
        state: similarity and index of the selected negatives, ``[2, B]`` each: of the rows, then of the columns.
        of_positive, of_fold: dL/dpositive ``[B]`` and dL/dfold ``[2, B]``.
    """
    similarity, index = state
    B, D = sides.x.rows.shape
    anchors = torch.arange(B, device=index.device).expand(2, B)
    # The pairs that a row of each side is in: with its positive, with what it selected, with what selected it.
    to, order = torch.cat([anchors, anchors, index.flip(0)], 1).sort(dim=1, stable=True)
    of = torch.cat([anchors, index, anchors], 1).gather(1, order)
    weight = torch.cat([of_positive.expand(2, B), of_fold, of_fold.flip(0)], 1).gather(1, order)
    s = torch.cat([positive.expand(2, B), similarity, similarity.flip(0)], 1).gather(1, order)
    starts = torch.searchsorted(to, torch.arange(B + 1, device=index.device).repeat(2, 1))
    # Normalisation takes out of a row's gradient what lies along the row: sum_j dL/ds_ij s_ij.
    own = torch.segment_reduce(weight.mul(s), "sum", offsets=starts, axis=1).mul_(sides.inverse.square())[:, :, None]
    weight = weight * sides.inverse.gather(1, to) * sides.inverse.flip(0).gather(1, of)
    gradients: list[Tensor | None] = []
    for k, (side, other) in enumerate(((sides.x, sides.y), (sides.y, sides.x))):
        if not wanted[k]:
            gradients.append(None)
            continue
        width = D if side.scale is None else max(NARROWEST, ENTRIES // B)
        gradient = side.rows.new_empty(B, D)
        for columns in blocks(D, width):
            some = embedding_bag(
                of[k],
                other.columns(columns),
                starts[k],
                mode="sum",
                per_sample_weights=weight[k],
                include_last_offset=True,
            ).addcmul_(side.columns(columns), own[k], value=-1)
            if side.scale is not None:
                some.div_(side.scale[:, None])
            if width >= D and some.dtype == gradient.dtype:
                gradient = some
            else:
                gradient[:, columns] = some
        gradients.append(gradient)
    return gradients[0], gradients[1]
