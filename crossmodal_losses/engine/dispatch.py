"""The choice of an engine, by the batch size and the device, and the measured limits that it rests on."""

import torch
from torch import Tensor

from crossmodal_losses.checks import Batch
from crossmodal_losses.engine.aggregation import Aggregation
from crossmodal_losses.engine.compat import is_transformed
from crossmodal_losses.engine.dense import dense_loss
from crossmodal_losses.engine.objective import Objective, Total
from crossmodal_losses.engine.reference import reference_loss_of_batch
from crossmodal_losses.engine.small_batch import has_small_form, small_batch_loss
from crossmodal_losses.engine.tiled import tiled_loss

# Rows and columns of a tile. Measured on a CPU (benchmarks/tile_size.py): the side of a tile from which products run at
# full speed. On CUDA a tile costs its launches too: it is as wide as 256 MiB in float32 allow.
TILE = {"cpu": (1024, 1024), "cuda": (4096, 16384)}

# The largest batch for which keeping all of S beats tiles, measured on a CPU; where an aggregation needs two passes, it
# saves one product of four. Tiles that keep their exponentials save it, too: they were tried, and are not faster.
LARGEST_DENSE, LARGEST_DENSE_OF_TWO_PASSES = 1024, 4096

# The same on CUDA, counted and not measured, in float32: all of S takes 46 to 100 launches, of which 10 to 31 pass over
# S; a tile takes 44 to 124, of which one or two do. These are 25 more for hardest negatives, 7 for NT-Xent, fewer for
# sums. Up to about this batch size a pass over S should take no longer than its launch.
LARGEST_DENSE_ON_CUDA = 1024


def largest_dense(aggregation: Aggregation, device: torch.device) -> int:
    """The largest B for which ``tile_size=None`` keeps all of S, B x B."""
    if device.type == "cuda":
        return LARGEST_DENSE_ON_CUDA
    two_passes = not aggregation.selects and not aggregation.one_pass
    return LARGEST_DENSE_OF_TWO_PASSES if two_passes else LARGEST_DENSE


def tile_of(tile_size: int | None, device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile: t x t, or where tile_size is None the largest tile of the device."""
    return TILE.get(device.type, TILE["cpu"]) if tile_size is None else (tile_size, tile_size)


def _is_small(batch: Batch, aggregation: Aggregation, tile_size: int | None) -> bool:
    """Return whether all of S is kept: where it is one tile; with candidates without a partner, one of each kind."""
    B = batch.x.shape[0]
    negatives = [part.shape[0] for part in batch.embeddings[2:] if part is not None]
    if tile_size is not None:
        return all(count <= tile_size for count in (B, *negatives))
    return B * (B + sum(negatives)) <= largest_dense(aggregation, batch.x.device) ** 2


def pair_loss(batch: Batch, objective: Objective, total: Total, tile_size: int | None) -> Tensor:
    """Compute the loss of a batch."""
    if batch.ids is None:
        objective = objective.without_ids()
    if objective.pairs_once:
        total = Total(total.reduction)  # every pair counts once, in neither direction
    aggregation = objective.aggregation
    if not _is_small(batch, aggregation, tile_size):
        return tiled_loss(batch, objective, total, tile_of(tile_size, batch.x.device))
    # Where torch transforms the program it gets the reference, which can be transformed in any way.
    if torch.compiler.is_compiling() or is_transformed(*batch.embeddings, aggregation.parameter):
        return reference_loss_of_batch(batch, objective, total)
    if tile_size is None and has_small_form(batch, objective, aggregation.parameter):
        return small_batch_loss(batch, objective, aggregation.parameter, total)
    return dense_loss(batch, objective, total)
