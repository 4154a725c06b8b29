"""What runs will cost: a few steps are rehearsed, the rest is multiplication."""

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from reference_model.config import Config
from reference_model.data.audio import SAMPLE_RATE
from reference_model.data.dataset import SPLITS, Clip, captions_of, read_split
from reference_model.models.dual_encoder import DualEncoder, new_model
from reference_model.runtime.devices import make_accelerator
from reference_model.training.step import Step

REHEARSED = 3  # steps
PAIRS_ON_CPU = 4  # in a rehearsed step through the encoders, which takes half a minute there with a whole batch
TOKENS = 20  # of a caption
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Cost:
    """Of one run, and of the features that it shares with others."""

    seconds: float
    gigabytes: float  # that it leaves
    while_running: float  # gigabytes more until it is finished
    features_seconds: float = 0.0
    features_gigabytes: float = 0.0


def rehearse(step: Step, batches: Iterable[dict[str, Any]]) -> float:
    """Seconds a step; the first one warms everything up."""
    step.embed.train()
    times = [time.perf_counter()]
    for batch in itertools.islice(batches, REHEARSED):
        step(batch).item()
        times.append(time.perf_counter())
    if len(times) > 2:
        del times[0]
    return (times[-1] - times[0]) / (len(times) - 1)


def costs(configs: Iterable[Config]) -> dict[Config, Cost]:
    """Of each; runs that differ in loss, learning rate and seed alone are rehearsed once."""
    known: dict[Config, Cost] = {}
    found: dict[Config, Cost] = {}
    splits: dict[str, dict[str, list[Clip]]] = {}
    for config in tqdm(list(configs), "rehearsing", leave=False, unit="run"):
        alike = replace(config, loss="nt_xent", learning_rate=1e-4, seed=0)
        if alike not in known:
            if config.dataset not in splits:
                splits[config.dataset] = {name: read_split(config.data, config.dataset, name) for name in SPLITS}
            known[alike] = _cost(alike, splits[config.dataset])
        found[config] = known[alike]
    return found


def _cost(config: Config, clips: dict[str, list[Clip]]) -> Cost:
    accelerator = make_accelerator(config.precision)
    device = accelerator.device
    model, _ = new_model(config, captions_of(clips["train"]))
    model.to(device)
    heads = sum(p.numel() for p in model.parameters() if p.requires_grad) * FLOAT / 1e9
    everything = sum(p.numel() for p in model.state_dict().values()) * FLOAT / 1e9
    pairs = config.batch_size if model.constant or device.type == "cuda" else min(config.batch_size, PAIRS_ON_CPU)
    with accelerator.autocast():
        per_clip = seconds_a_clip(model, config.clip_seconds)
    trained = model.heads if model.constant else model
    batch = _batch(model, config, pairs, device)
    step = rehearse(Step(trained, replace(config, batch_size=pairs), accelerator), itertools.repeat(batch))
    accelerator.free_memory()
    numbers = {name: (len(of_split), len(captions_of(of_split))) for name, of_split in clips.items()}
    steps = numbers["train"][1] // config.batch_size
    measured = 0.0 if model.constant else config.epochs * numbers["val"][0] + numbers["test"][0]
    all_clips, all_captions = (sum(number[k] for number in numbers.values()) for k in (0, 1))
    sizes = all_clips * model.audio_encoder.output_size + all_captions * model.text_encoder.output_size
    return Cost(
        seconds=config.epochs * steps * step * config.batch_size / pairs + measured * per_clip,
        gigabytes=everything,
        while_running=3 * heads,  # weights, and the two numbers that Adam keeps of each
        features_seconds=all_clips * per_clip if model.constant else 0.0,
        features_gigabytes=sizes * FLOAT / 1e9 if model.constant else 0.0,
    )


def _batch(model: DualEncoder, config: Config, pairs: int, device: torch.device) -> dict[str, Any]:
    ids = torch.arange(pairs, device=device)
    if model.constant:
        audio = torch.randn(pairs, model.audio_encoder.output_size, device=device)
        text = torch.randn(pairs, model.text_encoder.output_size, device=device)
        return {"audio": {"audio": audio}, "text": {"text": text}, "ids": ids}
    waveforms = torch.randn(pairs, round(config.clip_seconds * SAMPLE_RATE), device=device)
    tokens = torch.ones(pairs, TOKENS, dtype=torch.long, device=device)
    return {"audio": {"waveforms": waveforms}, "text": {"input_ids": tokens, "attention_mask": tokens}, "ids": ids}


@torch.no_grad()
def seconds_a_clip(model: DualEncoder, seconds: float) -> float:
    """To encode one in eval mode; the model is left in train mode."""
    device = next(model.parameters()).device
    waveforms = torch.randn(PAIRS_ON_CPU, round(seconds * SAMPLE_RATE), device=device)
    model.eval()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        model.encode_audio(waveforms).sum().item()
        times.append(time.perf_counter() - started)
    model.train()
    return min(times) / len(waveforms)


def duration(seconds: float) -> str:
    """For people: about 12.0 minutes, about 3.5 hours."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"about {seconds / length:.1f} {unit}"
    return "less than a minute"
