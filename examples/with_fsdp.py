"""Fully sharded parameters (FSDP2): torchrun --nproc-per-node 2 examples/with_fsdp.py

The loss is part of the model: so its learned temperature is sharded and averaged like all other parameters.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from crossmodal_losses import GatheredLoss, NTXent, retrieval_metrics


class WithLoss(nn.Module):
    """Two small encoders, of 20 and of 30 numbers, and the loss of their embeddings."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.f, self.g = (nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16)) for width in (20, 30))
        self.loss = loss

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y = self.f(a), self.g(b)
        return self.loss(x, y), x, y


torch.manual_seed(0)
hidden = torch.randn(512, 5)
views = [hidden @ torch.randn(5, width) + 0.1 * torch.randn(512, width) for width in (20, 30)]
nt_xent = NTXent(temperature=0.2, learn_temperature=True)
model = WithLoss(GatheredLoss(nt_xent))
# On GPUs: "nccl", and init_device_mesh("cuda", ...).
dist.init_process_group("gloo")
rank, processes = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (processes,))
for encoder in (model.f, model.g):
    fully_shard(encoder, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
mine = [view[rank::processes] for view in views]
for _ in range(10):
    # 128 pairs a batch, whatever the number of processes.
    for a, b in zip(*(view.split(128 // processes) for view in mine), strict=True):
        optimizer.zero_grad()
        value, _, _ = model(a, b)
        value.backward()
        optimizer.step()
with torch.no_grad():
    _, x, y = model(*mine)
recall = retrieval_metrics(x, y).x_to_y.recall[1]  # among the pairs of this process
if rank == 0:
    print(f"loss {value.item():.6f}, temperature {nt_xent.temperature:.6f}, R@1 {recall:.3f}")
dist.destroy_process_group()
