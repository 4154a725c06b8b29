"""Retrieval metrics of section 3.3, under the names that ``metrics.json`` has.

A clip has one or more captions, and is embedded once. Text to audio: every caption is a query, all clips are the
candidates, the clip of the caption is relevant. Audio to text: every clip is a query, all captions are the candidates,
the captions of the clip are relevant; the rank of the query is the best of their ranks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmodal_losses import DirectionMetrics, retrieval_metrics

RECALLS = (1, 5, 10, 50)
AVERAGE_PRECISIONS = (10, 16)  # the metrics of DCASE's audio retrieval tasks, 2022 to 2024 and 2025
DIRECTIONS = ("text_to_audio", "audio_to_text")
TITLES = {"text_to_audio": "Text-to-Audio", "audio_to_text": "Audio-to-Text"}

Metrics = dict[str, dict[str, float]]


class NotFinite(ValueError):
    """An embedding or a loss is NaN or inf. Ranks of such embeddings would look perfect."""


def split_metrics(audio: Tensor, text: Tensor, clip_of_caption: Tensor, further: Tensor | None = None) -> Metrics:
    """Compute the metrics of a split in both directions; a candidate that ties with a relevant one is ranked before it.

    Args:
        audio: embeddings of the N clips, ``[N, D]``.
        text: embeddings of the M captions, ``[M, D]``.
        clip_of_caption: integers ``[M]`` in [0, N): the row of ``audio`` that each caption belongs to.
        further: integers ``[P, 2]``, captions and clips, by their rows, that are relevant to each other besides.

    Returns:
        ``{"text_to_audio": {...}, "audio_to_text": {...}}``, each with R@1, R@5, R@10, R@50, mAP@10 and mAP@16 in
        percent, median_rank and mean_rank (1 is best), and pool, the number of candidates, as
        :func:`crossmodal_losses.retrieval_metrics` defines them.

    Raises:
        NotFinite: an embedding is not finite.
        ValueError: a clip has no caption.
    """
    for name, embeddings in (("audio", audio), ("text", text)):
        if not embeddings.isfinite().all():
            raise NotFinite(f"expected finite {name} embeddings, got NaN or inf; the model has diverged")
    ks = sorted({*RECALLS, *AVERAGE_PRECISIONS})
    if further is None:
        clips = torch.arange(len(audio), device=audio.device)
        metrics = retrieval_metrics(text, audio, clip_of_caption, clips, ks=ks)
    else:
        own = torch.stack([torch.arange(len(text), device=text.device), clip_of_caption], 1)
        metrics = retrieval_metrics(text, audio, relevant=torch.cat([own, further.to(own.device)]), ks=ks)
    return {"text_to_audio": _named(metrics.x_to_y), "audio_to_text": _named(metrics.y_to_x)}


def _named(metrics: DirectionMetrics) -> dict[str, float]:
    return {
        **{f"R@{k}": 100 * metrics.recall[k] for k in RECALLS},
        **{f"mAP@{k}": 100 * metrics.map[k] for k in AVERAGE_PRECISIONS},
        "median_rank": metrics.median_rank,
        "mean_rank": metrics.mean_rank,
        "pool": metrics.candidates,
    }


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
