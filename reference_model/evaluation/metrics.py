"""Section 3.3: how well embeddings retrieve their partners.

A clip has one or more captions, and is embedded once. Text to audio: every caption is a query, all clips are the
candidates, its own clip is the target. Audio to text: every clip is a query, all captions are the candidates; its
rank is that of the best placed of its own captions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RECALLS = (1, 5, 10, 50)
DIRECTIONS = ("text_to_audio", "audio_to_text")
TITLES = {"text_to_audio": "Text-to-Audio", "audio_to_text": "Audio-to-Text"}
QUERIES_AT_ONCE = 1024  # bounds memory: the full similarity matrix is never formed

Metrics = dict[str, dict[str, float]]


class NotFinite(ValueError):
    """An embedding holds NaN or inf; every rank would look perfect."""


def retrieval_metrics(audio: Tensor, text: Tensor, clip_of_caption: Tensor) -> Metrics:
    """Both directions' metrics; a candidate that ties with the target is ranked before it.

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
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part, clip = queries[start : start + QUERIES_AT_ONCE], query_clip[start : start + QUERIES_AT_ONCE]
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
    """The ranks of each query's targets, ascending, ``[Q, T]``; missing ones, up to the largest T, are infinite.

    Args:
        S: similarities of queries and candidates, ``[Q, C]``.
        target: bool ``[Q, C]``, at least one in each row.
    """
    most = int(target.sum(1).max())
    of_targets = S.masked_fill(~target, -torch.inf).topk(most, 1).values  # descending
    others = S.masked_fill(target, -torch.inf).sort(1).values  # ascending
    # Other candidates at least as similar: all but those before the first >= s.
    ahead = S.shape[1] - torch.searchsorted(others, of_targets.contiguous(), side="left")
    ranks = ahead + torch.arange(1, most + 1, device=S.device)
    return torch.where(of_targets == -torch.inf, torch.inf, ranks.float())


def average_precision(target_ranks: Tensor, *, at: int = 10) -> Tensor:
    """Average precision within the first ``at`` ranks, ``[Q, T] -> [Q]``; ranks ascending, missing ones infinite."""
    found = torch.arange(1, target_ranks.shape[1] + 1, device=target_ranks.device) / target_ranks
    targets = target_ranks.isfinite().sum(1).clamp(max=at)
    return torch.where(target_ranks <= at, found, 0).sum(1) / targets


def sum_of_recalls(metrics: Metrics, directions: Sequence[str] = DIRECTIONS) -> float:
    """R@1 + R@5 + R@10 of both directions, or of one: what the best epoch is selected by (section 3.2)."""
    return sum(metrics[direction][f"R@{k}"] for direction in directions for k in (1, 5, 10))


def chance(captions_of_clip: Sequence[int]) -> Metrics:
    """The recalls to expect of random rankings, in percent, for clips with these numbers of captions."""
    clips, captions = len(captions_of_clip), sum(captions_of_clip)

    def found(k: int, targets: int, pool: int) -> float:
        """Probability that k draws out of the pool hold at least one target."""
        missed = 1.0
        for drawn in range(min(k, pool)):
            missed *= max(pool - targets - drawn, 0) / (pool - drawn)
        return 100 * (1 - missed)

    return {
        "text_to_audio": {f"R@{k}": found(k, 1, clips) for k in RECALLS},
        "audio_to_text": {f"R@{k}": sum(found(k, n, captions) for n in captions_of_clip) / clips for k in RECALLS},
    }
