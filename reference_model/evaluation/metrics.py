"""Retrieval metrics of section 3.3: recall at k, median and mean rank, mAP@10.

A clip has one or more captions, and is embedded once. Text to audio: every caption is a query, all clips are the
candidates, the clip of the caption is the target. Audio to text: every clip is a query, all captions are the
candidates, the captions of the clip are the targets; the rank of the query is the best of their ranks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RECALLS = (1, 5, 10, 50)
DIRECTIONS = ("text_to_audio", "audio_to_text")
TITLES = {"text_to_audio": "Text-to-Audio", "audio_to_text": "Audio-to-Text"}
QUERIES_AT_ONCE = 1024  # rows of the similarity matrix in memory at a time

Metrics = dict[str, dict[str, float]]


class NotFinite(ValueError):
    """An embedding or a loss is NaN or inf. Ranks of such embeddings would look perfect."""


def retrieval_metrics(audio: Tensor, text: Tensor, clip_of_caption: Tensor) -> Metrics:
    """Compute the metrics of both directions; a candidate that ties with the target is ranked before it.

    Args:
        audio: embeddings of the N clips, ``[N, D]``, normalised.
        text: embeddings of the M captions, ``[M, D]``, normalised.
        clip_of_caption: integers ``[M]`` in [0, N): the row of ``audio`` that each caption belongs to.

    Returns:
        ``{"text_to_audio": {...}, "audio_to_text": {...}}``, each with R@1, R@5, R@10, R@50 and mAP@10 in percent,
        median_rank and mean_rank (1 is best), and pool, the number of candidates. mAP@10 is the mean over queries of
        the precisions at the ranks of the targets within the first 10, summed and divided by min(targets, 10).

    Raises:
        NotFinite: an embedding is not finite.
        ValueError: a clip has no caption.
    """
    for name, embeddings in (("audio", audio), ("text", text)):
        if not embeddings.isfinite().all():
            raise NotFinite(f"expected finite {name} embeddings, got NaN or inf; the model has diverged")
    if len(set(clip_of_caption.tolist())) != len(audio):
        raise ValueError(f"expected captions for each of {len(audio)} clips, got {len(set(clip_of_caption.tolist()))}")
    clips = torch.arange(len(audio), device=audio.device)
    return {
        "text_to_audio": _one_direction(text, audio, clip_of_caption, clips),
        "audio_to_text": _one_direction(audio, text, clips, clip_of_caption),
    }


def _one_direction(queries: Tensor, candidates: Tensor, query_clip: Tensor, candidate_clip: Tensor) -> dict[str, float]:
    ranks, precisions = [], []
    for part, clip in zip(queries.split(QUERIES_AT_ONCE), query_clip.split(QUERIES_AT_ONCE), strict=True):
        target_ranks = ranks_of_targets(part @ candidates.T, clip[:, None] == candidate_clip[None, :])
        ranks.append(target_ranks.amin(1))
        precisions.append(average_precision(target_ranks))
    rank = torch.cat(ranks).cpu().double()
    return {
        **{f"R@{k}": 100 * float((rank <= k).double().mean()) for k in RECALLS},
        "mAP@10": 100 * float(torch.cat(precisions).mean()),
        "median_rank": float(rank.quantile(0.5)),
        "mean_rank": float(rank.mean()),
        "pool": len(candidates),
    }


def ranks_of_targets(S: Tensor, target: Tensor) -> Tensor:
    """Return the ranks of the targets of each query, ascending, ``[Q, T]``, from similarities S, ``[Q, C]``.

    ``target`` is bool ``[Q, C]``, with one target or more in a row, and T at most; missing ranks are infinite.

    >>> ranks_of_targets(torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([[False, True, True]]))
    tensor([[2., 3.]])
    """
    most_targets = int(target.sum(1).max())
    of_targets = S.masked_fill(~target, -torch.inf).topk(most_targets, 1).values  # descending
    others = S.masked_fill(target, -torch.inf).sort(1).values  # ascending
    # Other candidates that are at least as similar as the target: all but those with a smaller similarity.
    ahead = S.shape[1] - torch.searchsorted(others, of_targets.contiguous(), side="left")
    ranks = ahead + torch.arange(1, most_targets + 1, device=S.device)
    return torch.where(of_targets == -torch.inf, torch.inf, ranks.float())


def average_precision(target_ranks: Tensor, *, at: int = 10) -> Tensor:
    """Return the average precision within the first ``at`` ranks, ``[Q]``, from :func:`ranks_of_targets`."""
    found = torch.arange(1, target_ranks.shape[1] + 1, device=target_ranks.device) / target_ranks
    targets = target_ranks.isfinite().sum(1).clamp(max=at)
    return torch.where(target_ranks <= at, found, 0).sum(1) / targets


def sum_of_recalls(metrics: Metrics, directions: Sequence[str] = DIRECTIONS) -> float:
    """Return R@1 + R@5 + R@10, added up over the directions; the best epoch has the largest (section 3.2)."""
    return sum(metrics[direction][f"R@{k}"] for direction in directions for k in (1, 5, 10))


def chance(captions_of_clip: Sequence[int]) -> Metrics:
    """Return the expected recalls of random rankings, in percent, for clips with these numbers of captions.

    >>> chance([5, 5, 5, 5])["text_to_audio"]["R@1"]  # four clips of five captions
    25.0
    """
    clips, captions = len(captions_of_clip), sum(captions_of_clip)

    def found(k: int, targets: int, pool: int) -> float:
        """Return the probability, in percent, that k draws from the pool contain a target."""
        missed = 1.0
        for drawn in range(min(k, pool)):
            missed *= max(pool - targets - drawn, 0) / (pool - drawn)
        return 100 * (1 - missed)

    return {
        "text_to_audio": {f"R@{k}": found(k, 1, clips) for k in RECALLS},
        "audio_to_text": {f"R@{k}": sum(found(k, n, captions) for n in captions_of_clip) / clips for k in RECALLS},
    }
