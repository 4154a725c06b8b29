"""Our losses against public implementations: equal up to a constant factor, in value and gradient.

The factors come from the definitions: others average the two directions, or sum where equation 2 and 3 average.
Only batches of distinct pairs, because the peers know no ids.
"""

from collections.abc import Callable

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import NTXentLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import SumReducer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from crossmodal_losses import cosine_similarity as S
from crossmodal_losses import nt_xent, triplet_max, triplet_sum

MARGIN = 0.2


def clip_loss(x: Tensor, y: Tensor, t: float) -> Tensor:
    unit = torch.nn.functional.normalize
    return open_clip.ClipLoss()(unit(x), unit(y), torch.tensor(1 / t))


def symmetric_ranking_loss(x: Tensor, y: Tensor, t: float) -> Tensor:
    loss = MultipleNegativesRankingLoss(
        torch.nn.Identity(),
        scale=1 / t,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    return loss.compute_loss_from_embeddings([x, y], torch.empty(0))


def both_ways(loss: Callable[..., Tensor], x: Tensor, y: Tensor, miner: Callable[..., object] | None = None) -> Tensor:
    """A loss of (queries, their labels, mined triplets, candidates, their labels), x to y plus y to x."""
    labels = torch.arange(len(x))
    total = torch.zeros((), dtype=x.dtype)
    for a, b in ((x, y), (y, x)):
        # The very same object as both labels would silently remove the positives.
        mined = miner(a, labels, b, labels.clone()) if miner else None
        total = total + loss(a, labels, mined, ref_emb=b, ref_labels=labels.clone())
    return total


def metric_learning_nt_xent(x: Tensor, y: Tensor, t: float) -> Tensor:
    return both_ways(NTXentLoss(temperature=t), x, y)


def metric_learning_triplet(x: Tensor, y: Tensor, miner: Callable[..., object] | None = None) -> Tensor:
    loss = TripletMarginLoss(margin=MARGIN, distance=CosineSimilarity(), reducer=SumReducer())
    return both_ways(loss, x, y, miner)


def assert_proportional(ours: Callable[..., Tensor], peer: Callable[..., Tensor], factor: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    B = 2 + seed % 9
    x = torch.randn(B, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    y = (x.detach() + torch.randn(B, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    value, expected = ours(x, y), factor * peer(x, y)
    torch.testing.assert_close(value, expected.to(value.dtype), rtol=1e-6, atol=1e-7)
    gradients = torch.autograd.grad(value, (x, y))
    expected_gradients = torch.autograd.grad(expected, (x, y))
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("peer, factor", [(clip_loss, 2), (symmetric_ranking_loss, 2), (metric_learning_nt_xent, 1)])
@given(seed=st.integers(0, 2**31), t=st.sampled_from([0.05, 0.07, 0.5, 1.0]))
def test_nt_xent(peer: Callable[..., Tensor], factor: float, seed: int, t: float) -> None:
    assert_proportional(lambda x, y: nt_xent(S(x, y), temperature=t), lambda x, y: peer(x, y, t), factor, seed)


@given(seed=st.integers(0, 2**31))
def test_triplet_sum(seed: int) -> None:
    ours = lambda x, y: triplet_sum(S(x, y), margin=MARGIN, reduction="sum")  # noqa: E731
    assert_proportional(ours, metric_learning_triplet, 1, seed)


@given(seed=st.integers(0, 2**31))
def test_triplet_max(seed: int) -> None:
    miner = BatchHardMiner(distance=CosineSimilarity())
    ours = lambda x, y: triplet_max(S(x, y), margin=MARGIN, reduction="sum")  # noqa: E731
    assert_proportional(ours, lambda x, y: metric_learning_triplet(x, y, miner), 1, seed)
