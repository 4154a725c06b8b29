"""Estimates of the time and the disk space that runs need: a few steps are measured, the rest is multiplication.

They are for people. Where nothing can be measured, the estimate says so, and the runs are trained all the same.
"""

import functools
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.dataset import SPLITS, captions_of, read_split
from reference_model.models.dual_encoder import DualEncoder, new_model
from reference_model.reproduction.grid import Run
from reference_model.runtime.children import end_with_parent, how_it_ended, signals_blocked
from reference_model.runtime.devices import make_accelerator
from reference_model.runtime.output import outlive_readers
from reference_model.runtime.signals import follow_parent, raise_if_stop_requested
from reference_model.training.captured import new_step
from reference_model.training.step import Step

REHEARSED_STEPS = 3
PAIRS_ON_CPU = 4  # of a rehearsed step through the encoders; with a whole batch it would take half a minute
TOKENS = 20  # of a caption
BYTES_PER_FLOAT = 4
POLL_SECONDS = 0.2  # between two looks whether a stop was requested


@dataclass(frozen=True)
class Cost:
    """The cost of one run, and of the features that it shares with others."""

    seconds: float
    gigabytes: float  # on the disk when it is finished
    temporary_gigabytes: float  # in addition while it is running
    features_seconds: float = 0.0
    features_gigabytes: float = 0.0


def estimate(runs: Sequence[Run], *, jobs: int, out: Path) -> str:
    """Return a text with the hours and gigabytes that the runs need that are not finished.

    Raises:
        InputError: the data or the encoders are not as expected.
        Stopped: a stop was requested.
    """
    pending = [run.config for run in runs if not run.finished()]
    if not pending:
        return "nothing is left to train"
    costs = _measure_in_a_process(pending)
    if isinstance(costs, str):
        return f"{len(pending)} to train: hours and disk space are unknown, because measuring them failed: {costs}"
    # Features are computed once for each data set.
    features = list({config.dataset: costs[config] for config in pending if costs[config].features_seconds}.values())
    seconds = sum(costs[config].seconds for config in pending) + sum(cost.features_seconds for cost in features)
    gigabytes = sum(costs[config].gigabytes for config in pending) + sum(cost.features_gigabytes for cost in features)
    gigabytes += min(jobs, len(pending)) * max(costs[config].temporary_gigabytes for config in pending)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores"
    free = shutil.disk_usage(next(path for path in (out, *out.absolute().parents) if path.exists())).free / 1e9
    warning = "\nwarning: that is more than the disk has" if gigabytes > free else ""
    return (
        f"{len(pending)} to train: {duration(seconds)} on {device}, one after another, and {gigabytes:.1f} GB "
        f"of {free:.0f} GB free; with all features of frozen encoders, of which some may be there{warning}"
    )


def _measure_in_a_process(configs: list[Config]) -> dict[Config, Cost] | str:
    """Return the cost of each run, or why it is unknown. GPU memory is free again when the process ends."""
    context = get_context("spawn")
    answer, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_and_send, args=(configs, sender))
    with signals_blocked():
        process.start()
    sender.close()
    try:
        while not answer.poll(POLL_SECONDS):
            raise_if_stop_requested()
        result: dict[Config, Cost] | InputError | str = answer.recv()
    except EOFError:
        process.join()
        result = how_it_ended(process.exitcode)
    finally:
        process.kill()
        process.join()
    if isinstance(result, InputError):
        raise result
    return result


def _measure_and_send(configs: list[Config], sender: Connection) -> None:
    """Send the costs, or the error, to the process that started this one, which alone decides when to stop."""
    outlive_readers()
    end_with_parent()
    tqdm.set_lock(RLock())  # of threads: a semaphore of processes would be reported as leaked when this one is killed
    follow_parent(lambda: False)
    try:
        sender.send(measure_costs(configs))
    except InputError as error:
        sender.send(error)
    except Exception as error:
        sender.send(" ".join(f"{type(error).__name__}: {error}".split()))


def measure_costs(configs: Iterable[Config]) -> dict[Config, Cost]:
    """Return the cost of each run; runs that differ only in loss, learning rate and seed are measured once."""
    cost, bar = functools.cache(_cost), tqdm(list(configs), "rehearsing", leave=False, unit="run")
    return {config: cost(replace(config, loss="nt_xent", learning_rate=1e-4, seed=0)) for config in bar}


def _cost(config: Config) -> Cost:
    clips = {name: read_split(config.data, config.dataset, name) for name in SPLITS}
    accelerator = make_accelerator(config.precision)
    device = accelerator.device
    model = new_model(config, captions_of(clips["train"]))
    model.to(device)
    trained_gigabytes = sum(p.numel() for p in model.parameters() if p.requires_grad) * BYTES_PER_FLOAT / 1e9
    model_gigabytes = sum(p.numel() for p in model.state_dict().values()) * BYTES_PER_FLOAT / 1e9
    pairs = config.batch_size if model.is_constant or device.type == "cuda" else min(config.batch_size, PAIRS_ON_CPU)
    with accelerator.autocast():
        clip_seconds = seconds_per_clip(model, config.clip_seconds)
    module = model.heads if model.is_constant else model
    step = new_step(module, replace(config, batch_size=pairs), accelerator)
    step_seconds = seconds_per_step(step, _batch(model, config, pairs, device)) * config.batch_size / pairs
    accelerator.free_memory()

    captions = {name: len(captions_of(split)) for name, split in clips.items()}
    steps = config.epochs * (captions["train"] // config.batch_size)
    audio_is_constant = "audio" in model.constant
    evaluated_clips = 0 if audio_is_constant else config.epochs * len(clips["val"]) + len(clips["test"])
    items = {"audio": sum(map(len, clips.values())), "text": sum(captions.values())}
    feature_numbers = sum(items[modality] * model.encoder(modality).output_size for modality in model.constant)
    return Cost(
        seconds=steps * step_seconds + evaluated_clips * clip_seconds,
        gigabytes=model_gigabytes,
        temporary_gigabytes=3 * trained_gigabytes,  # weights, and Adam's two moments of each
        features_seconds=items["audio"] * clip_seconds if audio_is_constant else 0.0,
        features_gigabytes=feature_numbers * BYTES_PER_FLOAT / 1e9,
    )


def _batch(model: DualEncoder, config: Config, pairs: int, device: torch.device) -> dict[str, Any]:
    tokens = torch.ones(pairs, TOKENS, dtype=torch.long, device=device)
    inputs: dict[str, Any] = {
        "audio": _noise(model, config.clip_seconds, pairs, device),
        "text": {"input_ids": tokens, "attention_mask": tokens},
    }
    for modality in model.constant:
        inputs[modality] = torch.randn(pairs, model.encoder(modality).output_size, device=device)
    ids = torch.arange(pairs, device=device)
    return {"ids": ids, **{modality: {modality: given} for modality, given in inputs.items()}}


def _noise(model: DualEncoder, clip_seconds: float, clips: int, device: torch.device) -> dict[str, Tensor]:
    """Return the audio encoder's inputs for clips of noise."""
    front_end = model.audio_encoder.front_end
    waveforms = torch.randn(clips, round(clip_seconds * front_end.rate))
    inputs: dict[str, Tensor] = default_collate([front_end(waveform) for waveform in waveforms])
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def seconds_per_step(step: Step, batch: dict[str, Any]) -> float:
    """Measure an optimiser step on the batch, after those that are its warm-up."""
    step.embed.train()
    for _ in range(step.warm_up):
        step(batch).item()
    started = time.perf_counter()
    for _ in range(REHEARSED_STEPS - 1):
        step(batch).item()
    return (time.perf_counter() - started) / (REHEARSED_STEPS - 1)


@torch.no_grad()
def seconds_per_clip(model: DualEncoder, clip_seconds: float) -> float:
    """Measure the encoding of a clip in eval mode; the model is left in train mode."""
    device = next(model.parameters()).device
    inputs = _noise(model, clip_seconds, PAIRS_ON_CPU, device)
    model.eval()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        model.audio_encoder(**inputs).sum().item()
        times.append(time.perf_counter() - started)
    model.train()
    return min(times) / PAIRS_ON_CPU


def duration(seconds: float) -> str:
    """Return the duration in words, such as "about 3.5 hours"."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"about {seconds / length:.1f} {unit}"
    return "less than a minute"
