"""Plain torch: torchrun --nproc-per-node 2 tests/examples/plain_torch.py

On GPUs: init_process_group("nccl"), torch.cuda.set_device(int(os.environ["LOCAL_RANK"])), and model and batches there.
"""

import torch
import torch.distributed as dist
from pairs import DualEncoder, Pairs
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from crossmodal_losses import NTXent, RingLoss

model, nt_xent = DualEncoder(), NTXent(temperature=0.2, learn_temperature=True)
# The first optimizer imports torch's compiler. Within the group, that would keep gloo's threads alive beyond its end.
optimizer = torch.optim.Adam([*model.parameters(), *nt_xent.parameters()], lr=1e-2)
dist.init_process_group("gloo")
replica = DistributedDataParallel(model)
loss = RingLoss(nt_xent)

pairs = Pairs(512)
# 128 pairs a batch, whatever the number of processes; shuffle in real life, and call sampler.set_epoch.
sampler: DistributedSampler[object] = DistributedSampler(pairs, shuffle=False)
loader = DataLoader(pairs, batch_size=128 // dist.get_world_size(), sampler=sampler, drop_last=True)
for epoch in range(3):
    for a, b in loader:
        optimizer.zero_grad()
        value = loss(*replica(a, b))
        value.backward()
        optimizer.step()
    if dist.get_rank() == 0:
        print(f"epoch {epoch}: loss {value.item():.6f}")
if dist.get_rank() == 0:
    print(f"{dist.get_world_size()} processes, temperature {nt_xent.temperature:.6f}")
dist.destroy_process_group()
