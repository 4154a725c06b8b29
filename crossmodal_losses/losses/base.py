"""What every loss is as a Module: settings, and the choice between dense and tiles."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from crossmodal_losses.checks import Reduction, check_embeddings, check_ids, check_reduction, check_tile_size
from crossmodal_losses.engine.dense import ClosedForm
from crossmodal_losses.engine.objective import Fold
from crossmodal_losses.engine.reference import bidirectional
from crossmodal_losses.engine.rules import Rule
from crossmodal_losses.engine.tiled import tiled
from crossmodal_losses.similarity import cosine_similarity

# Measured (benchmarks/tile_size.py): the side of a tile from which products run at full speed, and the largest batch
# for which keeping all of S beats tiles: where a fold needs two passes, it saves one product of four.
TILE = {"cpu": 1024, "cuda": 4096}
LARGEST_DENSE, LARGEST_DENSE_OF_TWO_PASSES = 1024, 4096


def largest_dense(fold: Fold) -> int:
    """The largest B for which ``tile_size=None`` keeps all of S, B x B."""
    return LARGEST_DENSE if fold.selects or fold.one_pass else LARGEST_DENSE_OF_TWO_PASSES


def largest_tile(device: torch.device) -> int:
    """The t that ``tile_size=None`` stands for where S is not kept."""
    return TILE.get(device.type, TILE["cpu"])


def _is_transformed() -> bool:
    """Whether this runs under vmap, another transformation of torch.func, or forward-mode differentiation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


class PairLoss(nn.Module, ABC):
    """A loss over two batches of embeddings whose i-th rows are a pair. It holds settings; its rule does the work.

    A subclass says what its :attr:`rule` is, and is entered in ``LOSSES``.

    Args:
        reduction: "mean", "sum" or "none".
        tile_size: t, how many rows and columns of S are computed at a time; the value does not depend on it, beyond
            rounding. Memory beyond inputs and gradients is O(t^2 + t D + B). None: all of S where B is small, up to
            4096 for NT-Xent and 1024 for the others, and tiles beyond, of the size found fastest on the device.
    """

    def __init__(self, *, reduction: Reduction = "mean", tile_size: int | None = None) -> None:
        super().__init__()
        check_reduction(reduction)
        check_tile_size(tile_size)
        self.reduction = reduction
        self.tile_size = tile_size

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """The loss with the settings of this module."""

    def of_similarities(self, S: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """The loss as a function of the similarities S, ``[B, B]``, with the settings of this module."""
        return bidirectional(self.rule, S, ids=ids, reduction=self.reduction)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            x, y: floating ``[B, D]``, not necessarily normalised, on one device; half precision is computed in float32.
            ids: integers ``[B]``; pairs (i, j) of one id are no negatives. None: every j != i is a negative.

        Returns:
            A scalar, or ``[B]`` for ``reduction="none"``; float64 if x or y is, else float32.
        """
        check_embeddings(x, y)
        check_ids(ids, x)
        rule = self.rule
        fold = rule.fold
        if len(x) <= (self.tile_size or largest_dense(fold)):
            # Where torch transforms the program it gets the plain form, which can be transformed in any way.
            if torch.compiler.is_compiling() or _is_transformed():
                return self.of_similarities(cosine_similarity(x, y), ids=ids)
            return ClosedForm.apply(x, y, ids, fold.parameter, rule, self.reduction)  # type: ignore[no-any-return, no-untyped-call]
        return tiled(x, y, ids, rule, self.reduction, self.tile_size or largest_tile(x.device))

    __call__: Callable[..., Tensor]
