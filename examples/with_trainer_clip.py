"""Hugging Face's Trainer and CLIPModel: torchrun --nproc-per-node 2 examples/with_trainer_clip.py

The temperature is CLIP's own, 1 / exp(logit_scale). With the mean of both directions the loss is that of CLIPModel with
return_loss=True; over several processes, which CLIPModel's is not.
"""

import os
import tempfile

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

from crossmodal_losses import GatheredLoss, NTXent, retrieval_metrics


class WithLoss(nn.Module):
    """A model and the loss of its embeddings, which Trainer looks for in the output."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model, self.loss = model, GatheredLoss(NTXent(direction_weights=(0.5, 0.5)))

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        found = self.model(input_ids=input_ids, pixel_values=pixel_values)
        temperature = (-self.model.logit_scale).exp()
        value = self.loss(found.image_embeds, found.text_embeds, temperature=temperature)
        return {"loss": value, "image_embeds": found.image_embeds, "text_embeds": found.text_embeds}


torch.manual_seed(0)
words = torch.cartesian_prod(torch.arange(16), torch.arange(16, 32))  # captions of two words, and then the last token
captions = torch.nn.functional.pad(words, (0, 1), value=63)
images = torch.randn(32, 3, 16, 16)[words].sum(1) + 0.1 * torch.randn(256, 3, 16, 16)
size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
text = size | {"vocab_size": 64, "max_position_embeddings": 3, "eos_token_id": 63}
vision = size | {"image_size": 16, "patch_size": 8}
model = WithLoss(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)))
processes = int(os.environ.get("WORLD_SIZE", 1))
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=64 // processes,  # 64 pairs a batch, whatever the number of processes
        num_train_epochs=15,
        learning_rate=5e-3,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,  # leave it out on GPUs
    )
    pairs = [{"input_ids": ids, "pixel_values": image} for ids, image in zip(captions, images, strict=True)]
    trainer = Trainer(model, arguments, train_dataset=pairs)
    trainer.train()
if trainer.is_world_process_zero():
    with torch.no_grad():
        found = model.model(input_ids=captions, pixel_values=images)
    recall = retrieval_metrics(found.image_embeds, found.text_embeds).x_to_y.recall[1]
    print(f"temperature {(-model.model.logit_scale).exp():.6f}, R@1 {recall:.3f}")
