"""Retrieval metrics of a model on a split (section 3.3)."""

from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from crossmodal_losses import diagnose
from reference_model import InputError
from reference_model.config import Config
from reference_model.data.audio import check_audio
from reference_model.data.dataset import captions_of, read_split
from reference_model.evaluation.embedded import stored_clips
from reference_model.evaluation.metrics import Metrics, split_metrics
from reference_model.evaluation.relevance import read_relevance
from reference_model.models.dual_encoder import Heads, saved_model
from reference_model.models.features import Features, compute_features
from reference_model.run_folder import BEST_WEIGHTS, CONFIG, MODEL_WEIGHTS
from reference_model.runtime.devices import make_accelerator

DIAGNOSED_CLIPS = 1024  # at most: the diagnosis forms the matrix of their similarities


@torch.no_grad()
def embeddings(heads: Heads, features: Features, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Return the embeddings of the clips, ``[N, D]``, and of the captions, ``[M, D]``."""
    heads.eval()
    with accelerator.autocast():
        audio, text = heads(features.audio, features.text)
    return audio, text[features.text_of_caption]


@torch.no_grad()
def evaluate(heads: Heads, features: Features, accelerator: Accelerator) -> tuple[Metrics, dict[str, float]]:
    """Return the metrics of a split, and the diagnosis of its first clips, each paired with its first caption."""
    audio, text = embeddings(heads, features, accelerator)
    metrics = split_metrics(audio, text, features.clip_of_caption)
    clips = torch.arange(min(len(audio), DIAGNOSED_CLIPS), device=audio.device)
    first = torch.searchsorted(features.clip_of_caption, clips)
    diagnosis = asdict(diagnose(audio[: len(first)], text[first]))
    return metrics, {name: float(value) for name, value in diagnosis.items()}


def evaluate_run(folder: Path, *, split: str, data: str | None, relevance: Path | None = None) -> Metrics:
    """Measure the best weights of a run so far, or of a saved model, on a split of ``data`` or of the run's own data.

    The table ``relevance`` gives captions further clips (:mod:`reference_model.evaluation.relevance`).

    Raises:
        InputError: the folder holds no run with a finished epoch, or the data or the table is not as expected.
    """
    if not (folder / BEST_WEIGHTS).is_file() and not (folder / MODEL_WEIGHTS).is_file():
        raise InputError(f"expected a run with a finished epoch in {folder}, got no {BEST_WEIGHTS}")
    config = Config.read(folder / CONFIG)
    model = saved_model(config, folder)
    accelerator = make_accelerator(config.precision)
    clips = read_split(data or config.data, config.dataset, split)
    further = None if relevance is None else read_relevance(relevance, stored_clips(clips))
    check_audio(clip.path for clip in clips)
    model.to(accelerator.device)
    token_ids = model.text_encoder.tokenize(captions_of(clips))
    features = compute_features(model, clips, token_ids, config, accelerator)
    audio, text = embeddings(model.heads, features, accelerator)
    return split_metrics(audio, text, features.clip_of_caption, further)
