"""Lightning's Trainer, in any number of processes: torchrun --nproc-per-node 2 examples/with_lightning.py

The loss is part of the LightningModule: so ``self.parameters()`` has its temperature.
"""

import os

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from crossmodal_losses import GatheredLoss, NTXent, retrieval_metrics


class DualEncoder(LightningModule):
    """Two small encoders, of 20 and of 30 numbers, and the loss of their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = (nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16)) for width in (20, 30))
        self.nt_xent = NTXent(temperature=0.2, learn_temperature=True)
        self.loss = GatheredLoss(self.nt_xent)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        a, b = batch
        value: Tensor = self.loss(self.f(a), self.g(b))
        self.log("loss", value)
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


torch.manual_seed(0)
hidden = torch.randn(512, 5)
views = [hidden @ torch.randn(5, width) + 0.1 * torch.randn(512, width) for width in (20, 30)]
model, processes = DualEncoder(), int(os.environ.get("WORLD_SIZE", 1))
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = Trainer(accelerator="cpu", strategy="ddp", devices=processes, max_epochs=10, **quiet)
# 128 pairs a batch, whatever the number of processes.
trainer.fit(model, DataLoader(TensorDataset(*views), batch_size=128 // processes, drop_last=True))
if trainer.is_global_zero:
    value = trainer.callback_metrics["loss"]
    recall = retrieval_metrics(model.f(views[0]), model.g(views[1])).x_to_y.recall[1]
    print(f"loss {value.item():.6f}, temperature {model.nt_xent.temperature:.6f}, R@1 {recall:.3f}")
