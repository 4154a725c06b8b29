"""What our losses are compared with: public implementations, forms written by hand, and those compiled.

Each is multiplied by the constant that makes it equal to ours. The constants follow from the definitions: others
take the mean of the two directions where equation 7 takes the sum, and sum over all pairs where equations 2 and 3 have
1/B. They know no ids; batches hold distinct pairs. A package is imported when its loss is first called.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from benchmarks import autograd
from benchmarks.autograd import MARGIN, TEMPERATURE
from benchmarks.batch import Loss as Loss

# Not in every torch.
LINEAR_CROSS_ENTROPY, CHUNKS = "linear_cross_entropy", "LinearCrossEntropyOptions"


def open_clip_loss(temperature: float, **settings: object) -> Loss:
    """ClipLoss, the mean of both directions: half of equation 7. The settings are for batches on many processes."""

    @functools.cache
    def loss() -> Callable[..., Tensor]:
        import open_clip

        made: Callable[..., Tensor] = open_clip.ClipLoss(**settings)
        return made

    return lambda x, y: 2 * loss()(normalize(x), normalize(y), 1 / temperature)


def sentence_transformers_loss(temperature: float) -> Loss:
    """The symmetric ranking loss, likewise half of equation 7."""

    @functools.cache
    def loss() -> Callable[..., Tensor]:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        made: Callable[..., Tensor] = MultipleNegativesRankingLoss(
            torch.nn.Identity(),  # the model, which computing from embeddings does not use
            scale=1 / temperature,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        ).compute_loss_from_embeddings
        return made

    return lambda x, y: 2 * loss()([x, y], None)


def both_ways(make: Callable[[], tuple[Callable[..., Tensor], Callable[..., object] | None]]) -> Loss:
    """x to y plus y to x of a loss of pytorch-metric-learning, which ``make`` gives together with its miner."""
    made = functools.cache(make)

    def directions(x: Tensor, y: Tensor) -> Tensor:
        loss, miner = made()
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

    def make() -> tuple[Callable[..., Tensor], None]:
        from pytorch_metric_learning.losses import NTXentLoss

        return NTXentLoss(temperature=temperature), None

    return both_ways(make)


def metric_learning_triplet(hardest: bool = False) -> Loss:
    """TripletMarginLoss, summed over triplets: B times equation 2; with BatchHardMiner, B times equation 3."""

    def make() -> tuple[Callable[..., Tensor], Callable[..., object] | None]:
        from pytorch_metric_learning.distances import CosineSimilarity
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import BatchHardMiner
        from pytorch_metric_learning.reducers import SumReducer

        loss = TripletMarginLoss(margin=MARGIN, distance=CosineSimilarity(), reducer=SumReducer())
        return loss, BatchHardMiner(distance=CosineSimilarity()) if hardest else None

    loss = both_ways(make)
    return lambda x, y: loss(x, y) / len(x)


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


def linear_cross_entropies(**options: object) -> Loss:
    """torch.nn.functional.linear_cross_entropy (torch 2.13), both ways; in chunks if options of them are given."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        chunks = getattr(torch.nn, CHUNKS)(**options) if options else None
        of = functools.partial(getattr(functional, LINEAR_CROSS_ENTROPY), options=chunks)
        x, y = normalize(x), normalize(y)
        labels = torch.arange(len(x), device=x.device)
        total: Tensor = of(x / TEMPERATURE, y, labels) + of(y / TEMPERATURE, x, labels)
        return total

    return loss


def inf_cl_loss(x: Tensor, y: Tensor) -> Tensor:
    """Inf-CL (PyPI inf-cl 1.2) on one GPU, both ways. Its kernels take D in equal parts of at most 256."""
    cal_flash_loss: Callable[..., Tensor] = importlib.import_module("inf_cl").cal_flash_loss
    x, y = normalize(x), normalize(y)
    settings = {"scale": 1 / TEMPERATURE, "head_dim": min(256, x.shape[1])}
    return (cal_flash_loss(x, y, **settings) + cal_flash_loss(y, x, **settings)).mean()


OPEN_CLIP = "open_clip"
# S and a few more of its size, in float32, fit into 24 GB.
LARGEST = 16384


class Peer(NamedTuple):
    """A loss, and the largest B that it is benchmarked at.

    On a CPU that bounds memory and time. On a GPU running out of memory is an error that the benchmark survives, so
    there only time counts.
    """

    loss: Loss
    largest: int = LARGEST
    largest_on_cuda: int = 1 << 20
    needs: str = "torch"  # what is imported when it is called

    def is_available(self) -> bool:
        if self.needs == LINEAR_CROSS_ENTROPY:
            return hasattr(functional, LINEAR_CROSS_ENTROPY)
        return importlib.util.find_spec(self.needs) is not None


def metric_learning(loss: Loss, largest: int) -> Peer:
    """NTXentLoss and the triplets form O(B^3) numbers, which at B = 1024 do not fit into 24 GB."""
    return Peer(loss, largest, largest, needs="pytorch_metric_learning")


def in_torch(largest: int = LARGEST, **options: object) -> Peer:
    return Peer(linear_cross_entropies(**options), largest, needs=LINEAR_CROSS_ENTROPY)


# Of each loss with its default settings.
ALL: dict[str, dict[str, Peer]] = {
    "nt_xent": {
        "autograd, cross_entropy": Peer(autograd.nt_xent_cross_entropy),
        "autograd, logsumexp": Peer(autograd.nt_xent_logsumexp),
        OPEN_CLIP: Peer(open_clip_loss(TEMPERATURE), needs="open_clip"),
        "sentence-transformers": Peer(sentence_transformers_loss(TEMPERATURE), needs="sentence_transformers"),
        "pytorch-metric-learning": metric_learning(metric_learning_nt_xent(TEMPERATURE), 128),
        "linear_cross_entropy": in_torch(),
        "linear_cross_entropy, one chunk": in_torch(batch_chunk_size=1 << 20),
        "linear_cross_entropy, chunks": in_torch(65536, chunking_method="auto"),
    },
    "triplet_sum": {
        "autograd, mask": Peer(autograd.triplet_sum_masked),
        "autograd, diagonal subtracted": Peer(autograd.triplet_sum_subtracted),
        "pytorch-metric-learning": metric_learning(metric_learning_triplet(), 128),
    },
    "triplet_max": {
        "autograd, max": Peer(autograd.triplet_max_max),
        "autograd, amax": Peer(autograd.triplet_max_amax),
        "pytorch-metric-learning": metric_learning(metric_learning_triplet(hardest=True), 4096),
    },
    "triplet_weighted": {
        "autograd, max": Peer(autograd.triplet_weighted_max),
        "autograd, amax": Peer(autograd.triplet_weighted_amax),
    },
    "triplet_weighted_mined": {
        "autograd, max": Peer(autograd.triplet_weighted_mined_max),
        "autograd, amax": Peer(autograd.triplet_weighted_mined_amax),
        "loop over anchors": Peer(loop_over_anchors, 1024, 1024),
    },
}
# Those that this environment has: tests compare them with ours.
PEERS = {name: {peer: p for peer, p in peers.items() if p.is_available()} for name, peers in ALL.items()}

# For torch.compile: of each loss the form that it makes fastest.
TO_COMPILE: dict[str, Loss] = {
    "nt_xent": autograd.nt_xent_logsumexp,
    "triplet_sum": autograd.triplet_sum_subtracted,
    "triplet_max": autograd.triplet_max_amax,
    "triplet_weighted": autograd.triplet_weighted_amax,
    "triplet_weighted_mined": autograd.triplet_weighted_mined_amax,
}
COMPILED, INF_CL = "autograd, compiled", "Inf-CL"


def rivals(name: str, B: int, device: str, *, compiled: bool = True) -> dict[str, Loss]:
    """All that a loss is measured against, at this B and on this device, as far as it is installed."""
    on_cuda = device == "cuda"
    found = {peer: p.loss for peer, p in PEERS[name].items() if (p.largest_on_cuda if on_cuda else p.largest) >= B}
    if compiled and (on_cuda or LARGEST >= B):
        torch.compiler.reset()  # so that no size is one too many for what is kept of compiled functions
        found[COMPILED] = torch.compile(TO_COMPILE[name], dynamic=False)
    if name == "nt_xent" and on_cuda and importlib.util.find_spec("inf_cl"):
        found[INF_CL] = inf_cl_loss
    return found


NAMES = sorted({COMPILED, INF_CL}.union(*ALL.values()))


def absent(names: Collection[str]) -> list[str]:
    """Of these losses, the peers that are not installed here."""
    return sorted({peer for name in names for peer in ALL[name] if peer not in PEERS[name]})
