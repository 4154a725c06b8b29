"""For every batch, the hardest negatives of a pool: python tests/examples/with_hard_negatives.py"""

import torch
from pairs import DualEncoder, Pairs
from torch.utils.data import DataLoader, TensorDataset

from crossmodal_losses import TripletSum, cosine_similarity

model, loss, pairs = DualEncoder(), TripletSum(), Pairs(512)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
pool = pairs.views[1]
for epoch in range(3):
    with torch.no_grad():
        embeddings = model.g(pool)
    for a, b, ids in DataLoader(TensorDataset(*pairs.views, torch.arange(512)), batch_size=64):
        optimizer.zero_grad()
        x, y = model(a, b)
        S = cosine_similarity(x.detach(), embeddings)
        S[torch.arange(len(ids)), ids] = -1  # the own partner is no negative
        hardest = S.topk(2).indices.flatten().unique()
        value = loss(x, y, ids, negatives_y=model.g(pool[hardest]), negative_ids_y=hardest)
        value.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {value.item():.6f}")
