"""Hugging Face Accelerate, on GPUs: accelerate launch --num_processes 2 tests/examples/with_accelerate.py

On CPUs: ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 tests/examples/with_accelerate.py

Through GradientCache: 16 pairs are embedded at a time.
"""

import torch
from accelerate import Accelerator
from pairs import DualEncoder, Pairs
from torch.utils.data import DataLoader

from crossmodal_losses import GatheredLoss, GradientCache, NTXent

nt_xent = NTXent(temperature=0.2, learn_temperature=True)
cache = GradientCache(GatheredLoss(nt_xent), micro_batch_size=16)

model = DualEncoder()
# The first optimizer imports torch's compiler. After Accelerator() it would keep gloo's threads alive beyond its end.
optimizer = torch.optim.Adam([*model.parameters(), *nt_xent.parameters()], lr=1e-2)
accelerator = Accelerator()
# 128 pairs a batch, whatever the number of processes.
loader = DataLoader(Pairs(512), batch_size=128 // accelerator.num_processes, drop_last=True)
f, g, optimizer, loader = accelerator.prepare(model.f, model.g, optimizer, loader)
nt_xent.to(accelerator.device)
for epoch in range(3):
    for a, b in loader:
        optimizer.zero_grad()
        value = cache(f, g, a, b)
        accelerator.backward(value)
        optimizer.step()
    accelerator.print(f"epoch {epoch}: loss {value.item():.6f}")
accelerator.print(f"{accelerator.num_processes} processes, temperature {nt_xent.temperature:.6f}")
accelerator.end_training()
