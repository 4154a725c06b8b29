"""Losses of a batch that lies on W processes, with the value and the gradients of one process that has all of it.

Each process computes its part of S once, 1 / W of the work. :mod:`crossmodal_losses.engine.communication` describes the
messages.
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossmodal_losses.checks import check_embeddings, check_ids
from crossmodal_losses.engine.communication import AllGather, GroupCommunicator, Ring
from crossmodal_losses.engine.compat import not_compiled
from crossmodal_losses.engine.dispatch import largest_tile
from crossmodal_losses.engine.operands import Operands, measure_norms
from crossmodal_losses.engine.tiled import loss_of_problem, refuse_transformations
from crossmodal_losses.engine.tiles import Problem
from crossmodal_losses.losses.base import PairLoss


def _agreed(group: dist.ProcessGroup, said: dict[str, Any]) -> list[dict[str, Any]]:
    """Gather what every rank says of its arguments; raise one error on all ranks if one has an error, or they differ.

    Facts whose names begin with "its" may differ; "its error" is None, or the name and the message of an error.
    """
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, said, group=group)
    for rank, other in enumerate(everyone):
        if other["its error"] is not None:
            kind, message = other["its error"]
            raise (TypeError if kind == "TypeError" else ValueError)(f"rank {rank}: {message}")
    first = everyone[0]
    for rank, other in enumerate(everyone):
        for name, value in first.items():
            if not name.startswith("its") and other[name] != value:
                raise ValueError(f"expected one {name} on all ranks, got {value} on rank 0 and {other[name]} on {rank}")
    return everyone


def _is_process_group(group: Any) -> bool:
    """Return whether this is None, a process group, or what torch gives a process that is not in a new group."""
    if group is None or not dist.is_available():
        return group is None
    return group == dist.GroupMember.NON_GROUP_MEMBER or isinstance(group, dist.ProcessGroup)


class DistributedLoss(nn.Module):
    """Base class of losses of the batch that the processes of a group hold together.

    Every process passes its rows. The value is the same on every process, and equals the loss of the concatenated
    batch. The gradient of every parameter equals that of one process, once DistributedDataParallel has taken the mean
    over the processes; the gradient of a learned temperature equals it before that, too. With ``reduction="none"`` a
    process gets the terms of its rows, and gradients are those of the sum of all processes' backward passes.

    The processes may hold different numbers of rows, at least one each. If torch.distributed is not initialised, or the
    group has one process, this is the plain loss.

    Args:
        loss: any loss of ``LOSSES``. Its ``tile_size`` is used; None stands for the largest tiles of the device.
        process_group: the process group; None: all processes.
    """

    communicator: ClassVar[type[GroupCommunicator]]

    def __init__(self, loss: PairLoss, process_group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        if not isinstance(loss, PairLoss):
            raise TypeError(f"expected loss to be a PairLoss, such as NTXent(), got {type(loss).__name__}")
        if not _is_process_group(process_group):
            got = type(process_group).__name__
            raise TypeError(f"expected process_group to be a process group or None, got {got}")
        self.loss = loss
        self.process_group = process_group

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: all but the process group, which no other process can use; None stands for it."""
        return {**vars(self), "process_group": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "DistributedLoss":
        """Return a copy that works with the same process group."""
        memo[id(self.process_group)] = self.process_group
        copied = memo[id(self)] = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def forward(self, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
        """Compute the loss of the whole batch.

        Args:
            x, y: this process's rows, floating ``[rows, D]``; D, dtypes and kind of device are those of all processes.
            ids: integers ``[rows]``, on all processes or on none; they are compared across processes.

        Returns:
            A scalar, or ``[rows]`` for ``reduction="none"``.

        Raises:
            TypeError, ValueError: an argument of any process is not as described; on all processes alike.
        """
        if not dist.is_available() or not dist.is_initialized():
            return self.loss(x, y, ids)
        group = self.process_group or dist.group.WORLD
        assert group is not None
        if dist.get_rank(group) < 0:
            raise ValueError("expected a process of the group, got one that is not in it")
        if dist.get_world_size(group) == 1:
            return self.loss(x, y, ids)
        return self._of_ranks(group, x, y, ids)

    @not_compiled  # the compiler cannot follow what depends on the other processes
    def _of_ranks(self, group: dist.ProcessGroup, x: Tensor, y: Tensor, ids: Tensor | None) -> Tensor:
        objective, tile_size, operands = self.loss.objective, 0, None
        said: dict[str, Any] = {"its error": None}
        try:
            x, y = check_embeddings(x, y)
            ids = check_ids(ids, x)
            refuse_transformations(x, y, objective.aggregation.parameter)
            if x.device.type == "meta":
                raise ValueError("expected x and y to hold numbers, got tensors on the device meta")
        except (TypeError, ValueError) as error:
            said["its error"] = type(error).__name__, str(error)
        else:
            tile_size = self.loss.tile_size or largest_tile(x.device)
            operands = measure_norms(x, y, tile_size)
            parameter = objective.aggregation.parameter
            said |= {
                "its rows": len(x),
                "its scales": operands.scales is not None,
                "D": x.shape[1],
                "dtypes of x and y": (x.dtype, y.dtype),
                "kind of device": x.device.type,
                "ids (given or None)": ids is not None,
                "loss": (type(self).__name__, objective.name(), objective.numbers(), self.loss.reduction),
                "wish for gradients": [
                    torch.is_grad_enabled() and value is not None and value.requires_grad for value in (x, y, parameter)
                ],
            }
        everyone = _agreed(group, said)
        assert operands is not None  # or there was an error
        rows = [other["its rows"] for other in everyone]
        if operands.scales is None and any(other["its scales"] for other in everyone):
            operands = Operands(x, y, operands.inv_norm, torch.ones_like(operands.inv_norm))
        communicator = self.communicator(group, rows)
        return loss_of_problem(Problem(operands, ids, objective, self.loss.reduction, tile_size, communicator))

    __call__: Callable[..., Tensor]


class GatheredLoss(DistributedLoss):
    """A loss over all processes, in which each process gathers the y of all: O(B D) memory.

    See :class:`DistributedLoss`.

    >>> from crossmodal_losses import TripletMax
    >>> GatheredLoss(TripletMax())(torch.eye(3), torch.eye(3))  # one process
    tensor(0.)
    """

    communicator = AllGather


class RingLoss(DistributedLoss):
    """A loss over all processes, in which blocks of y travel around a ring: O(rows D) memory.

    A process computes with one block while it receives the next. See :class:`DistributedLoss`.

    >>> from crossmodal_losses import NTXent
    >>> RingLoss(NTXent(temperature=1.0))(torch.eye(2), torch.eye(2))  # one process
    tensor(0.6265)
    """

    communicator = Ring
