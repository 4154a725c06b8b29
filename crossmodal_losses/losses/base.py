"""The Module that all losses have in common: settings, and the choice of an engine."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from crossmodal_losses.checks import Reduction, check_embeddings, check_ids, check_reduction, check_tile_size
from crossmodal_losses.engine.compat import can_look
from crossmodal_losses.engine.dispatch import pair_loss
from crossmodal_losses.engine.objective import Objective
from crossmodal_losses.engine.reference import reference_loss


def _shown(setting: Any) -> str:
    if not isinstance(setting, Tensor):
        return repr(setting)
    learned = setting.detach()
    return f"{float(learned):.6g}" if can_look(learned) else repr(learned)


class PairLoss(nn.Module):
    """A loss over two batches of embeddings whose i-th rows are a pair. It holds settings; its objective is the loss.

    A subclass names the type of its objective. Every field of it is a setting: an argument of the constructor, and an
    attribute of the module, such as ``loss.margin``.

    Args:
        reduction: "mean", "sum" or "none".
        tile_size: t, how many rows and columns of S are computed at a time; the value does not depend on it, beyond
            rounding. Memory beyond inputs and gradients is O(t^2 + t D + B). None: all of S where B is small, up to
            4096 for NT-Xent and 1024 for the others, and tiles beyond, of the size found fastest on the device.
    """

    objective_type: ClassVar[type[Objective]]

    def __init__(self, *, reduction: Reduction = "mean", tile_size: int | None = None, **settings: Any) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction
        self.tile_size = check_tile_size(tile_size)
        vars(self).update(vars(self.objective_type(**settings)))

    @property
    def objective(self) -> Objective:
        """The loss of an anchor, with the present settings of this module."""
        return self.objective_type(*[getattr(self, name) for name in self.objective_type.__match_args__])

    def of_similarities(self, S: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """The loss as a function of the similarities S, ``[B, B]``, with the settings of this module."""
        return reference_loss(self.objective, S, ids=ids, reduction=self.reduction)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            x, y: floating ``[B, D]``, not necessarily normalised, on one device; half precision is computed in float32.
            ids: integers ``[B]``; pairs (i, j) of one id are no negatives. None: every j != i is a negative.

        Returns:
            A scalar, or ``[B]`` for ``reduction="none"``; float64 if x or y is, else float32.
        """
        x, y = check_embeddings(x, y)
        ids = check_ids(ids, x)
        return pair_loss(x, y, ids, self.objective, self.reduction, self.tile_size)

    def extra_repr(self) -> str:
        """The arguments of the constructor, with the values in use."""
        names = dict.fromkeys([*self.objective_type.__match_args__, *inspect.signature(type(self)).parameters])
        return ", ".join(f"{name}={_shown(getattr(self, name))}" for name in names)

    __call__: Callable[..., Tensor]
