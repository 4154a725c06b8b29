"""One step of training: the loss of a batch, its gradient, and the update of the weights."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Adam

from crossmodal_losses import GatheredLoss, GradientCache
from reference_model import InputError
from reference_model.config import Config
from reference_model.models.encoders import SIZES


class Queue(nn.Module):
    """The embeddings of the last pairs, without gradients, and the ids of their clips: further negatives."""

    x: Tensor
    y: Tensor
    ids: Tensor
    pushed: Tensor

    def __init__(self, size: int, embedding_size: int, device: torch.device) -> None:
        super().__init__()
        for name in ("x", "y"):
            self.register_buffer(name, torch.zeros(size, embedding_size, device=device))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64, device=device))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))  # pairs so far; on the CPU: a count

    def negatives(self) -> dict[str, Tensor]:
        """Return the candidates without a partner, and their ids, as the losses take them; nothing at first."""
        held = min(int(self.pushed), len(self.ids))
        if held == 0:
            return {}
        of_both = {f"negatives_{side}": getattr(self, side)[:held].clone() for side in ("x", "y")}
        return of_both | dict.fromkeys(("negative_ids_x", "negative_ids_y"), self.ids[:held].clone())

    def push(self, x: Tensor, y: Tensor, ids: Tensor) -> None:
        """Replace the oldest pairs by these; of more pairs than there is room for, the last ones are kept."""
        size = len(self.ids)
        places = (torch.arange(len(ids)) + int(self.pushed)) % size
        last = slice(max(0, len(ids) - size), None)
        for held, new in ((self.x, x), (self.y, y), (self.ids, ids)):
            held[places[last].to(held.device)] = new[last].detach().to(held.dtype)
        self.pushed += len(ids)


class Step:
    """Trains a module, which returns both embeddings of the "audio" and "text" of a batch, by a batch at each call."""

    warm_up = 1  # calls that take longer than all later ones

    def __init__(self, module: nn.Module, config: Config, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.loss = GatheredLoss(config.new_loss()).to(accelerator.device)
        self.parameters = [p for p in (*module.parameters(), *self.loss.parameters()) if p.requires_grad]
        self.optimizer = Adam(self.parameters, lr=config.learning_rate, fused=True)
        self.embed, self._update = accelerator.prepare(module, self.optimizer)
        micro_batch = config.gradient_cache_micro_batch
        self.cache = None if micro_batch is None else GradientCache(self.loss, micro_batch_size=micro_batch)
        self.queue: Queue | None = None
        if config.queue:
            if accelerator.num_processes > 1:
                raise InputError(f"expected a queue in one process, got {accelerator.num_processes} processes")
            self.queue = Queue(config.queue, SIZES[config.model].embedding_size, accelerator.device)
        self.gives_ids = (
            (config.mask_same_clip and config.loss != "nt_xent") or config.loss == "sup_con" or config.queue
        )
        self.clip_norm = config.clip_norm

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of a step besides the optimiser: what the loss learns, and the queue."""
        learned = {f"loss.{name}": parameter.detach() for name, parameter in self.loss.named_parameters()}
        return learned | ({} if self.queue is None else {f"queue.{n}": t for n, t in self.queue.named_buffers()})

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """Update the weights, and return the loss before the update, a detached scalar.

        Args:
            batch: "audio" and "text", each the keyword arguments of the module, and "ids" of the clips, ``[B]``.
        """
        audio, text, ids = batch["audio"], batch["text"], batch["ids"] if self.gives_ids else None
        value: Tensor
        if self.queue is not None:
            x, y = self.embed(**audio, **text)
            value = self.loss(x, y, ids, **self.queue.negatives())
            self.queue.push(x, y, batch["ids"])
        elif self.cache is None:
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
