"""Public implementations of the same losses over embeddings, and a loop in the manner of one.

Each is multiplied by the constant that makes it equal to ours. The constants follow from the definitions: others
take the mean of the two directions where equation 7 takes the sum, and sum over all pairs where equations 2 and 3 have
1/B. They know no ids; batches hold distinct pairs.
"""

from collections.abc import Callable

import open_clip
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import SumReducer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn.functional import normalize

MARGIN = 0.2
Loss = Callable[[Tensor, Tensor], Tensor]


def open_clip_loss(temperature: float) -> Loss:
    """ClipLoss, the mean of both directions: half of equation 7."""
    loss = open_clip.ClipLoss()
    return lambda x, y: 2 * loss(normalize(x), normalize(y), 1 / temperature)


def sentence_transformers_loss(temperature: float) -> Loss:
    """The symmetric ranking loss, likewise half of equation 7."""
    loss = MultipleNegativesRankingLoss(
        torch.nn.Identity(),  # the model, which computing from embeddings does not use
        scale=1 / temperature,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    return lambda x, y: 2 * loss.compute_loss_from_embeddings([x, y], None)


def both_ways(loss: Callable[..., Tensor], miner: Callable[..., object] | None = None) -> Loss:
    """x to y plus y to x of a loss of pytorch-metric-learning."""

    def directions(x: Tensor, y: Tensor) -> Tensor:
        labels = torch.arange(len(x), device=x.device)
        total = x.new_zeros(())
        for a, b in ((x, y), (y, x)):
            # The very same object as both labels would silently remove the positives.
            mined = miner(a, labels, b, labels.clone()) if miner else None
            total = total + loss(a, labels, mined, ref_emb=b, ref_labels=labels.clone())
        return total

    return directions


def metric_learning_nt_xent(temperature: float) -> Loss:
    """NTXentLoss, both ways: equation 7."""
    return both_ways(NTXentLoss(temperature=temperature))


def metric_learning_triplet(miner: Callable[..., object] | None = None) -> Loss:
    """TripletMarginLoss, summed over triplets: B times equation 2, or equation 3 with a miner of hardest negatives."""
    loss = both_ways(TripletMarginLoss(margin=MARGIN, distance=CosineSimilarity(), reducer=SumReducer()), miner)
    return lambda x, y: loss(x, y) / len(x)


def metric_learning_triplet_max() -> Loss:
    """The same with BatchHardMiner."""
    return metric_learning_triplet(BatchHardMiner(distance=CosineSimilarity()))


def loop_over_anchors(x: Tensor, y: Tensor) -> Tensor:
    """The mined polynomial loss anchor by anchor in Python, as its published implementation has it."""
    S = normalize(x) @ normalize(y).T
    total = 0 * S.sum()
    for T in (S, S.T):
        for i in range(len(T)):
            positive = T[i, i]
            if positive >= 1 - 1e-5:
                continue
            hardest = torch.cat([T[i, :i], T[i, i + 1 :]]).max()
            if hardest + MARGIN > positive:
                total = total + (0.5 - 0.7 * positive + 0.2 * positive**2).relu()
                total = total + (0.03 - 0.4 * hardest + 0.9 * hardest**2).relu()
    return total / len(S)


# Of each loss with its default settings: its peers, and the largest B that each is benchmarked at. NTXentLoss and the
# triplets of pytorch-metric-learning form O(B^3) numbers, which at B = 1024 do not fit into 24 GB.
PEERS: dict[str, dict[str, tuple[Loss, int]]] = {
    "nt_xent": {
        "open_clip": (open_clip_loss(0.07), 4096),
        "sentence-transformers": (sentence_transformers_loss(0.07), 4096),
        "pytorch-metric-learning": (metric_learning_nt_xent(0.07), 128),
    },
    "triplet_sum": {"pytorch-metric-learning": (metric_learning_triplet(), 128)},
    "triplet_max": {"pytorch-metric-learning": (metric_learning_triplet_max(), 4096)},
    "triplet_weighted_mined": {"loop over anchors": (loop_over_anchors, 128)},
}
