"""Retrieval metrics of two sets of embeddings, in both directions: recall at k, ranks, mean average precision at k."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossmodal_losses.checks import check_ks, check_retrieval
from crossmodal_losses.engine.compat import without_autocast
from crossmodal_losses.similarity import computation_dtype, normalise

# Similarities in memory at a time. All that is computed from them takes about four times as much.
BLOCK_BYTES = 2**26

# Lengths of rows that were normalised in their own precision differ from 1 by a few roundings, at most by so many.
UNIT_LENGTH = 8


@dataclass(frozen=True)
class DirectionMetrics:
    """Retrieval metrics of one direction. Every row of one side is a query, all rows of the other are its candidates.

    The rank of a candidate is its place, from 1, in the order of falling similarity. Of equal similarities, candidates
    that are not relevant come first: ties count against the model.

    Attributes:
        recall: R@k by k, in [0, 1]: the fraction of queries with a relevant candidate among the first k.
        map: mAP@k by k, in [0, 1]: the mean of AP@k over queries. See :func:`retrieval_metrics` for its equation.
        median_rank: median over queries of the rank of the best relevant candidate; 1 is best.
        mean_rank: mean of the same ranks.
        candidates: number of candidates.
        ranks: the ranks themselves, one for each query, int64 on the CPU. Not compared by ``==``.
    """

    recall: dict[int, float]
    map: dict[int, float]
    median_rank: float
    mean_rank: float
    candidates: int
    ranks: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class RetrievalMetrics:
    """Retrieval metrics of both directions.

    Attributes:
        x_to_y: rows of x are queries, rows of y are candidates.
        y_to_x: rows of y are queries, rows of x are candidates.
    """

    x_to_y: DirectionMetrics
    y_to_x: DirectionMetrics


@torch.no_grad()
def retrieval_metrics(
    x: Tensor, y: Tensor, x_ids: Tensor | None = None, y_ids: Tensor | None = None, *, ks: Iterable[int] = (1, 5, 10)
) -> RetrievalMetrics:
    r"""Compute R@k, median and mean rank, and mAP@k of both directions, from cosine similarities.

    With :math:`R_q` relevant candidates of a query q, at the ranks :math:`r_{q1} < r_{q2} < \ldots`

    .. math:: AP_q@k = \frac{1}{\min(k, R_q)} \sum_{j:\, r_{qj} \le k} \frac{j}{r_{qj}}

    Average precision (Manning, Raghavan and Schütze 2008, Introduction to Information Retrieval, section 8.4) of the
    first k ranks, divided by the largest sum that k ranks allow, so that 1 is best for every k. Libraries differ in the
    denominator: torchmetrics takes the number of relevant candidates among the first k. R@k is the metric of Mei et al.
    2022, section 3.3; the audio retrieval tasks of DCASE rank systems by mAP@10 (2022 to 2024) and mAP@16 (2025).

    The similarities are never stored as a whole: memory beyond the inputs is O(N D + M D) and about 256 MiB. The device
    is synchronised a few times for each direction, not in between.

    Args:
        x, y: floating ``[N, D]`` and ``[M, D]``, not necessarily normalised, on one device.
        x_ids, y_ids: integers ``[N]`` and ``[M]``; a candidate is relevant to a query if their ids are equal. There may
            be several of them. None, both of them: N = M, and only the i-th rows belong together.
        ks: whole numbers >= 1. A k beyond the number of candidates includes all of them.

    Returns:
        Metrics as fractions, not percent. Half precision is converted to float32 before anything is computed, under
        autocast too; only TF32, if you allow it, lowers the precision. A row of zeros has similarity 0 to everything.
        Ties are those of computed similarities: products of equal rows may differ by rounding.

    Raises:
        TypeError, ValueError: an argument is not as described; a row of x or y has a NaN or an inf; or a query has no
            relevant candidate, so that it has no rank.

    >>> images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> captions = torch.tensor([[2.0, 0.1], [0.9, 1.0], [0.1, 3.0]])
    >>> metrics = retrieval_metrics(images, captions, torch.tensor([0, 1]), torch.tensor([0, 0, 1]), ks=(1, 5))
    >>> metrics.x_to_y.recall  # the first caption of either image is one of its own
    {1: 1.0, 5: 1.0}
    >>> metrics.y_to_x.ranks  # the second caption is more similar to the wrong image
    tensor([1, 2, 1])
    >>> f"{metrics.y_to_x.map[5]:.3f}"
    '0.833'
    """
    x, y, x_ids, y_ids = check_retrieval(x, y, x_ids, y_ids)
    ks = check_ks(ks)
    for name, rows in (("x", x), ("y", y)):
        if not rows.isfinite().all():
            raise ValueError(f"expected finite embeddings {name}, got NaN or inf")
    dtype = computation_dtype(x, y)
    x, y = _unit_rows(x.to(dtype)), _unit_rows(y.to(dtype))
    return RetrievalMetrics(
        x_to_y=_one_direction(("x", x, x_ids), ("y", y, y_ids), ks),
        y_to_x=_one_direction(("y", y, y_ids), ("x", x, x_ids), ks),
    )


def _unit_rows(x: Tensor) -> Tensor:
    """Scale rows to unit length, ``[N, D] -> [N, D]``; rows that have it, up to rounding, stay as they are.

    So embeddings that are normalised are ranked by their plain products, to the bit. Scaled again, they would differ in
    their last bits, and nearly equal similarities in their order.
    """
    is_unit = (x.norm(dim=1, keepdim=True) - 1).abs() <= UNIT_LENGTH * torch.finfo(x.dtype).eps
    return torch.where(is_unit, x, normalise(x))


# Rows of one side: their name in an error, normalised embeddings [N, D], and ids, int64 [N].
_Side = tuple[str, Tensor, Tensor]


def _one_direction(queries: _Side, candidates: _Side, ks: tuple[int, ...]) -> DirectionMetrics:
    (_, x, x_ids), (_, y, y_ids) = queries, candidates
    relevant_counts, most = _count_relevant(queries, candidates)
    rows = max(1, BLOCK_BYTES // (len(y) * y.element_size()))
    ranks, precisions = [], []
    for x_part, ids, counts in zip(x.split(rows), x_ids.split(rows), relevant_counts.split(rows), strict=True):
        with without_autocast(x.device):
            S = x_part @ y.T
        best, found = _ranks_of_relevant(S, ids[:, None] == y_ids, most=most, depth=min(max(ks), len(y)))
        ranks.append(best)
        precisions.append(torch.stack([_average_precision(found, counts, k) for k in ks]))
    rank = torch.cat(ranks).cpu()
    mean_precisions = torch.stack([of_k.mean() for of_k in torch.cat(precisions, 1)]).tolist()
    ordered = rank.sort().values
    return DirectionMetrics(
        recall={k: float((rank <= k).double().mean()) for k in ks},
        map=dict(zip(ks, mean_precisions, strict=True)),
        median_rank=float(ordered[(len(rank) - 1) // 2] + ordered[len(rank) // 2]) / 2,
        mean_rank=float(rank.double().mean()),
        candidates=len(y),
        ranks=rank,
    )


def _count_relevant(queries: _Side, candidates: _Side) -> tuple[Tensor, int]:
    """Return the number of relevant candidates of each query, ``[N]``, and the largest; require at least one each."""
    (name, _, ids), (of_name, _, of_ids) = queries, candidates
    ordered = of_ids.sort().values
    counts = torch.searchsorted(ordered, ids, side="right") - torch.searchsorted(ordered, ids, side="left")
    fewest, most = torch.stack([counts.amin(), counts.amax()]).tolist()
    if fewest == 0:
        without = (counts == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"expected every row of {name} to have a row of {of_name} of its id, got none for {len(without)} of "
            f"{len(ids)}, such as {name}[{without[0]}], id {int(ids[without[0]])}"
        )
    return counts, most


def _ranks_of_relevant(S: Tensor, relevant: Tensor, *, most: int, depth: int) -> tuple[Tensor, Tensor]:
    """Return the ranks of the best relevant candidates, ``[Q]``, and of further ones up to ``depth``, ``[Q, T]``.

    S, ``[Q, C]``, is overwritten. No query has more than ``most`` relevant candidates. The T ranks are ascending; those
    beyond ``depth`` are larger than ``depth``, but otherwise wrong; missing ones are infinite.
    """
    similarity = S.masked_fill(~relevant, -torch.inf).topk(min(most, depth), 1).values  # descending
    others = S.masked_fill_(relevant, -torch.inf)
    best = 1 + (others >= similarity[:, :1]).sum(1)
    # Others that are at least as similar; beyond depth they need not be counted.
    nearest = others.topk(depth, 1).values.flip(1).contiguous()
    ahead = depth - torch.searchsorted(nearest, similarity.contiguous(), side="left")
    ranks = ahead + torch.arange(1, similarity.shape[1] + 1, device=S.device)
    return best, ranks.float().masked_fill(similarity == -torch.inf, torch.inf)


def _average_precision(ranks: Tensor, counts: Tensor, k: int) -> Tensor:
    """Return AP@k of each query, ``[Q]``, from the ranks of its relevant candidates, ``[Q, T]``, and their number."""
    precision = torch.arange(1, ranks.shape[1] + 1, device=ranks.device) / ranks
    return torch.where(ranks <= k, precision, 0).sum(1) / counts.clamp(max=k)
