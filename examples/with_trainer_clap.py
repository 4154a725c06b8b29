"""Hugging Face's Trainer and ClapModel: python examples/with_trainer_clap.py, or torchrun as for with_trainer_clip.py

ClapModel's own loss takes the direction text to audio twice; this is both directions, and over all processes.
"""

import os
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ClapConfig, ClapModel, Trainer, TrainingArguments

from crossmodal_losses import GatheredLoss, NTXent, retrieval_metrics


class WithLoss(nn.Module):
    """A model and the loss of its embeddings, which Trainer looks for in the output."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, input_ids: Tensor, input_features: Tensor) -> dict[str, Tensor]:
        found = self.model(input_ids=input_ids, input_features=input_features)
        return {"loss": self.loss(found.audio_embeds, found.text_embeds)}


torch.manual_seed(0)
words = torch.cartesian_prod(torch.arange(2, 12), torch.arange(12, 22))  # captions of two words
# Log-mel spectrograms of 64 frames and 16 bands.
sounds = torch.randn(22, 1, 64, 16)[words].sum(1) + 0.1 * torch.randn(100, 1, 64, 16)
size: dict[str, Any] = {"hidden_size": 32, "hidden_dropout_prob": 0.0}
text = size | {"vocab_size": 22, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
audio = size | {"spec_size": 32, "num_mel_bins": 16, "window_size": 4, "patch_embeds_hidden_size": 16}
audio |= {"depths": [1, 1], "num_attention_heads": [2, 2], "num_hidden_layers": 2}
nt_xent = NTXent(temperature=0.2, learn_temperature=True)
model = WithLoss(ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=32)), GatheredLoss(nt_xent))
processes = int(os.environ.get("WORLD_SIZE", 1))
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=50 // processes,  # 50 pairs a batch, whatever the number of processes
        num_train_epochs=25,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,  # leave it out on GPUs
    )
    pairs = [{"input_ids": ids, "input_features": sound} for ids, sound in zip(words, sounds, strict=True)]
    trainer = Trainer(model, arguments, train_dataset=pairs)
    trainer.train()
if trainer.is_world_process_zero():
    with torch.no_grad():
        found = model.model.eval()(input_ids=words, input_features=sounds)
    recall = retrieval_metrics(found.audio_embeds, found.text_embeds).x_to_y.recall[1]
    print(f"temperature {nt_xent.temperature:.6f}, R@1 {recall:.3f}")
