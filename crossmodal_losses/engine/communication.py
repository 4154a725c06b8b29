"""One batch over the ranks of a process group, which together compute every similarity once.

Rows stay, columns travel. A rank keeps its x and computes its rows of S, once in the forward and, where the loss needs
it, once in the backward pass. The states of the columns are merged over the ranks, and what is known of every pair is
exchanged, O(B) numbers in all. The rows of y come either all at once (:class:`Gathered`) or around a ring
(:class:`Ring`), and the sums of their gradients go home the same way. x never travels.

A rank sends, forward and backward, (2 - 2/W) B D numbers, and O(B) besides. Around the ring, where nobody keeps y, it
sends (3 - 4/W) B D unless one pass finds loss and gradients: the backward pass needs y again, and begins with the block
with which the forward pass ended.

A rank's gradient is that of the sum over the ranks of (what it returned times its upstream gradient), the convention of
torch's own differentiable collectives: for a value that all ranks return, W times the gradient of that value, of which
DistributedDataParallel takes the mean over the W ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import reduce
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from crossmodal_losses.engine.objective import Fold, State
from crossmodal_losses.engine.one_process import Columns, OneProcess, Visit
from crossmodal_losses.engine.operands import Sides


class Ranks(OneProcess, ABC):
    """The ranks of a group, and how many rows each of them holds.

    Args:
        scaled: whether the rows of some rank have to be scaled, so that all exchange their scales.
    """

    alone = False

    def __init__(self, group: dist.ProcessGroup, sizes: list[int], scaled: bool) -> None:
        self.group, self.sizes, self.scaled = group, sizes, scaled
        self.rank, self.count = dist.get_rank(group), len(sizes)
        ends = list(accumulate(sizes))
        self.slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    @property
    def own(self) -> slice:
        """The indices in the batch of the rows of this rank."""
        return self.slices[self.rank]

    def of_group(self, rank: int) -> int:
        """By what torch calls a rank of the group."""
        return dist.get_global_rank(self.group, rank)

    def share(self, sides: Sides, ids: Tensor | None, positive: Tensor) -> tuple[Sides, Tensor | None, Tensor]:
        scales = sides.scales
        if self.scaled and scales is None:
            scales = torch.ones_like(sides.inverse)
        known = [sides.inverse[0], sides.inverse[1], positive, *([] if scales is None else [scales[1]])]
        inverse_x, inverse_y, positive, *scales_of_y = self._everywhere(torch.stack(known)).unbind()
        inverse = torch.stack([inverse_x, inverse_y])
        sides = Sides(sides.x.rows, sides.y.rows, inverse, scales, self.own.start, *scales_of_y)
        return sides, None if ids is None else self._everywhere(ids[None].long())[0], positive

    def merge(self, fold: Fold, columns: State) -> State:
        parts = [self._to_owners(part) for part in columns]
        return reduce(fold.merge, (tuple(part[rank] for part in parts) for rank in range(self.count)))

    def publish(self, of_anchors: Tensor) -> Tensor:
        B = self.slices[-1].stop
        everywhere = of_anchors.new_zeros(2, B)
        everywhere[0, self.own] = of_anchors[0]
        everywhere[1] = self._everywhere(of_anchors[1:])[0]
        return everywhere

    def sum(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value, group=self.group)
        return value

    def mean(self, value: Tensor) -> Tensor:
        return self.sum(value) / self.count

    def _everywhere(self, values: Tensor) -> Tensor:
        """Numbers of the rows that each rank holds, ``[k, rows] -> [k, B]``."""
        padded = values.new_zeros(len(values), max(self.sizes))
        padded[:, : values.shape[1]] = values
        everyones = padded.new_empty(self.count * len(values), max(self.sizes))
        dist.all_gather_into_tensor(everyones, padded, group=self.group)
        parts = everyones.view(self.count, *padded.shape)
        return torch.cat([part[:, :size] for part, size in zip(parts, self.sizes, strict=True)], 1)

    def _to_owners(self, of_columns: Tensor) -> Tensor:
        """What the ranks say of this rank's columns, ``[B] -> [ranks, rows]``."""
        rows = self.sizes[self.rank]
        received = of_columns.new_empty(self.count * rows)
        dist.all_to_all_single(
            received, of_columns.contiguous(), [rows] * self.count, self.sizes, group=self.group
        )  # fmt: skip
        return received.view(self.count, rows)

    @abstractmethod
    def visit(self, sides: Sides, totals: torch.dtype | None, kept: Tensor | None = None) -> Visit: ...


class Gathered(Ranks):
    """y comes at once: O(B D) memory on every rank, of which the backward pass keeps y."""

    def visit(self, sides: Sides, totals: torch.dtype | None, kept: Tensor | None = None) -> Visit:
        return _AtOnce(sides, totals, kept, self)


class _AtOnce(Visit):
    def __init__(self, sides: Sides, totals: torch.dtype | None, kept: Tensor | None, ranks: Gathered) -> None:
        super().__init__(sides, totals, kept)
        self.ranks = ranks

    def __iter__(self) -> Iterator[Columns]:
        if self.kept is None:
            self.kept = self._gathered(self.sides.y.rows)
        of_y = self.zeros(self.kept)
        for columns in self.ranks.slices:
            yield columns, self.kept[columns], None if of_y is None else of_y[columns]
        if of_y is not None:
            self.total = self._scattered(of_y)

    def _gathered(self, rows: Tensor) -> Tensor:
        """All rows of y. Where the ranks hold different numbers of them every rank broadcasts: nothing is padded."""
        ranks = self.ranks
        everywhere = rows.new_empty(ranks.slices[-1].stop, rows.shape[1])
        if len(set(ranks.sizes)) == 1:
            dist.all_gather_into_tensor(everywhere, rows.contiguous(), group=ranks.group)
            return everywhere
        everywhere[ranks.own] = rows
        transfers = [
            dist.broadcast(everywhere[columns], ranks.of_group(rank), group=ranks.group, async_op=True)
            for rank, columns in enumerate(ranks.slices)
        ]
        for transfer in transfers:
            transfer.wait()
        return everywhere

    def _scattered(self, totals: Tensor) -> Tensor:
        """The sums over the ranks, at home."""
        ranks = self.ranks
        if len(set(ranks.sizes)) == 1:
            own = totals.new_empty(totals[ranks.own].shape)
            dist.reduce_scatter_tensor(own, totals, group=ranks.group)
            return own
        transfers = [
            dist.reduce(totals[columns], ranks.of_group(rank), group=ranks.group, async_op=True)
            for rank, columns in enumerate(ranks.slices)
        ]
        for transfer in transfers:
            transfer.wait()
        return totals[ranks.own].clone()


class Ring(Ranks):
    """y comes block by block while the block before is worked on: O(rows D) memory, whatever the number of ranks."""

    def visit(self, sides: Sides, totals: torch.dtype | None, kept: Tensor | None = None) -> Visit:
        return _Around(sides, totals, kept, self)


class _Around(Visit):
    """In the k-th step, rank r works on the columns of rank r - k; or r + k when it kept the last block of the visit
    before, those of rank r + 1, and begins with that. Sums go with the block from rank to rank, and home at the end.
    """

    def __init__(self, sides: Sides, totals: torch.dtype | None, kept: Tensor | None, ranks: Ring) -> None:
        super().__init__(sides, totals, kept)
        self.ranks = ranks
        self.direction = 1 if kept is None else -1

    def __iter__(self) -> Iterator[Columns]:
        ranks, y = self.ranks, self.sides.y.rows.contiguous()
        rows, sums, arriving = y, None, _Transfer()
        for step in range(ranks.count):
            columns, ahead = self._columns(step), self._columns(step + 1)
            following, transfer = self.kept if step == 0 else None, _Transfer()
            if following is None and step + 1 < ranks.count:
                following = self._room(ahead, rows)
                transfer = self._exchange(rows, following, tag=0)
            total = self.zeros(rows)
            yield columns, rows, total
            if total is not None and step == 0:
                self.total = total
            elif total is not None:
                arriving.wait()
                if sums is not None:
                    total += sums
                sums = self._room(ahead, total)
                arriving = self._exchange(total, sums, tag=1)
            transfer.wait()
            if following is not None:
                rows = following
        arriving.wait()
        if self.total is not None and sums is not None:
            self.total += sums
        self.kept = rows

    def _columns(self, step: int) -> slice:
        """Those of a step; after the last step, this rank's own again."""
        return self.ranks.slices[(self.ranks.rank - self.direction * step) % self.ranks.count]

    def _room(self, columns: slice, like: Tensor) -> Tensor:
        return like.new_empty(columns.stop - columns.start, like.shape[1])

    def _exchange(self, send: Tensor, receive: Tensor, tag: int) -> "_Transfer":
        """Send to the rank that needs it in the next step, receive what this rank needs then."""
        ranks = self.ranks
        to, of = ((ranks.rank + step) % ranks.count for step in (self.direction, -self.direction))
        operations = [
            dist.P2POp(dist.isend, send, ranks.of_group(to), ranks.group, tag),
            dist.P2POp(dist.irecv, receive, ranks.of_group(of), ranks.group, tag),
        ]
        return _Transfer(dist.batch_isend_irecv(operations), send)


class _Transfer:
    """What is under way, and what must not be freed before it has arrived."""

    def __init__(self, works: list[dist.Work] | None = None, sent: Tensor | None = None) -> None:
        self.works, self.sent = works or [], sent

    def wait(self) -> None:
        for work in self.works:
            work.wait()
        self.works, self.sent = [], None
