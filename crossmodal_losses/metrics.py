"""Retrieval metrics of two sets of embeddings, in both directions: recall at k, ranks, mean average precision at k."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossmodal_losses.checks import check_ks, check_relevant_pairs, check_retrieval, check_retrieval_ids
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
    x: Tensor,
    y: Tensor,
    x_ids: Tensor | None = None,
    y_ids: Tensor | None = None,
    *,
    relevant: Tensor | None = None,
    ks: Iterable[int] = (1, 5, 10),
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
        relevant: in place of ids, integers ``[P, 2]``: a row of x and a row of y that are relevant to each other. Any
            relation can be given so; a pair that is there twice counts once.
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
    x, y = check_retrieval(x, y)
    of_x, of_y = _relevance(x, y, x_ids, y_ids, relevant)
    ks = check_ks(ks)
    for name, rows in (("x", x), ("y", y)):
        if not rows.isfinite().all():
            raise ValueError(f"expected finite embeddings {name}, got NaN or inf")
    dtype = computation_dtype(x, y)
    x, y = _unit_rows(x.to(dtype)), _unit_rows(y.to(dtype))
    return RetrievalMetrics(x_to_y=_one_direction(x, y, of_x, ks), y_to_x=_one_direction(y, x, of_y, ks))


def _unit_rows(x: Tensor) -> Tensor:
    """Scale rows to unit length, ``[N, D] -> [N, D]``; rows that have it, up to rounding, stay as they are.

    So embeddings that are normalised are ranked by their plain products, to the bit. Scaled again, they would differ in
    their last bits, and nearly equal similarities in their order.
    """
    is_unit = (x.norm(dim=1, keepdim=True) - 1).abs() <= UNIT_LENGTH * torch.finfo(x.dtype).eps
    return torch.where(is_unit, x, normalise(x))


@dataclass(frozen=True)
class _Relevance:
    """Relevant candidates of N queries among M candidates, at least one of each query."""

    counts: Tensor  # int64 [N]: the number of each query
    most: int  # the largest of these
    mask: Callable[[int, int], Tensor]  # of the queries from one to before another, bool [Q, M]


def _relevance(
    x: Tensor, y: Tensor, x_ids: Tensor | None, y_ids: Tensor | None, relevant: Tensor | None
) -> tuple[_Relevance, _Relevance]:
    """Return which rows of y are relevant to those of x, and which of x to those of y, by ids or by pairs."""
    if relevant is None:
        x_ids, y_ids = check_retrieval_ids(x, y, x_ids, y_ids)
        return _equal_ids(("x", x_ids), ("y", y_ids)), _equal_ids(("y", y_ids), ("x", x_ids))
    pairs = check_relevant_pairs(x, y, x_ids, y_ids, relevant)
    return _pairs("x", pairs, len(x), len(y)), _pairs("y", pairs.flip(1), len(y), len(x))


def _equal_ids(queries: tuple[str, Tensor], candidates: tuple[str, Tensor]) -> _Relevance:
    """Return the relevance of equal ids. Both sides: their name in an error, and ids, int64 ``[N]`` and ``[M]``."""
    (name, ids), (of_name, of_ids) = queries, candidates
    ordered = of_ids.sort().values
    counts = torch.searchsorted(ordered, ids, side="right") - torch.searchsorted(ordered, ids, side="left")
    fewest, most = torch.stack([counts.amin(), counts.amax()]).tolist()
    if fewest == 0:
        without = (counts == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"expected every row of {name} to have a row of {of_name} of its id, got none for {len(without)} of "
            f"{len(ids)}, such as {name}[{without[0]}], id {int(ids[without[0]])}"
        )
    return _Relevance(counts, most, lambda start, stop: ids[start:stop, None] == of_ids)


def _pairs(name: str, pairs: Tensor, queries: int, candidates: int) -> _Relevance:
    """Return the relevance of pairs of a query and a candidate, int64 ``[P, 2]``; the name is that of the queries."""
    query, candidate = pairs.unique(dim=0).unbind(1)  # sorted by the query
    counts = torch.bincount(query, minlength=queries)
    ends = [0, *counts.cumsum(0).tolist()]  # the pairs of query q are those from ends[q] to before ends[q + 1]
    if without := [q for q in range(queries) if ends[q] == ends[q + 1]]:
        got = f"none for {len(without)} of {queries}, such as {name}[{without[0]}]"
        raise ValueError(f"expected every row of {name} in a pair of relevant rows, got {got}")

    def mask(start: int, stop: int) -> Tensor:
        of_block = slice(ends[start], ends[stop])
        relevant = torch.zeros(stop - start, candidates, dtype=torch.bool, device=pairs.device)
        return relevant.index_put_((query[of_block] - start, candidate[of_block]), relevant.new_ones(()))

    return _Relevance(counts, max(b - a for a, b in itertools.pairwise(ends)), mask)


def _one_direction(x: Tensor, y: Tensor, relevance: _Relevance, ks: tuple[int, ...]) -> DirectionMetrics:
    """Return the metrics of the queries x among the candidates y, both of unit length."""
    rows = max(1, BLOCK_BYTES // (len(y) * y.element_size()))
    ranks, precisions = [], []
    for start in range(0, len(x), rows):
        block = slice(start, min(start + rows, len(x)))
        with without_autocast(x.device):
            S = x[block] @ y.T
        relevant = relevance.mask(block.start, block.stop)
        best, found = _ranks_of_relevant(S, relevant, most=relevance.most, depth=min(max(ks), len(y)))
        ranks.append(best)
        precisions.append(torch.stack([_average_precision(found, relevance.counts[block], k) for k in ks]))
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
