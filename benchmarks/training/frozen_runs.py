"""How long do the 36 runs of the paper with frozen encoders take?

Table 1: AudioCaps and Clotho x four losses x three seeds. Table 2: AudioCaps at batch 128 x four losses x three seeds.
Features of their real sizes are drawn at random; the step, the evaluation and the writing of files are those of
``reference_model.training.trainer``. ``python -m benchmarks.training.frozen_runs`` writes frozen_runs.csv and .md.
"""

import functools
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import Accelerator
from torch.utils.data import BatchSampler, RandomSampler
from tqdm import tqdm

from benchmarks import options
from benchmarks.frozen import AUDIO, CAPTIONS, EMBEDDING, HIDDEN, TEXT, frozen_experiments
from benchmarks.measure import Call, interleaved, synchronise
from benchmarks.results import Record, write_table
from reference_model.config import ADDED_SETTINGS, Config
from reference_model.data.batches import DistributedBatchSampler
from reference_model.evaluation.evaluate import evaluate
from reference_model.models.dual_encoder import Heads
from reference_model.models.features import FeatureBatches, Features
from reference_model.paper import DATASET_SIZES, EPOCHS, PROTOCOLS, SEEDS
from reference_model.runtime.tensors import save_tensors
from reference_model.training.captured import new_step
from reference_model.training.checkpoint import save_checkpoint
from reference_model.training.step import Step


def random_features(dataset: str, split: str, divisor: int, device: str) -> Features:
    """Return random features of as many clips as the split has, divided by ``divisor``."""
    clips = DATASET_SIZES[dataset][split] // divisor
    captions = clips * CAPTIONS[dataset][split]
    return Features(
        audio=torch.randn(clips, AUDIO),
        text=torch.randn(captions, TEXT),
        text_of_caption=torch.arange(captions),
        clip_of_caption=torch.arange(clips).repeat_interleave(CAPTIONS[dataset][split]),
    ).to(torch.device(device))


def config(dataset: str, batch_size: int, loss: str) -> Config:
    """Return a config for a step; settings that a step does not read have any value."""
    return Config(
        data="",
        dataset=dataset,
        clip_seconds=10.0,
        loss=loss,
        encoders="frozen",
        model="tiny",
        audio_checkpoint=None,
        text_encoder=None,
        batch_size=batch_size,
        learning_rate=1e-4,
        epochs=EPOCHS,
        decay_every=20,
        gradient_cache_micro_batch=None,
        seed=0,
        precision="no",
        workers=0,
        **ADDED_SETTINGS,
        **PROTOCOLS["paper"],
    )


def endless_batches(features: Features, batch_size: int) -> tuple[int, Iterator[dict[str, Any]]]:
    """Return the number of steps in an epoch, and batches without end."""
    order = RandomSampler(features.text_of_caption)
    sampler = DistributedBatchSampler(BatchSampler(order, batch_size, drop_last=True), 0, 1)
    batches = FeatureBatches(features, sampler)
    return len(sampler), itertools.chain.from_iterable(batches.from_step(0) for _ in itertools.count())


def take_step(step: Step, batches: Iterator[dict[str, Any]]) -> None:
    """Train on the next batch."""
    step(next(batches))


def write_files(folder: Path, heads: Heads, step: Step) -> None:
    """Write the files that a run writes after an epoch."""
    save_checkpoint(folder / "checkpoint.safetensors", heads.state_dict(), step.optimizer, {})
    save_tensors(folder / "best.safetensors", heads.state_dict())


def measure(divisor: int, *, device: str, seconds: float, rounds: int) -> list[Record]:
    """Return a record for every data set, batch size and loss.

    The steps with all losses, evaluation and writing are timed in one interleaved run.
    """
    accelerator = Accelerator(cpu=device == "cpu")
    records: list[Record] = []
    for (dataset, batch_size), losses in tqdm(frozen_experiments().items(), "data sets and batch sizes"):
        train, val, test = (random_features(dataset, split, divisor, device) for split in ("train", "val", "test"))
        calls: dict[str, Call] = {}
        for loss in losses:
            heads = Heads(AUDIO, TEXT, hidden_size=HIDDEN, embedding_size=EMBEDDING).to(device)
            step = new_step(heads, config(dataset, batch_size, loss), accelerator)
            steps, batches = endless_batches(train, batch_size)
            calls[loss] = functools.partial(take_step, step, batches)
            for _ in range(step.warm_up):
                calls[loss]()
        calls["evaluate"] = functools.partial(evaluate, heads, val, accelerator)
        with tempfile.TemporaryDirectory() as folder:
            calls["write"] = functools.partial(write_files, Path(folder), heads, step)
            timings = interleaved(calls, seconds=seconds, rounds=rounds)
        synchronise()
        after_epoch = (timings["evaluate"].median + timings["write"].median) / 1e3
        of_test = timings["evaluate"].median * len(test.text) / len(val.text) / 1e3
        for loss in losses:
            run = EPOCHS * (steps * timings[loss].median / 1e3 + after_epoch) + of_test
            records.append(
                {
                    "data set": dataset,
                    "batch": batch_size,
                    "loss": loss,
                    "steps an epoch": steps,
                    **{f"{column}, a step": value for column, value in timings[loss].columns().items()},
                    "s, measure and write an epoch": round(after_epoch, 2),
                    "minutes, one run": round(run / 60, 1),
                    "hours, three seeds": round(len(SEEDS) * run / 3600, 2),
                }
            )
    return records


@click.command()
@options.device
@options.option("--divisor", type=click.IntRange(1), default=1, help="Divides the numbers of clips.")
@options.seconds(3.0)
@options.rounds(5)
@options.out
def main(device: str, divisor: int, seconds: float, rounds: int, folder: Path) -> None:
    """Time the steps of the paper's runs with frozen encoders on kept features, and project the hours of all 36."""
    records = measure(divisor, device=device, seconds=seconds, rounds=rounds)
    total = sum(record["hours, three seeds"] for record in records)
    about = f"float32, {device}, random features of the real sizes; "
    about += f"**{len(SEEDS) * len(records)} runs: {total:.1f} hours, one after another**"
    write_table(folder, "frozen_runs" + ("" if device == "cpu" else "-gpu"), records, about)


if __name__ == "__main__":
    main()
