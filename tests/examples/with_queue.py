"""A queue of the last batches as further negatives: python tests/examples/with_queue.py"""

from collections import deque

import torch
from pairs import DualEncoder, Pairs
from torch.utils.data import DataLoader

from crossmodal_losses import NTXent

model, loss = DualEncoder(), NTXent()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
queue: deque[torch.Tensor] = deque(maxlen=3)  # embeddings of the last three batches
for epoch in range(3):
    for a, b in DataLoader(Pairs(512), batch_size=64):
        optimizer.zero_grad()
        x, y = model(a, b)
        value = loss(x, y, negatives_y=torch.cat([*queue]) if queue else None)
        value.backward()
        optimizer.step()
        queue.append(y.detach())  # without a graph: the queue costs no gradient
    print(f"epoch {epoch}: loss {value.item():.6f}")
