"""The choice of an engine, by the batch size and the device, and the measured limits that it rests on."""

import torch
from torch import Tensor

from crossmodal_losses.checks import Reduction
from crossmodal_losses.engine.aggregation import Aggregation
from crossmodal_losses.engine.compat import is_transformed
from crossmodal_losses.engine.dense import dense_loss
from crossmodal_losses.engine.objective import Objective
from crossmodal_losses.engine.reference import reference_loss
from crossmodal_losses.engine.tiled import tiled_loss
from crossmodal_losses.similarity import cosine_similarity

# Measured (benchmarks/tile_size.py): the side of a tile from which products run at full speed, and the largest batch
# for which keeping all of S beats tiles: where an aggregation needs two passes, it saves one product of four.
TILE = {"cpu": 1024, "cuda": 4096}
LARGEST_DENSE, LARGEST_DENSE_OF_TWO_PASSES = 1024, 4096


def largest_dense(aggregation: Aggregation) -> int:
    """The largest B for which ``tile_size=None`` keeps all of S, B x B."""
    return LARGEST_DENSE if aggregation.selects or aggregation.one_pass else LARGEST_DENSE_OF_TWO_PASSES


def largest_tile(device: torch.device) -> int:
    """The t that ``tile_size=None`` stands for where S is not kept."""
    return TILE.get(device.type, TILE["cpu"])


def pair_loss(
    x: Tensor, y: Tensor, ids: Tensor | None, objective: Objective, reduction: Reduction, tile_size: int | None
) -> Tensor:
    """Compute the loss of x and y, ``[B, D]``, whose i-th rows are a pair."""
    if x.shape[0] > (tile_size or largest_dense(objective.aggregation)):
        return tiled_loss(x, y, ids, objective, reduction, tile_size or largest_tile(x.device))
    # Where torch transforms the program it gets the reference, which can be transformed in any way.
    if torch.compiler.is_compiling() or is_transformed(x, y, objective.aggregation.parameter):
        return reference_loss(objective, cosine_similarity(x, y), ids=ids, reduction=reduction)
    return dense_loss(x, y, ids, objective, reduction)
