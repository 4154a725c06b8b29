"""What defines a value of a loss, and the numbers of it that all processes share."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossmodal_losses.engine.communication import NEGATIVES_X, NEGATIVES_Y, PAIRS, ColumnPass, Communicator
from crossmodal_losses.engine.objective import Directions, Objective, Total, have_negatives
from crossmodal_losses.engine.operands import Operands, Statistics, blocks

# From how many rows on ids are numbered. A CPU compares floats into floats ten times as fast. On CUDA, kernels with ids
# of 32 bits have 2 to 16 % fewer instructions than with ids of 64; numbers take a sort and some eight launches more.
# Estimated from these counts, not measured: below so many rows they take longer than what they save.
NUMBERED_FROM = {"cpu": 0, "cuda": 16384}


class Problem(NamedTuple):
    """Everything that defines a value of a loss: the local part of the batch, the objective, and how to compute it.

    The statistics of the columns are those of the local rows until :func:`all_gather_columns`.
    """

    operands: Operands
    objective: Objective
    total: Total
    tile_size: tuple[int, int]  # how many rows and columns of S are computed at a time
    communicator: Communicator

    @property
    def directions(self) -> Directions:
        """The directions that are computed."""
        return Directions.of(self.objective, self.total)


def column_pass(problem: Problem, needs_grad: Sequence[bool], kept: Tensor | None = None) -> ColumnPass:
    """A pass over all columns."""
    operands, parts = problem.operands, [1]
    if operands.negatives_y is not None and 0 in problem.directions.used:
        parts.append(3)
    rows = [part for part in (operands.rows[k] for k in parts) if part is not None]
    return ColumnPass(rows, [needs_grad[k] for k in parts], operands.x.inv_norm.dtype, kept)


def local_positives(problem: Problem) -> Tensor:
    """Similarities of the local positives, ``[rows]``."""
    x, y = problem.operands.x, problem.operands.y
    dots = [
        (x.block(block).to(x.inv_norm.dtype) * y.block(block)).sum(1) for block in blocks(x.whole, problem.tile_size[0])
    ]
    return (dots[0] if len(dots) == 1 else torch.cat(dots)).mul_(x.inv_norm).mul_(y.inv_norm)


def all_gather_columns(problem: Problem, positive: Tensor) -> tuple[Problem, Tensor, Tensor | None]:
    """All-gather the statistics of the columns, the positives, and all ids, numbered where it pays.

    Returns also whether the anchors have negatives, as :func:`have_negatives` does.
    """
    operands, communicator = problem.operands, problem.communicator
    x, y, negatives_x, negatives_y = operands.statistics
    ids_x = None if negatives_x is None else negatives_x.ids
    if communicator.world_size > 1:
        # A NaN of this process makes all inverse norms of its y NaN, which every process sees.
        factor = operands.nan_factor
        y = y if factor is None else y._replace(inv_norm=y.inv_norm * factor)
        y, positive = _of_all_processes(communicator, PAIRS, y, positive)
        if negatives_y is not None:
            negatives_y, _ = _of_all_processes(communicator, NEGATIVES_Y, negatives_y, negatives_y.inv_norm)
        ids_x = None if ids_x is None else communicator.all_gather(ids_x[None].long(), NEGATIVES_X)[0]
    ids_y = None if negatives_y is None else negatives_y.ids
    ids, ids_x, ids_y = _numbered([y.ids, ids_x, ids_y], x.inv_norm.dtype)
    start, _, start_x, _ = operands.starts
    own, own_x = slice(start, start + len(operands.rows[0])), slice(start_x - len(positive), None)
    x, y = x._replace(ids=None if ids is None else ids[own]), y._replace(ids=ids)
    counts = [0, 0]
    if negatives_x is not None:
        count = len(negatives_x.inv_norm)
        negatives_x = negatives_x._replace(ids=None if ids_x is None else ids_x[own_x][:count])
        counts[1] = communicator.count(NEGATIVES_X, count)
    if negatives_y is not None:
        negatives_y, counts[0] = negatives_y._replace(ids=ids_y), len(negatives_y.inv_norm)
    operands = Operands(operands.rows, (x, y, negatives_x, negatives_y), operands.starts)
    others = (counts[0], ids_y), (counts[1], ids_x)
    has_negative = have_negatives(problem.objective, problem.directions, positive, ids, others)
    return problem._replace(operands=operands), positive, has_negative


def _of_all_processes(
    communicator: Communicator, what: int, statistics: Statistics, others: Tensor
) -> tuple[Statistics, Tensor]:
    """All-gather statistics, and other numbers of the same rows."""
    inv_norm, scale, ids = statistics
    numbers = communicator.all_gather(torch.stack([others, inv_norm, *([] if scale is None else [scale])]), what)
    ids = None if ids is None else communicator.all_gather(ids[None].long(), what)[0]
    return Statistics(numbers[1], None if scale is None else numbers[2], ids), numbers[0]


def numbered(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Number the ids, so that few bits hold them: 0, 1, 2, ... in their order, without waiting for a device."""
    in_order, order = ids.sort()
    number = torch.zeros_like(order)
    number[1:] = (in_order[1:] != in_order[:-1]).cumsum(0)
    return torch.empty_like(in_order, dtype=dtype).scatter_(0, order, number.to(dtype))


def _numbered(all_ids: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Number ids over all of the lists that are given; where that does not pay they stay as they are."""
    given = [ids.long().contiguous() for ids in all_ids if ids is not None]
    device = given[0].device.type if given else "cpu"
    counts = [len(ids) for ids in given]
    if given and sum(counts) >= NUMBERED_FROM.get(device, sys.maxsize):
        given = list(numbered(torch.cat(given), dtype if device == "cpu" else torch.int32).split(counts))
    numbers = iter(given)
    return [None if ids is None else next(numbers) for ids in all_ids]
