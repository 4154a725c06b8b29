"""Plain torch, in any number of processes: torchrun --nproc-per-node 2 examples/with_torchrun.py

On GPUs: init_process_group("nccl"), torch.cuda.set_device(int(os.environ["LOCAL_RANK"])), and model and batches there.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from crossmodal_losses import NTXent, RingLoss, retrieval_metrics


class DualEncoder(nn.Module):
    """Two small encoders, of 20 and of 30 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = (nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16)) for width in (20, 30))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.f(a), self.g(b)


torch.manual_seed(0)
hidden = torch.randn(512, 5)
views = [hidden @ torch.randn(5, width) + 0.1 * torch.randn(512, width) for width in (20, 30)]
model, nt_xent = DualEncoder(), NTXent(temperature=0.2, learn_temperature=True)
# The first optimizer imports torch's compiler. Within the group, that would keep gloo's threads alive beyond its end.
optimizer = torch.optim.Adam([*model.parameters(), *nt_xent.parameters()], lr=1e-2)
dist.init_process_group("gloo")
replica, loss = DistributedDataParallel(model), RingLoss(nt_xent)

pairs = TensorDataset(*views)
# 128 pairs a batch, whatever the number of processes; shuffle in real life, and call sampler.set_epoch.
sampler: DistributedSampler[object] = DistributedSampler(pairs, shuffle=False)
loader = DataLoader(pairs, batch_size=128 // dist.get_world_size(), sampler=sampler, drop_last=True)
for _ in range(10):
    for a, b in loader:
        optimizer.zero_grad()
        value = loss(*replica(a, b))
        value.backward()
        optimizer.step()
if dist.get_rank() == 0:
    recall = retrieval_metrics(*model(*views)).x_to_y.recall[1]
    print(f"loss {value.item():.6f}, temperature {nt_xent.temperature:.6f}, R@1 {recall:.3f}")
dist.destroy_process_group()
