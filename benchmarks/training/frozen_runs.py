"""How long do the 36 runs of the paper with frozen encoders take?

Table 1: AudioCaps and Clotho x four losses x three seeds. Table 2: AudioCaps at batch 128 x four losses x three seeds.
Features of their real sizes are drawn at random; the step, the measuring and the writing are those of
``reference_model.training.trainer``. ``python -m benchmarks.training.frozen_runs`` writes frozen_runs.csv and .md.
"""

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import Accelerator
from torch.utils.data import BatchSampler, RandomSampler
from tqdm import tqdm

from benchmarks import options
from benchmarks.measure import Call, interleaved, synchronise
from benchmarks.results import Row, write_table
from reference_model.config import Config
from reference_model.data.batches import DistributedBatchSampler
from reference_model.evaluation.evaluate import evaluate
from reference_model.models.dual_encoder import Heads
from reference_model.models.features import FeatureBatches, Features
from reference_model.paper import DATASET_SIZES, PROTOCOLS, experiments
from reference_model.runtime.tensors import save_tensors
from reference_model.training.checkpoint import save_checkpoint
from reference_model.training.step import Step

EPOCHS, SEEDS = 50, 3
AUDIO, TEXT = 2048, 768  # features
CAPTIONS = {"AudioCaps": {"train": 1, "val": 5, "test": 5}, "Clotho": {"train": 5, "val": 5, "test": 5}}  # of a clip


@dataclass(frozen=True)
class Setting:
    """Runs that differ in loss and seed alone."""

    dataset: str
    batch_size: int
    learning_rate: float


def settings() -> dict[Setting, list[str]]:
    """The settings of the tables' frozen rows, and the losses of each."""
    found: dict[Setting, list[str]] = {}
    for row in experiments().values():
        if row["encoders"] == "frozen":
            found.setdefault(Setting(row["dataset"], row["batch_size"], 1e-4), []).append(row["loss"])
    return found


def features(dataset: str, split: str, divisor: int, device: str) -> Features:
    clips = DATASET_SIZES[dataset][split] // divisor
    captions = clips * CAPTIONS[dataset][split]
    return Features(
        audio=torch.randn(clips, AUDIO),
        text=torch.randn(captions, TEXT),
        text_of_caption=torch.arange(captions),
        clip_of_caption=torch.arange(clips).repeat_interleave(CAPTIONS[dataset][split]),
    ).to(torch.device(device))


def config(setting: Setting, loss: str) -> Config:
    """What a step asks for; the rest is of no account here."""
    return Config(
        data="", dataset=setting.dataset, clip_seconds=10.0, loss=loss, encoders="frozen",
        model="tiny", audio_checkpoint=None, bert=None, batch_size=setting.batch_size,
        learning_rate=setting.learning_rate, epochs=EPOCHS, decay_every=20,
        gradient_cache_micro_batch=None, seed=0, precision="no", workers=0, **PROTOCOLS["paper"],
    )  # fmt: skip


def batches(of: Features, batch_size: int) -> tuple[int, Iterator[dict[str, Any]]]:
    """Steps an epoch, and batches without end."""
    sampler = DistributedBatchSampler(BatchSampler(RandomSampler(of.text_of_caption), batch_size, drop_last=True), 0, 1)
    source = FeatureBatches(of, sampler)
    return len(sampler), itertools.chain.from_iterable(source.from_step(0) for _ in itertools.count())


def measure(divisor: int, *, device: str, seconds: float, rounds: int) -> list[Row]:
    """A row for every setting and loss; losses, measuring and writing of a setting are timed in one interleaved run."""
    accelerator = Accelerator(cpu=device == "cpu")
    rows: list[Row] = []
    for setting, losses in tqdm(settings().items(), "settings"):
        train, val, test = (features(setting.dataset, split, divisor, device) for split in ("train", "val", "test"))
        calls: dict[str, Call] = {}
        steps = 0
        for loss in losses:
            heads = Heads(AUDIO, TEXT, hidden_size=2048, embedding_size=1024).to(device)
            step = Step(heads, config(setting, loss), accelerator)
            steps, stream = batches(train, setting.batch_size)
            calls[loss] = lambda step=step, stream=stream: step(next(stream))  # type: ignore[misc]
            calls[loss]()
        calls["measure"] = lambda heads=heads, val=val: evaluate(heads, val, accelerator)  # type: ignore[misc]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.safetensors"

            def write(heads: Heads = heads, step: Step = step, path: Path = path) -> None:
                save_checkpoint(path, heads.state_dict(), step.optimizer, {})
                save_tensors(path.with_name("best.safetensors"), heads.state_dict())

            calls["write"] = write
            timings = interleaved(calls, seconds=seconds, rounds=rounds)
        synchronise()
        epoch = (timings["measure"].median + timings["write"].median) / 1e3
        rest = timings["measure"].median * len(test.text) / len(val.text) / 1e3
        for loss in losses:
            whole = EPOCHS * (steps * timings[loss].median / 1e3 + epoch) + rest
            rows.append(
                {"data set": setting.dataset, "batch": setting.batch_size, "loss": loss, "steps an epoch": steps,
                 **{f"{name}, a step": value for name, value in timings[loss].columns().items()},
                 "s, measure and write an epoch": round(epoch, 2), "minutes, one run": round(whole / 60, 1),
                 "hours, three seeds": round(SEEDS * whole / 3600, 2)}
            )  # fmt: skip
    return rows


@click.command()
@options.device
@click.option("--divisor", type=click.IntRange(1), default=1, show_default=True, help="Of the numbers of clips.")
@options.repetitions(seconds=3.0, rounds=5)
@options.out
def main(device: str, divisor: int, seconds: float, rounds: int, folder: Path) -> None:
    """Time the steps of the paper's runs with frozen encoders on kept features, and project the hours of all 36."""
    rows = measure(divisor, device=device, seconds=seconds, rounds=rounds)
    total = sum(float(str(row["hours, three seeds"])) for row in rows)
    about = f"float32, {device}, random features of the real sizes"
    write_table(
        folder, "frozen_runs" + ("" if device == "cpu" else "-gpu"), rows,
        f"{about}; **{SEEDS * len(rows)} runs: {total:.1f} hours, one after another**",
    )  # fmt: skip


if __name__ == "__main__":
    main()
