"""Communication between the processes that share a batch: one interface; a single process, all-gather, ring.

Rows stay, columns travel. A rank keeps its x and computes its rows of S, once in the forward and, where the loss needs
it, once in the backward pass. The states of the columns are merged over the ranks, and the statistics of every column
are exchanged, O(B) numbers in all. The rows of y come either all at once (:class:`AllGather`) or around a ring
(:class:`Ring`), and the sums of their gradients return the same way. x never travels. Candidates without a partner
stay and travel with the rows of their modality.

A rank sends, forward and backward, (2 - 2/W) B D numbers, and O(B) besides. Around the ring, where no rank keeps y, it
sends (3 - 4/W) B D unless one pass finds loss and gradients: the backward pass needs y again, and begins with the block
with which the forward pass ended.

A rank's gradient is that of the sum over the ranks of (its returned value times its upstream gradient), the convention
of torch's own differentiable collectives: for a value that all ranks return, W times the gradient of that value, of
which DistributedDataParallel takes the mean over the W ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from crossmodal_losses.engine.aggregation import State

# Some columns of S: whether they are those of y (0) or of its candidates without a partner (1); their numbers; their
# rows; where the gradients of these rows are summed, if they are needed.
Columns = tuple[int, slice, Tensor, Tensor | None]

# What ranks hold different numbers of.
PAIRS, NEGATIVES_X, NEGATIVES_Y = range(3)


class ColumnPass:
    """One pass over all columns of S.

    Args:
        parts: the local rows of y; and of its candidates without a partner, if any process has one.
        needs_grad: whether the gradients of these are needed, likewise.
        grad_dtype: in which they are summed.
        kept: rows that an earlier pass kept; after this pass, those that it kept for the next.
    """

    def __init__(
        self, parts: Sequence[Tensor], needs_grad: Sequence[bool], grad_dtype: torch.dtype, kept: Tensor | None = None
    ) -> None:
        self.parts, self.needs_grad, self.grad_dtype, self.kept = parts, needs_grad, grad_dtype, kept
        self.grads: list[Tensor | None] = [None] * len(parts)  # after the pass, the sums of the local rows

    def rows(self) -> Tensor:
        """All local rows."""
        return self.parts[0].contiguous() if len(self.parts) == 1 else torch.cat(list(self.parts))

    def zeros(self, like: Tensor, count: int) -> Tensor:
        """Sums of gradients of count rows."""
        return like.new_zeros(count, like.shape[1], dtype=self.grad_dtype)


class Communicator:
    """The collectives of the engine; here those of a single process, where every collective is the identity."""

    world_size = 1  # W

    def columns(self, one_pass: ColumnPass) -> Iterator[Columns]:
        """Iterate over all columns of S, block by block."""
        start = 0
        for part, (rows, needs) in enumerate(zip(one_pass.parts, one_pass.needs_grad, strict=True)):
            one_pass.grads[part] = one_pass.zeros(rows, len(rows)) if needs else None
            yield part, slice(start, start + len(rows)), rows, one_pass.grads[part]
            start += len(rows)

    def all_gather(self, values: Tensor, what: int = PAIRS) -> Tensor:
        """Gather numbers of the local rows, ``[k, rows]``, to those of all, ``[k, B]``."""
        return values

    def count(self, what: int, local: int) -> int:
        """How many rows all processes have, given that of this one."""
        return local

    def reduce_scatter(self, state: State, merge: Callable[[State, State], State]) -> State:
        """Merge the states of all columns, each part ``[B]``, over the ranks, and return those of the local columns."""
        return state

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over the processes."""
        return value


class SingleProcess(Communicator):
    """Single process: every collective is the identity."""


class GroupCommunicator(Communicator):
    """The ranks of a process group. A subclass iterates over the columns.

    Args:
        group: the process group.
        sizes: how many PAIRS, NEGATIVES_X and NEGATIVES_Y each rank holds.
    """

    def __init__(self, group: dist.ProcessGroup, sizes: Sequence[Sequence[int]]) -> None:
        self.group, self.sizes = group, sizes
        self.rank, self.world_size = dist.get_rank(group), len(sizes[PAIRS])
        B = sum(sizes[PAIRS])
        # The numbers of each rank's rows.
        self.slices = [_consecutive(of_ranks, start) for of_ranks, start in zip(sizes, (0, B, B), strict=True)]

    @property
    def starts(self) -> tuple[int, int, int, int]:
        """The numbers of the first local rows of x, y, negatives_x and negatives_y."""
        pairs, negatives_x, negatives_y = (of_ranks[self.rank].start for of_ranks in self.slices)
        return pairs, pairs, negatives_x, negatives_y

    def global_rank(self, rank: int) -> int:
        """The number by which torch addresses a rank of the group."""
        return dist.get_global_rank(self.group, rank)

    def all_gather(self, values: Tensor, what: int = PAIRS) -> Tensor:
        sizes = self.sizes[what]
        padded = values.new_zeros(len(values), max(sizes))
        padded[:, : values.shape[1]] = values
        gathered = padded.new_empty(self.world_size * len(values), max(sizes))
        dist.all_gather_into_tensor(gathered, padded, group=self.group)
        parts = gathered.view(self.world_size, *padded.shape)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)

    def count(self, what: int, local: int) -> int:
        return sum(self.sizes[what])

    def _parts(self, one_pass: ColumnPass) -> list[tuple[int, list[slice]]]:
        """The parts of the columns that travel, and the numbers of each rank's rows."""
        return [(0, self.slices[PAIRS]), (1, self.slices[NEGATIVES_Y])][: len(one_pass.parts)]

    def _block(self, one_pass: ColumnPass, rank: int, rows: Tensor, grad: Tensor | None) -> Iterator[Columns]:
        """The columns of a rank, given its rows, part after part, and the sums of the gradients that are needed."""
        first = first_grad = 0
        for part, slices in self._parts(one_pass):
            columns = slices[rank]
            count = columns.stop - columns.start
            part_grad = None
            if grad is not None and one_pass.needs_grad[part]:
                part_grad = grad[first_grad : first_grad + count]
                first_grad += count
            yield part, columns, rows[first : first + count], part_grad
            first += count

    def _counts(self, one_pass: ColumnPass, of_gradients: bool = False) -> list[int]:
        """How many rows of each rank travel, or how many sums of gradients."""
        parts = [slices for part, slices in self._parts(one_pass) if not of_gradients or one_pass.needs_grad[part]]
        return [sum(slices[rank].stop - slices[rank].start for slices in parts) for rank in range(self.world_size)]

    def _return(self, one_pass: ColumnPass, grad: Tensor) -> None:
        """Hand the sums of the local rows to the pass."""
        for part, _, _, part_grad in self._block(one_pass, self.rank, grad, grad):
            one_pass.grads[part] = part_grad

    def reduce_scatter(self, state: State, merge: Callable[[State, State], State]) -> State:
        parts = [self._all_to_all(part) for part in state]
        return reduce(merge, (tuple(part[rank] for part in parts) for rank in range(self.world_size)))

    def _all_to_all(self, values: Tensor) -> Tensor:
        """Send every rank the numbers of its columns, ``[B] -> [W, rows]``."""
        sizes = self.sizes[PAIRS]
        rows = sizes[self.rank]
        received = values.new_empty(self.world_size * rows)
        split = [rows] * self.world_size
        dist.all_to_all_single(received, values.contiguous(), split, sizes, group=self.group)
        return received.view(self.world_size, rows)

    def all_reduce(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value, group=self.group)
        return value


class AllGather(GroupCommunicator):
    """Columns come at once: O(B D) memory on every rank, of which the backward pass keeps the rows."""

    def columns(self, one_pass: ColumnPass) -> Iterator[Columns]:
        counts, counts_of_gradients = self._counts(one_pass), self._counts(one_pass, of_gradients=True)
        if one_pass.kept is None:
            one_pass.kept = self._all_gather_rows(one_pass.rows(), counts)
        rows, grad = one_pass.kept.split(counts), None
        if any(one_pass.needs_grad):
            grad = one_pass.zeros(one_pass.kept, sum(counts_of_gradients))
        grads = [None] * self.world_size if grad is None else grad.split(counts_of_gradients)
        for rank in range(self.world_size):
            yield from self._block(one_pass, rank, rows[rank], grads[rank])
        if grad is not None:
            self._return(one_pass, self._reduce_scatter_rows(grad, counts_of_gradients))

    def _all_gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        """All rows. Where the ranks hold different numbers of them every rank broadcasts: nothing is padded."""
        gathered = rows.new_empty(sum(counts), rows.shape[1])
        if len(set(counts)) == 1:
            dist.all_gather_into_tensor(gathered, rows, group=self.group)
            return gathered
        parts = gathered.split(counts)
        parts[self.rank].copy_(rows)
        broadcasts = [
            dist.broadcast(part, self.global_rank(rank), group=self.group, async_op=True)
            for rank, part in enumerate(parts)
        ]
        _Transfer(broadcasts).wait()
        return gathered

    def _reduce_scatter_rows(self, grad: Tensor, counts: list[int]) -> Tensor:
        """Reduce-scatter: the gradients of this rank's rows."""
        if len(set(counts)) == 1:
            scattered = grad.new_empty(counts[0], grad.shape[1])
            dist.reduce_scatter_tensor(scattered, grad, group=self.group)
            return scattered
        parts: tuple[Tensor, ...] = grad.split(counts)
        reductions = [
            dist.reduce(part, self.global_rank(rank), group=self.group, async_op=True)
            for rank, part in enumerate(parts)
            if len(part)  # gloo ends the process at nothing
        ]
        _Transfer(reductions).wait()
        return parts[self.rank].clone()


class Ring(GroupCommunicator):
    """Columns come block by block while the block before is worked on: O(rows D) memory, for any number of ranks."""

    def columns(self, one_pass: ColumnPass) -> Iterator[Columns]:
        """Iterate over all columns of S, those of this rank first.

        In the k-th step, rank r works on the columns of rank r - k; or r + k when the pass before kept its last block,
        that of rank r + 1, which then comes second. Sums go with the block from rank to rank, and return at the end.
        """
        direction = 1 if one_pass.kept is None else -1
        counts, counts_of_gradients = self._counts(one_pass), self._counts(one_pass, of_gradients=True)

        def rank_of(step: int) -> int:
            return (self.rank - direction * step) % self.world_size  # after the last step the first again

        rows, own, sums, sums_transfer = one_pass.rows(), None, None, _Transfer()
        for step in range(self.world_size):
            rank, next_rank = rank_of(step), rank_of(step + 1)
            next_rows, transfer = one_pass.kept if step == 0 else None, _Transfer()
            if next_rows is None and step + 1 < self.world_size:
                next_rows = rows.new_empty(counts[next_rank], rows.shape[1])
                transfer = self._exchange(rows, next_rows, direction, tag=0)
            grad = one_pass.zeros(rows, counts_of_gradients[rank]) if any(one_pass.needs_grad) else None
            yield from self._block(one_pass, rank, rows, grad)
            if grad is not None and step == 0:
                own = grad
            elif grad is not None:
                sums_transfer.wait()
                if sums is not None:
                    grad += sums
                sums = grad.new_empty(counts_of_gradients[next_rank], grad.shape[1])
                sums_transfer = self._exchange(grad, sums, direction, tag=1)
            transfer.wait()
            if next_rows is not None:
                rows = next_rows
        sums_transfer.wait()
        if own is not None:
            self._return(one_pass, own if sums is None else own.add_(sums))
        one_pass.kept = rows

    def _exchange(self, send: Tensor, receive: Tensor, direction: int, tag: int) -> "_Transfer":
        """Send to the rank that needs it in the next step, receive what this rank needs then."""
        to, source = ((self.rank + step) % self.world_size for step in (direction, -direction))
        operations = [
            dist.P2POp(dist.isend, send, self.global_rank(to), self.group, tag),
            dist.P2POp(dist.irecv, receive, self.global_rank(source), self.group, tag),
        ]
        operations = [operation for operation in operations if len(operation.tensor)]
        return _Transfer(dist.batch_isend_irecv(operations) if operations else [], send)


def _consecutive(sizes: Sequence[int], start: int) -> list[slice]:
    """Number the rows of all ranks, from start."""
    ends = list(accumulate(sizes, initial=start))
    return [slice(*bounds) for bounds in pairwise(ends)]


class _Transfer:
    """Transfers under way, and the tensor that must not be freed before they are complete."""

    def __init__(self, works: list[dist.Work] | None = None, sent: Tensor | None = None) -> None:
        self.works, self.sent = works or [], sent

    def wait(self) -> None:
        """Wait for completion."""
        for work in self.works:
            work.wait()
        self.works, self.sent = [], None
