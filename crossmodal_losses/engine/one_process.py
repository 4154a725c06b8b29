"""What the engine asks of the processes that share a batch, and the answers where there is one alone.

Every process holds some rows of x and the same rows of y, and computes the rows of S that belong to its x. It has to
see the columns of S, which belong to the others' y, and to agree with the others on what concerns all.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from crossmodal_losses.engine.objective import Fold, State
from crossmodal_losses.engine.operands import Sides

# Which columns of S; their rows of y; where their gradients are summed, if they are wanted.
Columns = tuple[slice, Tensor, Tensor | None]


class Visit:
    """All columns of S in turn.

    Attributes:
        total: afterwards, the gradients of this process's own columns, summed, where they are wanted.
        kept: afterwards, what saves the next visit some of the transfers.
    """

    def __init__(self, sides: Sides, totals: torch.dtype | None, kept: Tensor | None = None) -> None:
        self.sides, self.totals, self.kept = sides, totals, kept
        self.total: Tensor | None = None

    def zeros(self, rows: Tensor) -> Tensor | None:
        """For the gradients of such rows."""
        return None if self.totals is None else rows.new_zeros(rows.shape, dtype=self.totals)

    def __iter__(self) -> Iterator[Columns]:
        y = self.sides.y.rows
        self.total = self.zeros(y)
        yield self.sides.own, y, self.total


class OneProcess:
    """There are no others."""

    alone = True

    def share(self, sides: Sides, ids: Tensor | None, positive: Tensor) -> tuple[Sides, Tensor | None, Tensor]:
        """What every process has to know of all pairs: the lengths of their embeddings, ids, positives."""
        return sides, ids, positive

    def visit(self, sides: Sides, totals: torch.dtype | None, kept: Tensor | None = None) -> Visit:
        """The columns of S. With a dtype for totals, where the gradients of y are wanted."""
        return Visit(sides, totals, kept)

    def merge(self, fold: Fold, columns: State) -> State:
        """From the states of all columns over this process's rows to the states of its own columns over all rows."""
        return columns

    def publish(self, of_anchors: Tensor) -> Tensor:
        """Numbers of this process's anchors, its rows and columns, ``[2, rows]``, to ``[2, B]``: those of all columns,
        and of its own rows."""
        return of_anchors

    def sum(self, value: Tensor) -> Tensor:
        """Over the processes."""
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Over the processes."""
        return value
