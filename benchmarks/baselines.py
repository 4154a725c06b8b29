"""Baselines of our losses: public implementations, forms written by hand, and compiled ones.

Each is multiplied by the constant that makes it equal to ours. The constants follow from the definitions: public
implementations take the mean of the two directions where equation 7 takes the sum, and sum over all pairs where
equations 2 and 3 have 1/B. They take no ids; batches hold distinct pairs. A package is imported when its loss is first
called.
"""

import functools
import math
from collections.abc import Callable, Collection
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from benchmarks import autograd
from benchmarks.autograd import (
    MARGIN,
    SIGMOID_BIAS,
    SIGMOID_TEMPERATURE,
    TEMPERATURE,
    hardest_by_amax,
    hardest_by_max,
    of_hardest,
)
from benchmarks.batch import Loss

# Names in torch that not every version of it has.
LINEAR_CROSS_ENTROPY, CHUNKS = "linear_cross_entropy", "LinearCrossEntropyOptions"


def open_clip_loss(temperature: float, **settings: object) -> Loss:
    """Return ClipLoss, times 2: it is the mean of both directions, half of equation 7.

    Args:
        temperature: 1 / logit_scale.
        settings: settings of ClipLoss for batches on several processes.
    """
    loss = functools.cache(lambda: import_module("open_clip").ClipLoss(**settings))
    return lambda x, y: 2 * loss()(normalize(x), normalize(y), 1 / temperature)


def sentence_transformers_loss(temperature: float) -> Loss:
    """Return the symmetric ranking loss, times 2: it is half of equation 7, too."""

    @functools.cache
    def loss() -> Any:
        return import_module("sentence_transformers.sentence_transformer.losses").MultipleNegativesRankingLoss(
            torch.nn.Identity(),  # the model, which computing from embeddings does not use
            scale=1 / temperature,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )

    return lambda x, y: 2 * loss().compute_loss_from_embeddings([x, y], None)


def both_directions(make: Callable[[], tuple[Any, Any]]) -> Loss:
    """Return the sum of both directions of a loss of pytorch-metric-learning.

    Args:
        make: returns the loss, and its miner or None; called once.
    """
    made = functools.cache(make)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        direction, miner = made()
        labels = torch.arange(len(x), device=x.device)
        total = x.new_zeros(())
        for a, b in ((x, y), (y, x)):
            # The very same object as both labels would silently remove the positives.
            mined = miner(a, labels, b, labels.clone()) if miner else None
            total = total + direction(a, labels, mined, ref_emb=b, ref_labels=labels.clone())
        return total

    return loss


def metric_learning_nt_xent(temperature: float) -> Loss:
    """Return NTXentLoss in both directions: equation 7."""
    losses = "pytorch_metric_learning.losses"
    return both_directions(lambda: (import_module(losses).NTXentLoss(temperature=temperature), None))


def metric_learning_sup_con(temperature: float) -> Loss:
    """Return SupConLoss in both directions: with labels that are all different, equation 7."""
    losses = "pytorch_metric_learning.losses"
    return both_directions(lambda: (import_module(losses).SupConLoss(temperature=temperature), None))


def siglip_loss(temperature: float, bias: float) -> Loss:
    """Return SigLipLoss of open_clip.

    Args:
        temperature: 1 / logit_scale.
        bias: logit_bias.
    """
    loss = functools.cache(lambda: import_module("open_clip.loss").SigLipLoss())
    return lambda x, y: loss()(normalize(x), normalize(y), 1 / temperature, bias)


def metric_learning_triplet(hardest: bool = False) -> Loss:
    """Return TripletMarginLoss over B: its sum is B times equation 2; with BatchHardMiner, B times equation 3."""

    def make() -> tuple[Any, Any]:
        names = ("distances", "losses", "miners", "reducers")
        distances, losses, miners, reducers = (import_module(f"pytorch_metric_learning.{name}") for name in names)
        cosine = distances.CosineSimilarity()
        loss = losses.TripletMarginLoss(margin=MARGIN, distance=cosine, reducer=reducers.SumReducer())
        return loss, miners.BatchHardMiner(distance=cosine) if hardest else None

    loss = both_directions(make)
    return lambda x, y: loss(x, y) / len(x)


def loop_over_anchors(x: Tensor, y: Tensor) -> Tensor:
    """Compute the mined polynomial loss anchor by anchor in Python, as its published implementation does."""
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


def siglip_kernel_loss(temperature: float, bias: float) -> Loss:
    """Return fused_siglip_loss of siglip-kernel (PyPI, 0.1.2), a kernel for CUDA.

    Args:
        temperature: 1 / exp(log_temperature).
        bias: its bias.
    """

    def loss(x: Tensor, y: Tensor) -> Tensor:
        fused: Callable[..., Tensor] = import_module("siglip_kernel").fused_siglip_loss
        of_x = torch.full((), -math.log(temperature), device=x.device)
        return fused(normalize(x), normalize(y), of_x, torch.full_like(of_x, bias))

    return loss


def liger_loss(x: Tensor, y: Tensor) -> Tensor:
    """Compute Liger's fused linear cross-entropy (PyPI liger-kernel 0.8.5), kernels for CUDA, in both directions."""
    linear: Callable[..., Tensor] = import_module(
        "liger_kernel.transformers.functional"
    ).liger_fused_linear_cross_entropy
    x, y = normalize(x), normalize(y)
    labels = torch.arange(len(x), device=x.device)
    return linear(x / TEMPERATURE, y, labels) + linear(y / TEMPERATURE, x, labels)


def linear_cross_entropies(**options: object) -> Loss:
    """Return torch.nn.functional.linear_cross_entropy (torch 2.13) in both directions.

    Args:
        options: options of its chunks; none: it does without chunks.
    """

    def loss(x: Tensor, y: Tensor) -> Tensor:
        chunks = getattr(torch.nn, CHUNKS)(**options) if options else None
        direction = functools.partial(getattr(functional, LINEAR_CROSS_ENTROPY), options=chunks)
        x, y = normalize(x), normalize(y)
        labels = torch.arange(len(x), device=x.device)
        total: Tensor = direction(x / TEMPERATURE, y, labels) + direction(y / TEMPERATURE, x, labels)
        return total

    return loss


def inf_cl_loss(x: Tensor, y: Tensor) -> Tensor:
    """Compute Inf-CL (PyPI inf-cl 1.2) on one GPU in both directions.

    Its kernels take D in equal parts of at most 256.
    """
    cal_flash_loss: Callable[..., Tensor] = import_module("inf_cl").cal_flash_loss
    x, y = normalize(x), normalize(y)
    settings = {"scale": 1 / TEMPERATURE, "head_dim": min(256, x.shape[1])}
    return (cal_flash_loss(x, y, **settings) + cal_flash_loss(y, x, **settings)).mean()


OPEN_CLIP, COMPILED = "open_clip", "autograd, compiled"
INF_CL, LIGER, SIGLIP_KERNEL = "Inf-CL", "Liger", "siglip-kernel"
# S and a few more tensors of its size, in float32, fit into 24 GB.
LARGEST = 16384


class Baseline(NamedTuple):
    """A loss, and the largest B that it is benchmarked at.

    On a CPU that bounds memory and time. On a GPU running out of memory is an error that the benchmark survives, so
    there only time counts.

    Attributes:
        loss: the loss, with the default settings of ours.
        largest: largest B on a CPU; 0: it needs CUDA.
        largest_on_cuda: largest B on a GPU.
        needs: the package that it imports, or ``LINEAR_CROSS_ENTROPY``.
    """

    loss: Loss
    largest: int = LARGEST
    largest_on_cuda: int = 1 << 20
    needs: str = "torch"

    def is_available(self) -> bool:
        """Return whether this environment has what the baseline needs."""
        if not self.largest and not torch.cuda.is_available():
            return False
        if self.needs == LINEAR_CROSS_ENTROPY:
            return hasattr(functional, LINEAR_CROSS_ENTROPY)
        return find_spec(self.needs) is not None


def metric_learning(loss: Loss, largest: int) -> Baseline:
    """Return a baseline that is small everywhere: O(B^3) numbers, at B = 1024, do not fit into 24 GB."""
    return Baseline(loss, largest, largest, needs="pytorch_metric_learning")


def on_cuda(loss: Loss, needs: str) -> Baseline:
    """Return a baseline that has kernels for CUDA alone."""
    return Baseline(loss, 0, needs=needs)


def in_torch(largest: int = LARGEST, **options: object) -> Baseline:
    """Return linear_cross_entropy with these options of its chunks as a baseline."""
    return Baseline(linear_cross_entropies(**options), largest, needs=LINEAR_CROSS_ENTROPY)


# Loss -> name of a baseline -> the baseline, whether this environment has it or not.
ALL_BASELINES: dict[str, dict[str, Baseline]] = {
    "nt_xent": {
        "autograd, cross_entropy": Baseline(autograd.nt_xent_cross_entropy),
        "autograd, logsumexp": Baseline(autograd.nt_xent_logsumexp),
        OPEN_CLIP: Baseline(open_clip_loss(TEMPERATURE), needs="open_clip"),
        "sentence-transformers": Baseline(sentence_transformers_loss(TEMPERATURE), needs="sentence_transformers"),
        "pytorch-metric-learning": metric_learning(metric_learning_nt_xent(TEMPERATURE), 128),
        INF_CL: on_cuda(inf_cl_loss, "inf_cl"),
        LIGER: on_cuda(liger_loss, "liger_kernel"),
        "linear_cross_entropy": in_torch(),
        "linear_cross_entropy, one chunk": in_torch(batch_chunk_size=1 << 20),
        "linear_cross_entropy, chunks": in_torch(65536, chunking_method="auto"),
    },
    "triplet_sum": {
        "autograd, mask": Baseline(autograd.triplet_sum_masked),
        "autograd, diagonal subtracted": Baseline(autograd.triplet_sum_subtracted),
        "pytorch-metric-learning": metric_learning(metric_learning_triplet(), 128),
    },
    "triplet_max": {
        "autograd, max": Baseline(of_hardest(autograd.triplet_max, hardest_by_max)),
        "autograd, amax": Baseline(of_hardest(autograd.triplet_max, hardest_by_amax)),
        "pytorch-metric-learning": metric_learning(metric_learning_triplet(hardest=True), 4096),
    },
    "triplet_weighted": {
        "autograd, max": Baseline(of_hardest(autograd.triplet_weighted, hardest_by_max)),
        "autograd, amax": Baseline(of_hardest(autograd.triplet_weighted, hardest_by_amax)),
    },
    "triplet_weighted_mined": {
        "autograd, max": Baseline(of_hardest(autograd.triplet_weighted_mined, hardest_by_max)),
        "autograd, amax": Baseline(of_hardest(autograd.triplet_weighted_mined, hardest_by_amax)),
        "loop over anchors": Baseline(loop_over_anchors, 1024, 1024),
    },
    "sup_con": {  # of distinct pairs, where it is nt_xent
        "autograd, logsumexp": Baseline(autograd.nt_xent_logsumexp),
        "pytorch-metric-learning": metric_learning(metric_learning_sup_con(TEMPERATURE), 4096),
    },
    "sigmoid": {
        "autograd, softplus": Baseline(autograd.sigmoid),
        "open_clip, SigLipLoss": Baseline(siglip_loss(SIGMOID_TEMPERATURE, SIGMOID_BIAS), needs="open_clip"),
        SIGLIP_KERNEL: on_cuda(siglip_kernel_loss(SIGMOID_TEMPERATURE, SIGMOID_BIAS), "siglip_kernel"),
    },
}
# The same, of those that this environment has. Tests compare them with ours.
BASELINES = {
    loss: {name: baseline for name, baseline in baselines.items() if baseline.is_available()}
    for loss, baselines in ALL_BASELINES.items()
}
NAMES = sorted({COMPILED}.union(*ALL_BASELINES.values()))

# Loss -> the form that torch.compile makes fastest.
TO_COMPILE: dict[str, Loss] = {
    "nt_xent": autograd.nt_xent_logsumexp,
    "triplet_sum": autograd.triplet_sum_subtracted,
    "triplet_max": of_hardest(autograd.triplet_max, hardest_by_amax),
    "triplet_weighted": of_hardest(autograd.triplet_weighted, hardest_by_amax),
    "triplet_weighted_mined": of_hardest(autograd.triplet_weighted_mined, hardest_by_amax),
    "sup_con": autograd.nt_xent_logsumexp,
    "sigmoid": autograd.sigmoid,
}


def compile_at_one_size(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function under torch.compile, for one size at a time and as many threads as there are."""
    # Else code that was compiled for another number of threads may be taken from torch's cache on disk.
    threads: dict[str, Any] = {"cpp.threads": torch.get_num_threads()}
    return torch.compile(function, dynamic=False, options=threads)


def baselines_at(loss: str, B: int, device: str, *, compiled: bool = True) -> dict[str, Loss]:
    """Return the installed baselines of a loss that are measured at this B on this device."""
    found = {
        name: baseline.loss
        for name, baseline in BASELINES[loss].items()
        if (baseline.largest_on_cuda if device == "cuda" else baseline.largest) >= B
    }
    if compiled and (device == "cuda" or B <= LARGEST):
        torch.compiler.reset()  # torch keeps only so many compiled sizes of a function
        found[COMPILED] = compile_at_one_size(TO_COMPILE[loss])
    return found


def missing(losses: Collection[str]) -> list[str]:
    """Return the names of these losses' baselines that cannot run here: not installed, or for CUDA."""
    return sorted({name for loss in losses for name in ALL_BASELINES[loss] if name not in BASELINES[loss]})
