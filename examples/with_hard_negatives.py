"""For every batch, the hardest negatives of a pool: python examples/with_hard_negatives.py"""

import torch
from torch import nn

from crossmodal_losses import TripletSum, cosine_similarity, retrieval_metrics

torch.manual_seed(0)
hidden = torch.randn(512, 5)
views = [hidden @ torch.randn(5, width) + 0.1 * torch.randn(512, width) for width in (20, 30)]
f, g = (nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16)) for width in (20, 30))
loss, pool = TripletSum(), views[1]
optimizer = torch.optim.Adam([*f.parameters(), *g.parameters()], lr=1e-2)
for _ in range(10):
    with torch.no_grad():
        embeddings = g(pool)  # of this epoch's beginning: good enough to choose by
    for a, b, ids in zip(*(view.split(64) for view in (*views, torch.arange(512))), strict=True):
        optimizer.zero_grad()
        x, y = f(a), g(b)
        S = cosine_similarity(x.detach(), embeddings)
        S[torch.arange(len(ids)), ids] = -1  # the own partner is no negative
        hardest = S.topk(2).indices.flatten().unique()
        value = loss(x, y, ids, negatives_y=g(pool[hardest]), negative_ids_y=hardest)
        value.backward()
        optimizer.step()
recall = retrieval_metrics(f(views[0]), g(views[1])).x_to_y.recall[1]
print(f"loss {value.item():.6f}, R@1 {recall:.3f}")
