"""Losses x seeds: train what is not yet trained, then write the table."""

import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from reference_model.config import Config
from reference_model.report import chance_row, table_row, write_table
from reference_model.run_folder import Diverged
from reference_model.train import train

Job = tuple[Config, Path]

_position = 0  # of this process's progress bar


def reproduce(config: Config, *, losses: Sequence[str], seeds: Sequence[int], out: Path, jobs: int = 1) -> str:
    """Run every loss with every seed under ``out/runs`` and write ``out/table.{md,json,png}``; returns the Markdown.

    Finished runs are not repeated, interrupted ones continue. A run whose loss is no longer finite is counted in the
    table as diverged, and the others go on. With several jobs as many runs are trained at a time, each in a process
    with its share of the CPU's threads: for small models that is faster than one run with all of them.
    """
    losses, seeds = list(dict.fromkeys(losses)), list(dict.fromkeys(seeds))
    todo = [
        (replace(config, loss=loss, seed=seed), out / "runs" / f"{loss}-seed-{seed}")
        for loss, seed in itertools.product(losses, seeds)
    ]
    results = list(_train_all(todo, jobs))
    rows: list[dict[str, Any]] = []
    for k, loss in enumerate(losses):
        of_loss = results[k * len(seeds) : (k + 1) * len(seeds)]
        finished = [metrics for metrics in of_loss if metrics is not None]
        rows.append(table_row(loss, finished, diverged=len(of_loss) - len(finished)))
    any_metrics = next((metrics for metrics in results if metrics is not None), None)
    if any_metrics is not None:
        rows.append(chance_row(any_metrics))
    pool = any_metrics["test"]["text_to_audio"]["pool"] if any_metrics is not None else "no"
    caption = (
        f"{config.dataset}, {pool} test clips, {config.encoders} encoders, {config.model} model, "
        f"batch size {config.batch_size}, {config.epochs} epochs, {_seeds(seeds)}; recalls in %"
    )
    return write_table(out, rows, caption=caption)


def _train_all(todo: Sequence[Job], jobs: int) -> Iterable[dict[str, Any] | None]:
    if jobs == 1:
        return map(_train_one, todo)
    context = get_context("spawn")
    os.environ["TQDM_DISABLE"] = "1"  # of the new processes: each shows one bar, and none below it
    initial = (context.Value("i", 0), context.RLock(), max(1, torch.get_num_threads() // jobs))
    results: list[dict[str, Any] | None] = [None] * len(todo)
    waiting = list(enumerate(todo))
    running: dict[Future[dict[str, Any] | None], int] = {}
    with ProcessPoolExecutor(jobs, context, _start_worker, initial) as pool:
        while waiting or running:
            # No more than can start at once: what the pool has taken cannot be called back when one is interrupted.
            while waiting and len(running) < jobs:
                k, job = waiting.pop(0)
                running[pool.submit(_train_one, job)] = k
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                results[running.pop(done)] = done.result()
    return results


def _start_worker(started: Any, lock: Any, threads: int) -> None:
    global _position
    with started.get_lock():
        _position = started.value
        started.value += 1
    tqdm.set_lock(lock)
    torch.set_num_threads(threads)


def _train_one(job: Job) -> dict[str, Any] | None:
    """The metrics of a run; None if it diverged."""
    config, run = job
    try:
        return train(config, run, position=_position)
    except Diverged:
        return None


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}"
