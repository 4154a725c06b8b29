"""Lightning Fabric: fabric run --accelerator cpu --strategy ddp --devices 2 tests/examples/with_fabric.py

In Lightning's Trainer it is the same: ``self.loss = GatheredLoss(NTXent(learn_temperature=True))`` in __init__, so that
``self.parameters()`` has the temperature, and in training_step ``return self.loss(self.f(a), self.g(b))``.
"""

import torch
from lightning_fabric import Fabric
from pairs import DualEncoder, Pairs
from torch.utils.data import DataLoader

from crossmodal_losses import GatheredLoss, NTXent

fabric = Fabric()
nt_xent = NTXent(temperature=0.2, learn_temperature=True).to(fabric.device)
loss = GatheredLoss(nt_xent)

model = DualEncoder()
optimizer = torch.optim.Adam([*model.parameters(), *nt_xent.parameters()], lr=1e-2)
model, optimizer = fabric.setup(model, optimizer)
# 128 pairs a batch, whatever the number of processes.
loader = fabric.setup_dataloaders(DataLoader(Pairs(512), batch_size=128 // fabric.world_size, drop_last=True))
for epoch in range(3):
    for a, b in loader:
        optimizer.zero_grad()
        value = loss(*model(a, b))
        fabric.backward(value)
        optimizer.step()
    fabric.print(f"epoch {epoch}: loss {value.item():.6f}")
fabric.print(f"{fabric.world_size} processes, temperature {nt_xent.temperature:.6f}")
