"""One step of training: the loss of a batch, its gradient, and the update of the weights."""

from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Adam

from crossmodal_losses import GatheredLoss, GradientCache
from reference_model.config import Config


class Step:
    """Trains a module, which returns both embeddings of the "audio" and "text" of a batch, by a batch at each call."""

    def __init__(self, module: nn.Module, config: Config, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = Adam(self.parameters, lr=config.learning_rate, fused=True)
        self.embed, self._update = accelerator.prepare(module, self.optimizer)
        self.loss = GatheredLoss(config.new_loss())
        micro_batch = config.gradient_cache_micro_batch
        self.cache = None if micro_batch is None else GradientCache(self.loss, micro_batch_size=micro_batch)
        self.masks_same_clip = config.mask_same_clip and config.loss != "nt_xent"
        self.clip_norm = config.clip_norm

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """Update the weights, and return the loss before the update, a detached scalar.

        Args:
            batch: "audio" and "text", each the keyword arguments of the module, and "ids" of the clips, ``[B]``.
        """
        audio, text, ids = batch["audio"], batch["text"], batch["ids"] if self.masks_same_clip else None
        value: Tensor
        if self.cache is None:
            value = self.loss(*self.embed(**audio, **text), ids)
        else:
            value = self.cache(lambda part: self.embed(**part)[0], lambda part: self.embed(**part)[1], audio, text, ids)
        self._update.zero_grad()
        self.accelerator.backward(value)
        if self.clip_norm:
            self.accelerator.clip_grad_norm_(self.parameters, self.clip_norm)
        self._update.step()
        return value.detach()

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
