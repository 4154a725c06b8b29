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
from reference_model.config import Config
from reference_model.data import Clip, Waveforms, captions_of, check_audio, clip_of_caption, pad_tokens, read_split
from reference_model.dual_encoder import DualEncoder, saved_model
from reference_model.retrieval import Metrics, retrieval_metrics
from reference_model.text_encoder import tokenize

CONFIG = "config.json"
METRICS = "metrics.json"


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
            for waveforms in tqdm(loader, "embedding clips", leave=False, unit="batch")
        ]
        text = []
        for start in range(0, len(token_ids), config.batch_size):
            tokens = pad_tokens(token_ids[start : start + config.batch_size])
            text.append(model.embed_text(**{name: tensor.to(device) for name, tensor in tokens.items()}))
    return torch.cat(audio), torch.cat(text)


def evaluate(
    model: DualEncoder, clips: list[Clip], token_ids: list[list[int]], config: Config, accelerator: Accelerator
) -> tuple[Metrics, dict[str, float]]:
    """Retrieval metrics of a split, and the diagnosis of its pairs of clip and first caption."""
    audio, text = embed(model, clips, token_ids, config, accelerator)
    owner = clip_of_caption(clips).to(audio.device)
    metrics = retrieval_metrics(audio, text, owner)
    first = torch.searchsorted(owner, torch.arange(len(clips), device=audio.device))
    diagnosis = asdict(diagnose(audio, text[first]))
    return metrics, {name: float(value) for name, value in diagnosis.items()}


def evaluate_run(run: Path, *, split: str, data: str | None) -> Metrics:
    """The metrics of a finished run's best weights, computed again; on the data it was trained on, or elsewhere.

    Raises:
        InputError: the folder holds no finished run, or the data is not as expected.
    """
    if not (run / METRICS).is_file():
        raise InputError(f"expected a finished run in {run}, got no {METRICS}; `train --out {run}` continues a run")
    config = Config.read(run / CONFIG)
    model, tokenizer = saved_model(config, run)
    accelerator = Accelerator(mixed_precision=config.precision)
    clips = read_split(data or config.data, config.dataset, split)
    check_audio(clips)
    metrics, _ = evaluate(
        model.to(accelerator.device), clips, tokenize(tokenizer, captions_of(clips)), config, accelerator
    )
    return metrics


def stored_metrics(run: Path) -> dict[str, object]:
    """What a finished run has left in ``metrics.json``."""
    content: dict[str, object] = json.loads((run / METRICS).read_text(encoding="utf-8"))
    return content
