"""What our losses are compared with: public implementations, forms written by hand, and those compiled.

Each is multiplied by the constant that makes it equal to ours. The constants follow from the definitions: others
take the mean of the two directions where equation 7 takes the sum, and sum over all pairs where equations 2 and 3 have
1/B. They know no ids; batches hold distinct pairs. A package is imported when its loss is first called.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from benchmarks import autograd
from benchmarks.autograd import MARGIN, TEMPERATURE
from benchmarks.batch import Loss


def open_clip_loss(temperature: float) -> Loss:
    """ClipLoss, the mean of both directions: half of equation 7."""

    @functools.cache
    def loss() -> Callable[..., Tensor]:
        import open_clip

        made: Callable[..., Tensor] = open_clip.ClipLoss()
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


def linear_cross_entropies(**options: int) -> Loss:
    """torch.nn.functional.linear_cross_entropy (torch 2.13), both ways; with options, a chunk of rows at a time.

    By default the chunks are as large as torch finds right. A single chunk keeps the logits, but not for autograd.
    """

    def loss(x: Tensor, y: Tensor, chunks: Any = None) -> Tensor:
        x, y = normalize(x), normalize(y)
        labels = torch.arange(len(x), device=x.device)
        cross_entropy: Callable[..., Tensor] = functional.linear_cross_entropy
        return cross_entropy(x / TEMPERATURE, y, labels, options=chunks) + cross_entropy(
            y / TEMPERATURE, x, labels, options=chunks
        )

    return loss


def inf_cl_loss(x: Tensor, y: Tensor) -> Tensor:
    """Inf-CL (PyPI inf-cl 1.2) on one GPU, both ways. Its kernels take D in equal parts of at most 256."""
    cal_flash_loss: Callable[..., Tensor] = importlib.import_module("inf_cl").cal_flash_loss
    x, y = normalize(x), normalize(y)
    settings = {"scale": 1 / TEMPERATURE, "head_dim": min(256, x.shape[1])}
    return (cal_flash_loss(x, y, **settings) + cal_flash_loss(y, x, **settings)).mean()
