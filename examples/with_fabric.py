"""Lightning Fabric: fabric run --accelerator cpu --strategy ddp --devices 2 examples/with_fabric.py"""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from crossmodal_losses import GatheredLoss, NTXent, retrieval_metrics


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
fabric = Fabric()
nt_xent = NTXent(temperature=0.2, learn_temperature=True).to(fabric.device)
loss, model = GatheredLoss(nt_xent), DualEncoder()
optimizer = torch.optim.Adam([*model.parameters(), *nt_xent.parameters()], lr=1e-2)
model, optimizer = fabric.setup(model, optimizer)
# 128 pairs a batch, whatever the number of processes.
loader = DataLoader(TensorDataset(*views), batch_size=128 // fabric.world_size, drop_last=True)
loader = fabric.setup_dataloaders(loader)
for _ in range(10):
    for a, b in loader:
        optimizer.zero_grad()
        value = loss(*model(a, b))
        fabric.backward(value)
        optimizer.step()
with torch.no_grad():
    recall = retrieval_metrics(*model(*(view.to(fabric.device) for view in views))).x_to_y.recall[1]
fabric.print(f"loss {value.item():.6f}, temperature {nt_xent.temperature:.6f}, R@1 {recall:.3f}")
