"""One step of training: the loss of a batch, its gradient, and the update of the weights."""

from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Adam

from crossmodal_losses import LOSSES, GatheredLoss, GradientCache, PairLoss
from reference_model.config import Config


def objective(config: Config) -> PairLoss:
    """Return the loss of the run: one of equations 2 to 7, with the settings of section 3.2."""
    mined = config.loss == "triplet_weighted" and config.weighted_rule == "mined"
    return LOSSES["triplet_weighted_mined" if mined else config.loss]()


class Step:
    """Trains a module by one batch at each call.

    Args:
        module: returns both embeddings, given the "audio" and "text" of a batch as keyword arguments.
        config: loss, protocol and learning rate.
        accelerator: device, precision and processes.
    """

    def __init__(self, module: nn.Module, config: Config, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = Adam(self.parameters, lr=config.learning_rate, fused=True)
        self.embed, self._update = accelerator.prepare(module, self.optimizer)
        self.loss = GatheredLoss(objective(config))
        micro_batch = config.gradient_cache_micro_batch
        self.cache = None if micro_batch is None else GradientCache(self.loss, micro_batch_size=micro_batch)
        nt_xent = config.loss == "nt_xent"
        self.factor = config.nt_xent_factor if nt_xent else 1.0
        self.masks_same_clip = config.mask_same_clip and not nt_xent
        self.clip_norm = config.clip_norm

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """Update the weights, and return the loss before the update, a detached scalar.

        Args:
            batch: "audio" and "text", each the keyword arguments of the module, and "ids" of the clips, ``[B]``.
        """
        value = self.factor * self._loss(batch["audio"], batch["text"], batch["ids"] if self.masks_same_clip else None)
        self._update.zero_grad()
        self.accelerator.backward(value)
        if self.clip_norm:
            self.accelerator.clip_grad_norm_(self.parameters, self.clip_norm)
        self._update.step()
        return value.detach()

    def _loss(self, audio: dict[str, Tensor], text: dict[str, Tensor], ids: Tensor | None) -> Tensor:
        value: Tensor
        if self.cache is None:
            value = self.loss(*self.embed(**audio, **text), ids)
        else:
            value = self.cache(self._embed_audio, self._embed_text, audio, text, ids)
        return value

    def _embed_audio(self, audio: dict[str, Tensor]) -> Tensor:
        return self.embed(**audio)[0]  # type: ignore[no-any-return]

    def _embed_text(self, text: dict[str, Tensor]) -> Tensor:
        return self.embed(**text)[1]  # type: ignore[no-any-return]

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
