"""Train the pending runs of a grid in one or several processes, on one or several machines.

Each process takes the next run that no other process trains; the lock of the run's folder tells which. So the same
command may work on a grid on all machines that see its folder, and another process continues the run of a process that
was killed.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from tqdm import tqdm

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.dataset import SPLITS, read_split
from reference_model.reproduction.grid import Run
from reference_model.run_folder import CONFIG, Diverged
from reference_model.runtime import lease, signals
from reference_model.runtime.children import end_with_parent, how_it_ended, signals_blocked
from reference_model.runtime.files import require_same_settings
from reference_model.runtime.lease import Busy, lock_holder
from reference_model.runtime.output import outlive_readers
from reference_model.runtime.signals import EXIT_STOPPED, Stopped, raise_if_stop_requested, stop_requested
from reference_model.training.trainer import train

POLL_SECONDS = 1.0  # between two looks at the runs, and at the processes
SECONDS_TO_STOP = 60.0  # for a process to end its step and save
MAX_IDLE_DEATHS = 3  # processes that die without a run, until the command gives up
NO_RUN = -1  # in place of the number of a run
EXIT_FAILED = 3  # exit status of a process whose run failed by an unexpected error, which is recorded


class UnexpectedError(Exception):
    """A run failed by another error than wrong input; memory or a device may be corrupt: go on in a new process."""


def check_before_training(runs: Sequence[Run]) -> None:
    """Refuse data that is missing, and folders of these runs that hold a run of other settings, with an InputError."""
    for run in runs:
        if (run.folder / CONFIG).exists():
            require_same_settings(run.folder, Config.read(run.folder / CONFIG).deciding(), run.config.deciding())
    for data, dataset in dict.fromkeys((run.config.data, run.config.dataset) for run in runs):
        for split in SPLITS:
            read_split(data, dataset, split)


def train_all(runs: Sequence[Run], *, jobs: int, on_finished: Callable[[], object], **options: Any) -> None:
    """Train the runs in ``jobs`` processes of this machine; with several GPUs each process has one.

    The run of a process that dies, because memory ran out or by a signal, is recorded as failed, and a new process
    takes its place.

    Runs are in the order of preference; those that are finished are left alone. ``on_finished`` is called whenever a
    run, of any process or machine, is finished. The options are those of ``trainer.train``.

    Raises:
        Stopped: a stop was requested; the same call continues.
    """
    finished = sum(run.finished() for run in runs)
    workers = _Workers(runs, min(jobs, len(runs) - finished), options)
    try:
        with (
            signals.handle_signals(),
            tqdm(desc="runs", total=len(runs), initial=finished, unit="run", position=0) as bar,
        ):
            for number in range(workers.jobs):
                workers.start(number)
            while workers.processes:
                wait([process.sentinel for process in workers.processes.values()], timeout=POLL_SECONDS)
                if stop_requested():
                    workers.stop.value = 1  # each saves its run and ends
                workers.replace_ended()
                now = sum(run.finished() for run in runs)
                if now != finished:
                    bar.update(now - finished)
                    finished = now
                    on_finished()
            raise_if_stop_requested()
    finally:
        workers.stop_all()


class _Workers:
    """The processes of one call of :func:`train_all`."""

    def __init__(self, runs: Sequence[Run], jobs: int, options: dict[str, Any]) -> None:
        self.runs, self.jobs, self.options = runs, jobs, options
        self.context = get_context("spawn")
        self.processes: dict[int, SpawnProcess] = {}
        self.idle_deaths = 0
        # Shared memory without locks: a process that is killed while it holds one would block the others.
        self.stop = self.context.Value("b", 0, lock=False)
        self.current_runs = [self.context.Value("i", NO_RUN, lock=False) for _ in range(jobs)]

    def start(self, number: int) -> None:
        """Start the process of a job."""
        arguments = (self.runs, number, self.jobs, self.stop, self.current_runs[number], self.options)
        # The bar of a run is shown, those of its parts are not.
        with _environment({"TQDM_DISABLE": "1", **gpu_variables(number)}), signals_blocked():
            self.processes[number] = self.context.Process(target=_work, args=arguments)
            self.processes[number].start()

    def replace_ended(self) -> None:
        """Start a new process for each that ended early, and record the run of one that died as failed."""
        for number in [number for number, process in self.processes.items() if not process.is_alive()]:
            status = self.processes.pop(number).exitcode
            if status == 0 or stop_requested():
                continue
            if status not in (EXIT_STOPPED, EXIT_FAILED):
                current = self.current_runs[number].value
                self.idle_deaths += current == NO_RUN
                record_death(status, None if current == NO_RUN else self.runs[current], self.idle_deaths)
                self.current_runs[number].value = NO_RUN
            self.start(number)

    def stop_all(self) -> None:
        """Request the processes to stop, wait for them, and kill those that do not end in time."""
        self.stop.value = 1
        for process in self.processes.values():
            process.join(SECONDS_TO_STOP)
            process.kill()


def record_death(status: int | None, run: Run | None, idle_deaths: int) -> None:
    """Record the run of a process that died as failed; or refuse to go on if too many died without a run."""
    reason = how_it_ended(status)
    if run is not None and not run.finished():
        run.record_failure(reason)
    elif run is None and idle_deaths >= MAX_IDLE_DEATHS:
        got = f"{idle_deaths} that ended before; of the last one, {reason}"
        raise InputError(f"expected processes that train, got {got}")


def _work(runs: Sequence[Run], number: int, jobs: int, stop: Any, current_run: Any, options: dict[str, Any]) -> None:
    """Train in a process of :func:`train_all`; exit with 0, EXIT_STOPPED or EXIT_FAILED."""
    if not sys.warnoptions:  # as in the command
        warnings.simplefilter("ignore")
    outlive_readers()
    end_with_parent(grace=SECONDS_TO_STOP)  # if it has not stopped and saved its run by then
    parent = parent_process()
    signals.follow_parent(lambda: bool(stop.value) or parent is None or not parent.is_alive())
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))

    def train_one(run: Run) -> None:
        train(run.config, run.folder, position=number + 1, **options)

    def set_current(run_number: int) -> None:
        current_run.value = run_number

    try:
        train_available(runs, train_one=train_one, set_current=set_current)
    except Stopped:
        raise SystemExit(EXIT_STOPPED) from None
    except UnexpectedError:
        raise SystemExit(EXIT_FAILED) from None
    except OSError as error:  # the failure could not be recorded
        tqdm.write(str(error))
        raise SystemExit(1) from None


def train_available(
    runs: Sequence[Run], *, train_one: Callable[[Run], object], set_current: Callable[[int], None]
) -> None:
    """Train the runs that no other process trains, until all are finished or other processes train the rest.

    ``train_one`` trains a run, or raises Busy. ``set_current`` is called with the number of the run before it is
    trained, and with NO_RUN after it.

    Raises:
        Stopped: a stop was requested.
        UnexpectedError: a run failed by another error than wrong input; it is recorded.
    """
    idle_since = time.monotonic()
    while True:
        unfinished = [(number, run) for number, run in enumerate(runs) if not run.finished()]
        if not unfinished:
            return
        for number, run in unfinished:
            raise_if_stop_requested()
            if lock_holder(run.folder) is None and _train_or_record(number, run, train_one, set_current):
                idle_since = time.monotonic()
                break  # look at all runs again: other processes may have finished some
        else:
            if time.monotonic() - idle_since > 1.5 * lease.LEASE_SECONDS:  # the lock of a dead process has expired
                return
            time.sleep(POLL_SECONDS)


def _train_or_record(
    number: int, run: Run, train_one: Callable[[Run], object], set_current: Callable[[int], None]
) -> bool:
    """Train a run or record its failure; return False if another process has just taken it."""
    set_current(number)
    try:
        train_one(run)
    except Busy:
        return False
    except Diverged:
        pass  # the run's folder says so
    except Stopped:
        raise
    except Exception as error:
        run.record_failure(error)
        tqdm.write(f"failed: {run.name}: {run.reason()}")
        if not isinstance(error, InputError):
            raise UnexpectedError from error
    finally:
        set_current(NO_RUN)
    return True


def gpu_variables(number: int) -> dict[str, str]:
    """Return the environment variables that give a worker one of the GPUs that this process may use."""
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[number % count]}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
