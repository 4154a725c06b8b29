"""Embed every clip and every caption of a split once, and measure retrieval (section 3.3)."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from crossmodal_losses import diagnose
from reference_model import InputError
from reference_model.audio_files import check_audio
from reference_model.config import Config
from reference_model.data import (
    Clip,
    Waveforms,
    batches,
    captions_of,
    clip_of_caption,
    pad_tokens,
    read_split,
)
from reference_model.dual_encoder import BEST_WEIGHTS, DualEncoder, saved_model
from reference_model.retrieval import Metrics, retrieval_metrics
from reference_model.text_encoder import tokenize

CONFIG = "config.json"
METRICS = "metrics.json"
DIAGNOSED = 1024  # clips at most: the diagnosis forms the matrix of their similarities


def accelerator_for(config: Config) -> Accelerator:
    """The device and its mixed precision; fp16 is refused where nothing scales the loss, for gradients would vanish."""
    accelerator = Accelerator(mixed_precision=config.precision)
    if config.precision == "fp16" and accelerator.scaler is None:
        raise InputError(f"expected --precision no or bf16 on {accelerator.device}, got fp16, which needs a GPU")
    return accelerator


@torch.no_grad()
def embed(
    model: DualEncoder, clips: list[Clip], token_ids: list[list[int]], config: Config, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Embeddings of all clips ``[N, D]`` and of all captions ``[M, D]``, in eval mode."""
    model.eval()
    device = accelerator.device
    loader = DataLoader(
        Waveforms(clips, config.clip_seconds),
        batch_size=config.batch_size,
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
    )
    with accelerator.autocast():
        audio = [
            model.embed_audio(waveforms.to(device, non_blocking=True))
            for waveforms in tqdm(batches(loader), "embedding clips", len(loader), leave=False, unit="batch")
        ]
        # Equal captions once: in different batches they would differ by rounding, and no longer tie.
        place = {sentence: k for k, sentence in enumerate(dict.fromkeys(map(tuple, token_ids)))}
        distinct = [list(sentence) for sentence in place]
        text = []
        for start in range(0, len(distinct), config.batch_size):
            tokens = pad_tokens(distinct[start : start + config.batch_size])
            text.append(model.embed_text(**{name: tensor.to(device) for name, tensor in tokens.items()}))
    return torch.cat(audio), torch.cat(text)[[place[tuple(sentence)] for sentence in token_ids]]


def evaluate(
    model: DualEncoder, clips: list[Clip], token_ids: list[list[int]], config: Config, accelerator: Accelerator
) -> tuple[Metrics, dict[str, float]]:
    """Retrieval metrics of a split, and the diagnosis of pairs of its first clips, each with its first caption."""
    audio, text = embed(model, clips, token_ids, config, accelerator)
    owner = clip_of_caption(clips).to(audio.device)
    metrics = retrieval_metrics(audio, text, owner)
    first = torch.searchsorted(owner, torch.arange(min(len(clips), DIAGNOSED), device=audio.device))
    diagnosis = asdict(diagnose(audio[: len(first)], text[first]))
    return metrics, {name: float(value) for name, value in diagnosis.items()}


def evaluate_run(run: Path, *, split: str, data: str | None) -> Metrics:
    """The metrics of a run's best weights so far, computed again; on the data it was trained on, or elsewhere.

    Raises:
        InputError: the folder holds no run with a finished epoch, or the data is not as expected.
    """
    if not (run / BEST_WEIGHTS).is_file():
        raise InputError(f"expected a run with a finished epoch in {run}, got no {BEST_WEIGHTS}")
    config = Config.read(run / CONFIG)
    model, tokenizer = saved_model(config, run)
    accelerator = accelerator_for(config)
    clips = read_split(data or config.data, config.dataset, split)
    check_audio(clip.path for clip in clips)
    metrics, _ = evaluate(
        model.to(accelerator.device), clips, tokenize(tokenizer, captions_of(clips)), config, accelerator
    )
    return metrics


def stored_metrics(run: Path) -> dict[str, object]:
    """What a finished run has left in ``metrics.json``."""
    content: dict[str, object] = json.loads((run / METRICS).read_text(encoding="utf-8"))
    return content
