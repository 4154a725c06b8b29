"""The Module that all losses have in common: settings, and the choice of an engine."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from crossmodal_losses.checks import Reduction, check_batch, check_direction_weights, check_reduction, check_tile_size
from crossmodal_losses.engine.compat import can_look
from crossmodal_losses.engine.dispatch import pair_loss
from crossmodal_losses.engine.objective import Objective, Total
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
        direction_weights: (w_x, w_y), >= 0, not both 0. The loss is w_x times that of the anchors x, plus w_y times
            that of the anchors y. (1, 1) is the paper; (0.5, 0.5) the mean, as in CLIP; (1, 0) one direction alone,
            and the other is not computed.
        reduction: "mean", "sum" or "none".
        tile_size: t, how many rows and columns of S are computed at a time; the value does not depend on it, beyond
            rounding. Memory beyond inputs and gradients is O(t^2 + t D + B). None: all of S where B is small, up to
            1024 (on a CPU 4096 for NT-Xent and supervised contrastive), and tiles beyond, of a size that suits the
            device.
    """

    objective_type: ClassVar[type[Objective]]
    at_call: ClassVar[tuple[str, ...]] = ()  # settings that a call may have of its own

    def __init__(
        self,
        *,
        direction_weights: Sequence[float] = (1.0, 1.0),
        reduction: Reduction = "mean",
        tile_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.direction_weights = check_direction_weights(direction_weights)
        self.reduction = reduction
        self.tile_size = check_tile_size(tile_size)
        vars(self).update(vars(self.objective_type(**settings)))

    @property
    def objective(self) -> Objective:
        """The loss of an anchor, with the present settings of this module."""
        return self.objective_with({})

    @property
    def total(self) -> Total:
        """How the losses of the anchors are added up."""
        return Total(self.reduction, check_direction_weights(self.direction_weights))

    def objective_with(self, settings: Mapping[str, Any]) -> Objective:
        """The objective with settings of one call; None stands for that of this module."""
        for name in settings:
            if name not in self.at_call:
                known = ", ".join(self.at_call) or "none"
                raise TypeError(f"expected settings of a call of {type(self).__name__}: {known}; got {name}")
        given = {name: value for name, value in settings.items() if value is not None}
        names = self.objective_type.__match_args__
        return self.objective_type(*[given[name] if name in given else getattr(self, name) for name in names])

    def of_similarities(self, S: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """The loss as a function of the similarities S, ``[B, B]``, with the settings of this module."""
        weights = self.direction_weights
        return reference_loss(self.objective, S, ids=ids, reduction=self.reduction, direction_weights=weights)

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
        """The loss of a batch.

        Args:
            x, y: floating ``[B, D]``, not necessarily normalised, on one device; half precision is computed in float32.
            ids: integers ``[B]``; pairs (i, j) of one id are no negatives. None: every j != i is a negative.
            negatives_x, negatives_y: floating ``[M, D]`` and ``[N, D]``: candidates without a partner, such as mined
                hard negatives, or a queue of earlier embeddings. All of negatives_y are candidates of every x_i, and
                all of negatives_x of every y_j; they are never compared with each other. They receive gradients where
                they require them.
            negative_ids_x, negative_ids_y: integers ``[M]`` and ``[N]``, with ids: a candidate of the anchor's own id
                is no negative. None: all are negatives.
            settings: settings of this call alone, such as ``temperature``, where the loss has such.

        Returns:
            A scalar, or ``[B]`` for ``reduction="none"``; float64 if an embedding is, else float32.
        """
        batch = check_batch(x, y, ids, negatives_x, negatives_y, negative_ids_x, negative_ids_y)
        return pair_loss(batch, self.objective_with(settings), self.total, self.tile_size)

    def extra_repr(self) -> str:
        """The arguments of the constructor, with the values in use."""
        parameters = inspect.signature(type(self)).parameters.values()
        keywords = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        names = dict.fromkeys([*self.objective_type.__match_args__, *keywords])
        return ", ".join(f"{name}={_shown(getattr(self, name))}" for name in names)

    __call__: Callable[..., Tensor]
