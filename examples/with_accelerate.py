"""Hugging Face Accelerate, on GPUs: accelerate launch --num_processes 2 examples/with_accelerate.py

On CPUs: ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 examples/with_accelerate.py

Through GradientCache: 16 pairs are embedded at a time.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from crossmodal_losses import GatheredLoss, GradientCache, NTXent, retrieval_metrics

torch.manual_seed(0)
hidden = torch.randn(512, 5)
views = [hidden @ torch.randn(5, width) + 0.1 * torch.randn(512, width) for width in (20, 30)]
f, g = (nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16)) for width in (20, 30))
nt_xent = NTXent(temperature=0.2, learn_temperature=True)
cache = GradientCache(GatheredLoss(nt_xent), micro_batch_size=16)

# The first optimizer imports torch's compiler. After Accelerator() it would keep gloo's threads alive beyond its end.
optimizer = torch.optim.Adam([*f.parameters(), *g.parameters(), *nt_xent.parameters()], lr=1e-2)
accelerator = Accelerator()
# 128 pairs a batch, whatever the number of processes.
loader = DataLoader(TensorDataset(*views), batch_size=128 // accelerator.num_processes, drop_last=True)
f, g, optimizer, loader = accelerator.prepare(f, g, optimizer, loader)
nt_xent.to(accelerator.device)
for _ in range(10):
    for a, b in loader:
        optimizer.zero_grad()
        value = cache(f, g, a, b)
        accelerator.backward(value)
        optimizer.step()
with torch.no_grad():
    x, y = (encoder(view.to(accelerator.device)) for encoder, view in zip((f, g), views, strict=True))
recall = retrieval_metrics(x, y).x_to_y.recall[1]
accelerator.print(f"loss {value.item():.6f}, temperature {nt_xent.temperature:.6f}, R@1 {recall:.3f}")
accelerator.end_training()
