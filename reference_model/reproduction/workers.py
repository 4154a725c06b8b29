"""Train every run of a grid that is not settled yet, in one or several processes, on one or several machines.

Each process takes the next run that nobody is at work on, by the lock of its folder, and trains it; that is all they
have in common, besides the features of frozen encoders. So a grid may be worked on by the same command on as many
machines as see its folder, and what a killed process was at goes on in the next that comes by.
"""

import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.dataset import SPLITS, read_split
from reference_model.reproduction.cost import Cost, costs, duration
from reference_model.reproduction.grid import Grid, Run
from reference_model.run_folder import CONFIG, Diverged
from reference_model.runtime import lease
from reference_model.runtime.files import require_same_settings
from reference_model.runtime.lease import Busy, lock_holder
from reference_model.runtime.signals import (
    EXIT_STOPPED,
    Stopped,
    follow_parent,
    handle_signals,
    raise_if_stop_requested,
    stop_requested,
)
from reference_model.training.trainer import train

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_STOP = 60.0  # until the step under way is done, and saved
IDLE_DEATHS = 3  # of processes that were at no run, until we give up
NONE = -1  # the run that a process is at
FAILED = 3  # exit status of a process whose run failed, which it has recorded


class Disordered(Exception):
    """Memory or a device may be in disorder: go on in a new process."""


def refuse_others(runs: Sequence[Run]) -> None:
    """Before anything is trained: every folder that exists has to be that run's, and the data has to be there.

    Raises:
        InputError: it is not.
    """
    for run in runs:
        if (run.folder / CONFIG).exists():
            require_same_settings(run.folder, Config.read(run.folder / CONFIG).deciding(), run.config.deciding())
    for data, dataset in dict.fromkeys((run.config.data, run.config.dataset) for run in runs):
        for split in SPLITS:
            read_split(data, dataset, split)


def estimate(runs: Sequence[Run], *, jobs: int, out: Path) -> str:
    """Hours and gigabytes of the runs that are not settled, for people."""
    left = [run.config for run in runs if not run.settled()]
    if not left:
        return "nothing is left to train"
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # which takes what it needs of a GPU with it
        known = pool.submit(costs, left).result()
    features = _once_a_data_set(left, known)
    seconds = sum(known[config].seconds for config in left) + sum(cost.features_seconds for cost in features)
    gigabytes = sum(known[config].gigabytes for config in left) + sum(cost.features_gigabytes for cost in features)
    gigabytes += min(jobs, len(left)) * max(known[config].while_running for config in left)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores"
    free = shutil.disk_usage(next(path for path in (out, *out.absolute().parents) if path.exists())).free / 1e9
    warning = "\nwarning: that is more than the disk has" if gigabytes > free else ""
    return (
        f"{len(left)} to train: {duration(seconds)} on {device}, one after another, and {gigabytes:.1f} GB "
        f"of {free:.0f} GB free; with all features of frozen encoders, of which some may be there{warning}"
    )


def _once_a_data_set(configs: Sequence[Config], known: dict[Config, Cost]) -> list[Cost]:
    return list({config.dataset: known[config] for config in configs if known[config].features_seconds}.values())


def work(runs: Sequence[Run], *, train_one: Callable[[Run], object], at: Callable[[int], None]) -> None:
    """Train what nobody else is at, one after another, until everything is settled or in hands that are alive.

    Args:
        runs: in the order of preference.
        train_one: trains one, or raises Busy.
        at: told the number of the run that is under way, and NONE after it.

    Raises:
        Stopped: a signal asked for it.
        Disordered: a run failed by something else than its input, which is recorded.
    """
    watched_since = time.monotonic()
    while True:
        open_runs = [(number, run) for number, run in enumerate(runs) if not run.settled()]
        if not open_runs:
            return
        for number, run in open_runs:
            raise_if_stop_requested()
            if lock_holder(run.folder) is not None:
                continue
            at(number)
            try:
                train_one(run)
            except Busy:  # since just now
                continue
            except Diverged:
                pass  # the run's folder says so
            except Stopped:
                raise
            except Exception as error:
                run.record_failure(error)
                tqdm.write(f"failed: {run.name}: {run.reason()}")
                if not isinstance(error, InputError):
                    raise Disordered from error
            finally:
                at(NONE)
            watched_since = time.monotonic()
            break  # others may have settled some in the meantime: look again
        else:
            if time.monotonic() - watched_since > 1.5 * lease.LEASE_SECONDS:  # a dead one would have been taken over
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def reproduce(
    grid: Grid,
    out: Path,
    *,
    jobs: int,
    features: Path | None,
    checkpoint_minutes: float,
    when_settled: Callable[[], object],
) -> None:
    """Have ``jobs`` processes of this machine work on the grid.

    A process that dies, because memory ran out or by a signal, leaves its run recorded as failed, and another takes its
    place. With several GPUs each process has one.

    Args:
        when_settled: called whenever a run, of anybody's, was settled.

    Raises:
        Stopped: a signal asked for it; the same call continues.
    """
    runs = grid.runs(out)
    context = get_context("spawn")
    settled = sum(run.settled() for run in runs)
    jobs = min(jobs, len(runs) - settled)
    # Without locks, which a process that is killed would take with it.
    stop, idle_deaths = context.Value("b", 0, lock=False), 0
    under_way = [context.Value("i", NONE, lock=False) for _ in range(jobs)]
    processes: dict[int, SpawnProcess] = {}

    def start(number: int) -> None:
        with _environment({"TQDM_DISABLE": "1", **_gpu(number)}):  # each shows one bar, and none below it
            processes[number] = context.Process(
                target=_worker, args=(grid, out, stop, under_way[number], number, jobs, features, checkpoint_minutes)
            )
            processes[number].start()

    try:
        with handle_signals(), tqdm(desc="runs", total=len(runs), initial=settled, unit="run", position=0) as bar:
            for number in range(jobs):
                start(number)
            while processes:
                wait([process.sentinel for process in processes.values()], timeout=SECONDS_BETWEEN_LOOKS)
                if stop_requested():
                    stop.value = 1
                for number in [number for number, process in processes.items() if not process.is_alive()]:
                    ended = processes.pop(number)
                    if ended.exitcode == 0 or stop_requested():
                        continue
                    if ended.exitcode not in (EXIT_STOPPED, FAILED):
                        at = under_way[number].value
                        idle_deaths += at == NONE
                        _record_death(ended.exitcode, runs[at] if at != NONE else None, idle_deaths)
                        under_way[number].value = NONE
                    start(number)
                now = sum(run.settled() for run in runs)
                if now != settled:
                    bar.update(now - settled)
                    settled = now
                    when_settled()
            raise_if_stop_requested()
    finally:  # where something went wrong here, the others save what they are at
        stop.value = 1
        for process in processes.values():
            process.join(SECONDS_TO_STOP)
            process.kill()


def _record_death(status: int | None, run: Run | None, idle_deaths: int) -> None:
    what = f"its process ended with status {status}"
    if status is not None and status < 0:
        memory = ", as the system does when memory runs out" if -status == signal.SIGKILL else ""
        what = f"its process was ended by {signal.Signals(-status).name}{memory}"
    if run is not None and not run.settled():
        run.record_failure(what)
    elif run is None and idle_deaths >= IDLE_DEATHS:
        raise InputError(f"expected processes that train, got {idle_deaths} that ended before; of the last one, {what}")


def _worker(
    grid: Grid,
    out: Path,
    stop: Any,
    under_way: Any,
    number: int,
    jobs: int,
    features: Path | None,
    checkpoint_minutes: float,
) -> None:
    """A process of :func:`reproduce`: ends with 0, with 75 where it was stopped, with FAILED after an error."""
    if not sys.warnoptions:  # as in the command
        warnings.simplefilter("ignore")
    parent = parent_process()
    follow_parent(lambda: bool(stop.value) or parent is None or not parent.is_alive())
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))

    def train_one(run: Run) -> None:
        train(run.config, run.folder, features=features, checkpoint_minutes=checkpoint_minutes, position=number + 1)

    def at(run: int) -> None:
        under_way.value = run

    try:
        work(grid.runs(out), train_one=train_one, at=at)
    except Stopped:
        raise SystemExit(EXIT_STOPPED) from None
    except Disordered:
        raise SystemExit(FAILED) from None
    except OSError as error:  # the failure could not be recorded
        tqdm.write(str(error))
        raise SystemExit(1) from None


def _gpu(number: int) -> dict[str, str]:
    """The one that a process is to have, of those this one may use."""
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[number % count]}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables that processes started inside inherit; and signals reach them when they can do something with them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
