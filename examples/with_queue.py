"""A queue of the last batches as further negatives: python examples/with_queue.py"""

from collections import deque

import torch
from torch import nn

from crossmodal_losses import NTXent, retrieval_metrics

torch.manual_seed(0)
hidden = torch.randn(512, 5)
views = [hidden @ torch.randn(5, width) + 0.1 * torch.randn(512, width) for width in (20, 30)]
f, g = (nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16)) for width in (20, 30))
loss = NTXent(temperature=0.2, learn_temperature=True)
optimizer = torch.optim.Adam([*f.parameters(), *g.parameters(), *loss.parameters()], lr=1e-2)
queue: deque[torch.Tensor] = deque(maxlen=3)  # embeddings of the last three batches
for _ in range(10):
    for a, b in zip(*(view.split(64) for view in views), strict=True):
        optimizer.zero_grad()
        x, y = f(a), g(b)
        value = loss(x, y, negatives_y=torch.cat([*queue]) if queue else None)
        value.backward()
        optimizer.step()
        queue.append(y.detach())  # without a graph: the queue costs no gradient
recall = retrieval_metrics(f(views[0]), g(views[1])).x_to_y.recall[1]
print(f"loss {value.item():.6f}, temperature {loss.temperature:.6f}, R@1 {recall:.3f}")
