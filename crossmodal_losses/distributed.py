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

from crossmodal_losses.checks import Batch, check_batch
from crossmodal_losses.engine.communication import NEGATIVES_X, NEGATIVES_Y, AllGather, GroupCommunicator, Ring
from crossmodal_losses.engine.compat import not_compiled
from crossmodal_losses.engine.dispatch import tile_of
from crossmodal_losses.engine.objective import Objective
from crossmodal_losses.engine.operands import Operands, Statistics, measure_norms
from crossmodal_losses.engine.problem import Problem
from crossmodal_losses.engine.tiled import loss_of_problem, refuse_transformations
from crossmodal_losses.losses.base import PairLoss


def _agreed(group: dist.ProcessGroup, said: dict[str, Any]) -> list[dict[str, Any]]:
    """Gather what every rank says of its arguments; raise one error on all ranks if one has an error, or they differ.

    Facts whose names begin with "its" may differ; "its error" is None, or the name and the message of an error. None
    agrees with everything.
    """
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, said, group=group)
    for rank, other in enumerate(everyone):
        if other["its error"] is not None:
            kind, message = other["its error"]
            raise (TypeError if kind == "TypeError" else ValueError)(f"rank {rank}: {message}")
    for name in said:
        if name.startswith("its"):
            continue
        values = [(rank, other[name]) for rank, other in enumerate(everyone) if other[name] is not None]
        for rank, value in values[1:]:
            first, expected = values[0]
            if value != expected:
                raise ValueError(
                    f"expected one {name} on all ranks, got {expected} on rank {first} and {value} on {rank}"
                )
    return everyone


def _completed(operands: Operands, communicator: GroupCommunicator, everyone: list[dict[str, Any]]) -> Operands:
    """The operands with what only other processes have: scales, and candidates without a partner, here none of them."""
    rows, statistics = list[Tensor | None](operands.rows), list[Statistics | None](operands.statistics)
    if any(other["its scales"] for other in everyone):
        for k, part in enumerate(statistics):
            if part is not None and part.scale is None:
                statistics[k] = part._replace(scale=torch.ones_like(part.inv_norm))
    D, nothing = operands.x.rows.shape[1], operands.x.inv_norm[:0]
    for k, what, side in ((2, NEGATIVES_X, "x"), (3, NEGATIVES_Y, "y")):
        if not sum(communicator.sizes[what]):
            rows[k] = statistics[k] = None
        elif not communicator.sizes[what][communicator.rank]:
            with_ids = any(other[f"ids of negatives_{side}"] for other in everyone)
            if rows[k] is None:
                # Every process takes part in the backward pass.
                wish = any(other[f"wish for gradients of negatives_{side}"] for other in everyone)
                rows[k] = operands.rows[k - 2].new_empty(0, D).requires_grad_(wish)  # type: ignore[union-attr]
            scale = None if statistics[0].scale is None else nothing  # type: ignore[union-attr]
            statistics[k] = Statistics(nothing, scale, nothing.long() if with_ids else None)
    return Operands(tuple(rows), tuple(statistics), communicator.starts)  # type: ignore[arg-type]


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

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        ids: Tensor | None = None,
        *,
        negatives_x: Tensor | None = None,
        negatives_y: Tensor | None = None,
        negative_ids_x: Tensor | None = None,
        negative_ids_y: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """Compute the loss of the whole batch.

        Args:
            x, y: this process's rows, floating ``[rows, D]``; D, dtypes and kind of device are those of all processes.
            ids: integers ``[rows]``, on all processes or on none; they are compared across processes.
            negatives_x, negatives_y: this process's candidates without a partner, any number, or None; they are
                candidates of the anchors of all processes.
            negative_ids_x, negative_ids_y: their ids, wherever there are such candidates, or nowhere.
            settings: those of this call that the loss has, such as a temperature.

        Returns:
            A scalar, or ``[rows]`` for ``reduction="none"``.

        Raises:
            TypeError, ValueError: an argument of any process is not as described; on all processes alike.
        """
        tensors = x, y, ids, negatives_x, negatives_y, negative_ids_x, negative_ids_y
        if dist.is_available() and dist.is_initialized():
            group = self.process_group or dist.group.WORLD
            assert group is not None
            if dist.get_rank(group) < 0:
                raise ValueError("expected a process of the group, got one that is not in it")
            if dist.get_world_size(group) > 1:
                return self._of_ranks(group, tensors, settings)
        names = "negatives_x", "negatives_y", "negative_ids_x", "negative_ids_y"
        given = {name: value for name, value in zip(names, tensors[3:], strict=True) if value is not None}
        return self.loss(x, y, ids, **given, **settings)

    @not_compiled  # the compiler cannot follow what depends on the other processes
    def _of_ranks(self, group: dist.ProcessGroup, tensors: tuple[Any, ...], settings: dict[str, Any]) -> Tensor:
        said: dict[str, Any] = {"its error": None}
        batch = objective = operands = None
        try:
            batch = check_batch(*tensors)
            objective = self.loss.objective_with(settings)
            refuse_transformations(*batch.embeddings, objective.aggregation.parameter)
            if batch.x.device.type == "meta":
                raise ValueError("expected x and y to hold numbers, got tensors on the device meta")
            for side, part, of in (("x", batch.negatives_x, batch.x), ("y", batch.negatives_y, batch.y)):
                if part is not None and part.dtype != of.dtype:
                    raise ValueError(
                        f"expected negatives_{side} of the dtype of {side} on several processes, {of.dtype}, "
                        f"got {part.dtype}"
                    )
        except (TypeError, ValueError) as error:
            said["its error"] = type(error).__name__, str(error)
        else:
            if batch.ids is None:
                objective = objective.without_ids()
            tile_size = tile_of(self.loss.tile_size, batch.x.device)
            operands = measure_norms(batch, tile_size[0])
            said |= self._facts(batch, objective)
            said["its scales"] = operands.statistics[0].scale is not None
        everyone = _agreed(group, said)
        assert batch is not None  # or there was an error
        assert objective is not None
        assert operands is not None
        sizes = [[other["its sizes"][k] for other in everyone] for k in range(3)]
        communicator = self.communicator(group, sizes)
        operands = _completed(operands, communicator, everyone)
        return loss_of_problem(Problem(operands, objective, self.loss.total, tile_size, communicator))

    def _facts(self, batch: Batch, objective: Objective) -> dict[str, Any]:
        """What this process says of its arguments."""
        parameter = objective.aggregation.parameter
        rows = (batch.x, batch.negatives_x, batch.negatives_y)

        def wish(value: Tensor | None) -> bool:
            return torch.is_grad_enabled() and value is not None and value.requires_grad

        facts: dict[str, Any] = {
            "its sizes": [0 if part is None else len(part) for part in rows],
            "D": batch.x.shape[1],
            "dtypes of x and y": (batch.x.dtype, batch.y.dtype),
            "kind of device": batch.x.device.type,
            "ids (given or None)": batch.ids is not None,
            "loss": (type(self).__name__, objective.name(), objective.numbers(), self.loss.total),
            "wish for gradients": [wish(value) for value in (batch.x, batch.y, parameter)],
        }
        for side, part, ids in (
            ("x", batch.negatives_x, batch.negative_ids_x),
            ("y", batch.negatives_y, batch.negative_ids_y),
        ):
            has_any = part is not None and len(part)
            facts[f"wish for gradients of negatives_{side}"] = wish(part) if has_any else None
            facts[f"ids of negatives_{side}"] = (ids is not None) if has_any else None
        return facts

    __call__: Callable[..., Tensor]


class GatheredLoss(DistributedLoss):
    """A loss over all processes, in which each process gathers the y of all: O(B D) memory.

    See :class:`~crossmodal_losses.distributed.DistributedLoss`.

    >>> from crossmodal_losses import TripletMax
    >>> GatheredLoss(TripletMax())(torch.eye(3), torch.eye(3))  # one process
    tensor(0.)
    """

    communicator = AllGather


class RingLoss(DistributedLoss):
    """A loss over all processes, in which blocks of y travel around a ring: O(rows D) memory.

    A process computes with one block while it receives the next. See
    :class:`~crossmodal_losses.distributed.DistributedLoss`.

    >>> from crossmodal_losses import NTXent
    >>> RingLoss(NTXent(temperature=1.0))(torch.eye(2), torch.eye(2))  # one process
    tensor(0.6265)
    """

    communicator = Ring
