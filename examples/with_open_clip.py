"""open_clip's training loop with a loss of this package in place of ClipLoss: python examples/with_open_clip.py

ClipLoss is NTXent with the mean of both directions; TripletMax and the others train by the same lines.
"""

from types import SimpleNamespace

import torch
from open_clip import CLIP
from open_clip_train.train import train_one_epoch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from crossmodal_losses import GatheredLoss, NTXent, retrieval_metrics


class PairsLoss(nn.Module):
    """The interface of ClipLoss around a loss of crossmodal_losses."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, output_dict: bool = False
    ) -> dict[str, Tensor]:
        return {"contrastive_loss": self.loss(image_features, text_features, temperature=1 / logit_scale)}


torch.manual_seed(0)
words = torch.cartesian_prod(torch.arange(16), torch.arange(16, 32))  # captions of two words, and then the last token
captions = torch.nn.functional.pad(words, (0, 1), value=63)
images = torch.randn(32, 3, 16, 16)[words].sum(1) + 0.1 * torch.randn(256, 3, 16, 16)
vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16}
text = {"context_length": 3, "vocab_size": 64, "layers": 1, "width": 32, "heads": 2}
model = CLIP(32, vision, text, output_dict=True)
loss = PairsLoss(GatheredLoss(NTXent(direction_weights=(0.5, 0.5))))
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
loader = DataLoader(TensorDataset(images, captions), batch_size=64, shuffle=True)
loader.num_batches, loader.num_samples = len(loader), len(images)
data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
off = dict.fromkeys(["distill", "log_local", "horovod", "wandb", "rank", "local_rank", "grad_clip_norm"])
on = {
    "device": "cpu",
    "precision": "fp32",
    "accum_freq": 1,
    "batch_size": 64,
    "world_size": 1,
    "log_every_n_steps": 100,
}
arguments = SimpleNamespace(**off, **on, skip_scheduler=True)
for epoch in range(15):
    train_one_epoch(model, data, loss, epoch, optimizer, None, None, None, arguments)
with torch.no_grad():
    found = model(images, captions)
recall = retrieval_metrics(found["image_features"], found["text_features"]).x_to_y.recall[1]
print(f"temperature {1 / found['logit_scale']:.6f}, R@1 {recall:.3f}")
