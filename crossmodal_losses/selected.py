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
    anchors = torch.arange(B, device=index.device)
    ends = torch.arange(B + 1, device=index.device)
    entries = torch.arange(3 * B, device=index.device)
    gradients: list[Tensor | None] = []
    for k, (own, other) in enumerate(((sides.x, sides.y), (sides.y, sides.x))):
        if not wanted[k]:
            gradients.append(None)
            continue
        # The pairs that a row of this side is in: with its positive, with what it selected, with what selected it.
        to, order = torch.cat([anchors, anchors, index[1 - k]]).sort(stable=True)
        of = torch.cat([anchors, index[k], anchors])[order]
        weight = torch.cat([of_positive, of_fold[k], of_fold[1 - k]])[order]
        s = torch.cat([positive, similarity[k], similarity[1 - k]])[order]
        starts = torch.searchsorted(to, ends)

        def summed(of: Tensor, weight: Tensor, rows: Tensor, starts: Tensor = starts) -> Tensor:
            return embedding_bag(of, rows, starts, mode="sum", per_sample_weights=weight, include_last_offset=True)

        # Normalisation takes out of a row's gradient what lies along the row: sum_j dL/ds_ij s_ij.
        along_row = summed(entries, weight, s[:, None]).mul_(own.inverse.square()[:, None])
        weight = weight * other.inverse[of] * own.inverse[to]
        width = D if own.scale is None else max(NARROWEST, ENTRIES // B)
        gradient = own.rows.new_empty(B, D)
        for columns in blocks(D, width):
            some = summed(of, weight, other.columns(columns)).addcmul_(own.columns(columns), along_row, value=-1)
            if own.scale is not None:
                some.div_(own.scale[:, None])
            if width >= D and some.dtype == gradient.dtype:
                gradient = some
            else:
                gradient[:, columns] = some
        gradients.append(gradient)
    return gradients[0], gradients[1]
