"""Hugging Face's Trainer: torchrun --nproc-per-node 2 tests/examples/with_trainer.py

The loss is part of the model: so the optimiser, which Trainer makes of the model's parameters, has its temperature.
"""

import os
import tempfile

from pairs import DualEncoder, Pairs
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from crossmodal_losses import GatheredLoss, NTXent


class WithLoss(nn.Module):
    """Encoders and the loss of their embeddings, which Trainer looks for in the output."""

    def __init__(self, encoders: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.encoders, self.loss = encoders, loss

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss(*self.encoders(a, b))}


nt_xent = NTXent(temperature=0.2, learn_temperature=True)
model = WithLoss(DualEncoder(), GatheredLoss(nt_xent))
processes = int(os.environ.get("WORLD_SIZE", 1))
pairs = [{"a": a, "b": b} for a, b in zip(*Pairs(512).views, strict=True)]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=128 // processes,  # 128 pairs a batch, whatever the number of processes
        num_train_epochs=3,
        learning_rate=1e-2,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,  # leave it out on GPUs
    )
    trainer = Trainer(model, arguments, train_dataset=pairs)
    trainer.train()
if trainer.is_world_process_zero():
    for epoch, log in enumerate(trainer.state.log_history[:-1]):
        print(f"epoch {epoch}: loss {log['loss']:.6f}")
    print(f"{processes} processes, temperature {nt_xent.temperature:.6f}")
