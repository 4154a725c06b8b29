"""Jobs in processes of this machine."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import submitit
import torch
from filelock import FileLock

from reference_model import InputError
from reference_model.reproduction.grid import Run
from reference_model.reproduction.job import SECONDS_TO_STOP, TrainRun
from reference_model.reproduction.launchers import JOBS, LOG_CHARACTERS, NO_LIMIT, Ended, find_package, last_line
from reference_model.runtime.children import signals_blocked
from reference_model.runtime.lease import lock_holder

COMMAND_LOCK = "command.lock"  # in the folder of a command, which holds it while its jobs may work


class LocalLauncher:
    """Jobs in processes of this machine: with several GPUs each job has one, and the jobs divide the cores.

    The processes do not receive the signals of a terminal. They stop at the end of the ``with`` statement, or of the
    process that it is in.
    """

    def __init__(self, out: Path, jobs: int, **options: Any) -> None:
        """Keep what the jobs need; the options are the ``features`` and ``checkpoint_minutes`` of all of them."""
        self.out, self.jobs, self.options = out, jobs, options
        self.at_work: dict[int, tuple[Run, submitit.Job[None]]] = {}  # by number, from 0 to jobs - 1

    def __enter__(self) -> "LocalLauncher":
        """Make a folder for the jobs, and hold its lock."""
        (self.out / JOBS).mkdir(parents=True, exist_ok=True)
        self.folder = TemporaryDirectory(dir=self.out / JOBS, prefix="local-", ignore_cleanup_errors=True)
        self.lock = FileLock(Path(self.folder.name).absolute() / COMMAND_LOCK)
        self.lock.acquire()
        self.executor = submitit.LocalExecutor(self.folder.name)
        self.executor.update_parameters(timeout_min=NO_LIMIT)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the jobs: each saves its run and ends, or is ended after :data:`SECONDS_TO_STOP`."""
        self.lock.release()
        until = time.monotonic() + 2 * SECONDS_TO_STOP
        while any(not job.done() for _, job in self.at_work.values()) and time.monotonic() < until:
            time.sleep(0.05)
        self.folder.cleanup()

    def adopt(self, runs: Sequence[Run]) -> list[Run]:
        """Return all runs: no job of this machine outlives its command."""
        self.jobs = max(1, min(self.jobs, len(runs)))
        return list(runs)

    def room(self) -> int:
        """Return the number of jobs that may be submitted now."""
        return self.jobs - len(self.at_work)

    def submit(self, runs: Sequence[Run]) -> None:
        """Start a job for each run."""
        free = [number for number in range(self.jobs) if number not in self.at_work]
        for number, run in zip(free, runs, strict=False):
            here = {"environment": gpu_variables(number), "shared_by": self.jobs, "command": Path(self.lock.lock_file)}
            job = TrainRun.of(run, **here, **self.options)
            with find_package(), signals_blocked():
                self.at_work[number] = run, self.executor.submit(job)

    def ended(self) -> Iterator[Ended]:
        """Forget the jobs that have ended since the last call, and yield those whose runs are not finished.

        Raises:
            InputError: a job could not begin, or could not record an error of its run.
        """
        for number, (run, job) in list(self.at_work.items()):
            if not job.done():
                continue
            del self.at_work[number]
            if run.finished():
                continue
            returned = job.paths.result_pickle.exists()
            if returned and (error := job.exception()) is not None:
                raise InputError(f"expected jobs that train, got one of {run.name} that ended: {last_error(error)}")
            if returned or lock_holder(run.folder) is not None:
                yield Ended(run, again=True)
            else:
                log = (job.stderr() or "")[-LOG_CHARACTERS:]
                yield Ended(run, how_it_died(log), log)


def gpu_variables(number: int) -> dict[str, str | None]:
    """Return the environment variables that give a job one of the GPUs that this process may use."""
    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if count > 1:
        visible = (visible or ",".join(map(str, range(count)))).split(",")[number % count]
    return {"CUDA_VISIBLE_DEVICES": visible}


def how_it_died(log: str) -> str:
    """Return how the process of a job ended, from its log: Python writes down a crash there, and nothing of SIGKILL."""
    if fatal := [line for line in log.splitlines() if line.startswith("Fatal Python error: ")]:
        return f"its process ended: {fatal[-1]}"
    ended = "its process ended before its run, as by SIGKILL when memory runs out"
    return f"{ended}; its last line: {last_line(log)}" if log.strip() else ended


def last_error(error: BaseException) -> str:
    """Return the error of a job in one line; submitit puts the traceback between two lines of dashes."""
    return last_line(str(error).rpartition("\n-----")[0] or str(error))
