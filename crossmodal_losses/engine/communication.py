"""Communication between the processes that share a batch: one interface; a single process, all-gather, ring.

Rows stay, columns travel. A rank keeps its x and computes its rows of S, once in the forward and, where the loss needs
it, once in the backward pass. The states of the columns are merged over the ranks, and the statistics of every pair are
exchanged, O(B) numbers in all. The rows of y come either all at once (:class:`AllGather`) or around a ring
(:class:`Ring`), and the sums of their gradients return the same way. x never travels.

A rank sends, forward and backward, (2 - 2/W) B D numbers, and O(B) besides. Around the ring, where no rank keeps y, it
sends (3 - 4/W) B D unless one pass finds loss and gradients: the backward pass needs y again, and begins with the block
with which the forward pass ended.

A rank's gradient is that of the sum over the ranks of (its returned value times its upstream gradient), the convention
of torch's own differentiable collectives: for a value that all ranks return, W times the gradient of that value, of
which DistributedDataParallel takes the mean over the W ranks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from crossmodal_losses.engine.aggregation import State

# Some columns of S; their rows of y; where the gradients of these rows are summed, if they are needed.
Columns = tuple[slice, Tensor, Tensor | None]


@dataclass
class ColumnPass:
    """One pass over all columns of S."""

    y: Tensor  # the local rows of y
    grad_dtype: torch.dtype | None  # in which the gradients of y are summed; None if they are not needed
    kept: Tensor | None = None  # rows of y that an earlier pass kept; after this pass, those that it kept for the next
    grad_y: Tensor | None = None  # after the pass, the summed gradients of the local rows

    def zeros_for(self, rows: Tensor) -> Tensor | None:
        """A buffer for the gradients of these rows, if they are needed."""
        return None if self.grad_dtype is None else rows.new_zeros(rows.shape, dtype=self.grad_dtype)


class Communicator:
    """The collectives of the engine; here those of a single process, where every collective is the identity."""

    world_size = 1  # W
    start = 0  # the index in the batch of the first local row

    def columns(self, one_pass: ColumnPass) -> Iterator[Columns]:
        """Iterate over all columns of S, block by block."""
        one_pass.grad_y = one_pass.zeros_for(one_pass.y)
        yield slice(0, len(one_pass.y)), one_pass.y, one_pass.grad_y

    def all_gather(self, values: Tensor) -> Tensor:
        """Gather numbers of the local pairs, ``[k, rows]``, to those of all pairs, ``[k, B]``."""
        return values

    def reduce_scatter(self, state: State, merge: Callable[[State, State], State]) -> State:
        """Merge the states of all columns, each part ``[B]``, over the ranks, and return those of the local columns."""
        return state

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over the processes."""
        return value


class SingleProcess(Communicator):
    """Single process: every collective is the identity."""


class GroupCommunicator(Communicator):
    """The ranks of a process group, which hold ``sizes`` rows each. A subclass iterates over the columns."""

    def __init__(self, group: dist.ProcessGroup, sizes: list[int]) -> None:
        self.group, self.sizes = group, sizes
        self.rank, self.world_size = dist.get_rank(group), len(sizes)
        ends = list(accumulate(sizes))
        self.slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self.start = self.slices[self.rank].start

    def global_rank(self, rank: int) -> int:
        """The number by which torch addresses a rank of the group."""
        return dist.get_global_rank(self.group, rank)

    def all_gather(self, values: Tensor) -> Tensor:
        padded = values.new_zeros(len(values), max(self.sizes))
        padded[:, : values.shape[1]] = values
        gathered = padded.new_empty(self.world_size * len(values), max(self.sizes))
        dist.all_gather_into_tensor(gathered, padded, group=self.group)
        parts = gathered.view(self.world_size, *padded.shape)
        return torch.cat([part[:, :size] for part, size in zip(parts, self.sizes, strict=True)], 1)

    def reduce_scatter(self, state: State, merge: Callable[[State, State], State]) -> State:
        parts = [self._all_to_all(part) for part in state]
        return reduce(merge, (tuple(part[rank] for part in parts) for rank in range(self.world_size)))

    def _all_to_all(self, values: Tensor) -> Tensor:
        """Send every rank the numbers of its columns, ``[B] -> [W, rows]``."""
        rows = self.sizes[self.rank]
        received = values.new_empty(self.world_size * rows)
        split = [rows] * self.world_size
        dist.all_to_all_single(received, values.contiguous(), split, self.sizes, group=self.group)
        return received.view(self.world_size, rows)

    def all_reduce(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value, group=self.group)
        return value


class AllGather(GroupCommunicator):
    """y comes at once: O(B D) memory on every rank, of which the backward pass keeps y."""

    def columns(self, one_pass: ColumnPass) -> Iterator[Columns]:
        if one_pass.kept is None:
            one_pass.kept = self._all_gather_rows(one_pass.y)
        grad_y = one_pass.zeros_for(one_pass.kept)
        for columns in self.slices:
            yield columns, one_pass.kept[columns], None if grad_y is None else grad_y[columns]
        if grad_y is not None:
            one_pass.grad_y = self._reduce_scatter_rows(grad_y)

    def _all_gather_rows(self, rows: Tensor) -> Tensor:
        """All rows of y. Where the ranks hold different numbers of them every rank broadcasts: nothing is padded."""
        gathered = rows.new_empty(self.slices[-1].stop, rows.shape[1])
        if len(set(self.sizes)) == 1:
            dist.all_gather_into_tensor(gathered, rows.contiguous(), group=self.group)
            return gathered
        gathered[self.slices[self.rank]] = rows
        broadcasts = [
            dist.broadcast(gathered[columns], self.global_rank(rank), group=self.group, async_op=True)
            for rank, columns in enumerate(self.slices)
        ]
        _Transfer(broadcasts).wait()
        return gathered

    def _reduce_scatter_rows(self, grad_y: Tensor) -> Tensor:
        """Reduce-scatter: the gradients of this rank's rows of y."""
        local = self.slices[self.rank]
        if len(set(self.sizes)) == 1:
            scattered = grad_y.new_empty(grad_y[local].shape)
            dist.reduce_scatter_tensor(scattered, grad_y, group=self.group)
            return scattered
        reductions = [
            dist.reduce(grad_y[columns], self.global_rank(rank), group=self.group, async_op=True)
            for rank, columns in enumerate(self.slices)
        ]
        _Transfer(reductions).wait()
        return grad_y[local].clone()


class Ring(GroupCommunicator):
    """y comes block by block while the block before is worked on: O(rows D) memory, whatever the number of ranks."""

    def columns(self, one_pass: ColumnPass) -> Iterator[Columns]:
        """Iterate over all columns of S, those of this rank first.

        In the k-th step, rank r works on the columns of rank r - k; or r + k when the pass before kept its last block,
        that of rank r + 1, which then comes second. Sums go with the block from rank to rank, and return at the end.
        """
        direction = 1 if one_pass.kept is None else -1

        def columns_of(step: int) -> slice:
            return self.slices[(self.rank - direction * step) % self.world_size]  # after the last step the first again

        rows, sums, sums_transfer = one_pass.y.contiguous(), None, _Transfer()
        for step in range(self.world_size):
            columns, next_columns = columns_of(step), columns_of(step + 1)
            next_rows, transfer = one_pass.kept if step == 0 else None, _Transfer()
            if next_rows is None and step + 1 < self.world_size:
                next_rows = rows.new_empty(next_columns.stop - next_columns.start, rows.shape[1])
                transfer = self._exchange(rows, next_rows, direction, tag=0)
            grad = one_pass.zeros_for(rows)
            yield columns, rows, grad
            if grad is not None and step == 0:
                one_pass.grad_y = grad
            elif grad is not None:
                sums_transfer.wait()
                if sums is not None:
                    grad += sums
                sums = grad.new_empty(next_columns.stop - next_columns.start, grad.shape[1])
                sums_transfer = self._exchange(grad, sums, direction, tag=1)
            transfer.wait()
            if next_rows is not None:
                rows = next_rows
        sums_transfer.wait()
        if one_pass.grad_y is not None and sums is not None:
            one_pass.grad_y += sums
        one_pass.kept = rows

    def _exchange(self, send: Tensor, receive: Tensor, direction: int, tag: int) -> "_Transfer":
        """Send to the rank that needs it in the next step, receive what this rank needs then."""
        to, source = ((self.rank + step) % self.world_size for step in (direction, -direction))
        operations = [
            dist.P2POp(dist.isend, send, self.global_rank(to), self.group, tag),
            dist.P2POp(dist.irecv, receive, self.global_rank(source), self.group, tag),
        ]
        return _Transfer(dist.batch_isend_irecv(operations), send)


class _Transfer:
    """Transfers under way, and the tensor that must not be freed before they are complete."""

    def __init__(self, works: list[dist.Work] | None = None, sent: Tensor | None = None) -> None:
        self.works, self.sent = works or [], sent

    def wait(self) -> None:
        """Wait for completion."""
        for work in self.works:
            work.wait()
        self.works, self.sent = [], None
