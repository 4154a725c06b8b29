"""Jobs of a cluster with Slurm.

OUT/jobs/runs-NAME.json has the id of the job that was last submitted for the run OUT/runs/NAME.
"""

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any

import submitit
from pydantic import Field
from submitit.core.utils import FailedJobError
from tqdm import tqdm
from typing_extensions import TypedDict

from reference_model import InputError
from reference_model.reproduction.grid import Run
from reference_model.reproduction.job import SECONDS_TO_STOP, TrainRun
from reference_model.reproduction.launchers import JOBS, LOG_CHARACTERS, NO_LIMIT, Ended, find_package, last_line
from reference_model.runtime.files import write_json
from reference_model.runtime.lease import lock_holder
from reference_model.runtime.records import read_json
from reference_model.runtime.signals import stop_requested

PREFIX = "slurm-"  # of the names of the folders of submitit's files
PROGRAMS = ("sbatch", "squeue", "scancel", "srun")
SECONDS_BETWEEN_LOOKS = 30.0  # at Slurm's queue
POLL_SECONDS = 1.0  # between two looks whether jobs that were cancelled have ended
SECONDS_TO_SAVE = 300  # that a job has before its time limit


@dataclass(frozen=True)
class SlurmSettings:
    """What each job asks Slurm for."""

    partition: str | None
    gpus: int
    hours: float
    cpus: int
    memory: float | None  # in GB
    others: dict[str, str | bool]  # further options of sbatch, by name

    def parameters(self) -> dict[str, Any]:
        """Return these settings as parameters of submitit's executor."""
        minutes = max(1, round(self.hours * 60))
        return {
            "job_name": "reproduce",
            "partition": self.partition,
            "gpus_per_node": self.gpus or None,
            "time": minutes,
            "signal_delay_s": min(SECONDS_TO_SAVE, 30 * minutes),
            "cpus_per_task": self.cpus,
            "srun_args": ["--cpus-per-task", str(self.cpus)],  # newer versions do not take it over from sbatch
            "mem": self.memory and f"{round(self.memory * 1024)}MB",
            "additional_parameters": {"requeue": True, **self.others},
        }


class SlurmRecord(TypedDict):
    """The content of OUT/jobs/runs-NAME.json."""

    job: Annotated[str, Field(pattern=r"^\d+(_\d+)?$")]


class SlurmLauncher:
    """Jobs of Slurm, submitted as one array. They outlive the command, unless it is stopped."""

    def __init__(self, out: Path, settings: SlurmSettings, jobs: int | None, **options: Any) -> None:
        """Keep what the jobs need; ``jobs`` is the number that may run at a time, and None leaves it to Slurm.

        Raises:
            InputError: Slurm is not here.
        """
        if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
            raise InputError(f"expected the programs of Slurm for --launcher slurm, got no {', '.join(missing)}")
        self.folder, self.settings, self.jobs, self.options = out / JOBS, settings, jobs, options
        self.at_work: dict[str, tuple[Run, submitit.Job[None]]] = {}  # by id
        self.looked_at = 0.0
        self.missing: set[str] = set()  # jobs that were no longer in the queue at the last look

    def __enter__(self) -> "SlurmLauncher":
        """Make a folder for the jobs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel the jobs if a stop was requested: each saves its run and ends."""
        if not self.at_work or not stop_requested():
            return
        subprocess.run(["scancel", *self.at_work], check=False)
        until = time.monotonic() + SECONDS_TO_STOP
        while self.at_work.keys() & (self._queue() or set()) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)

    def adopt(self, runs: Sequence[Run]) -> list[Run]:
        """Take over the jobs of these runs that are still in the queue; return the other runs.

        Raises:
            InputError: Slurm does not answer, or the id of a job cannot be read.
        """
        records = {run: self._record(run) for run in runs}
        found = {
            run: read_json(path, SlurmRecord, "a job's id")["job"] for run, path in records.items() if path.exists()
        }
        queue = self._queue() if found else set()
        if queue is None:
            raise InputError("expected Slurm's squeue to list the jobs of earlier commands, got no answer; try again")
        self.at_work |= {job: (run, self._earlier_job(job)) for run, job in found.items() if job in queue}
        if self.at_work:
            tqdm.write(f"{len(self.at_work)} runs have jobs in Slurm's queue already")
        return [run for run in runs if found.get(run) not in self.at_work]

    def room(self) -> int:
        """Return a large number: Slurm keeps jobs that cannot run yet."""
        return NO_LIMIT

    def submit(self, runs: Sequence[Run]) -> None:
        """Submit an array with a job for each run.

        Raises:
            InputError: Slurm refuses it.
        """
        executor = submitit.SlurmExecutor(mkdtemp(dir=self.folder, prefix=PREFIX), max_num_timeout=NO_LIMIT)
        executor.update_parameters(**self.settings.parameters(), array_parallelism=self.jobs or len(runs))
        try:
            clean = submitit.helpers.clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext()
            with find_package(), clean:
                jobs = executor.submit_array([TrainRun.of(run, **self.options) for run in runs])
        except FailedJobError as error:
            raise InputError(f"expected Slurm to take the jobs, got: {last_line(str(error))}") from error
        for run, job in zip(runs, jobs, strict=True):
            self.at_work[job.job_id] = run, job
            write_json(self._record(run), {"job": job.job_id})
        array = jobs[0].job_id.partition("_")[0]
        tqdm.write(
            f"Slurm job {array}: {len(runs)} runs. Ctrl-C here cancels it; if this command is killed, it goes on"
        )

    def ended(self) -> Iterator[Ended]:
        """Forget the jobs that have ended since the last call, and yield those whose runs are not finished."""
        for job_id in [job_id for job_id, (run, _) in self.at_work.items() if run.finished()]:
            del self.at_work[job_id]
        if not self.at_work or time.monotonic() - self.looked_at < SECONDS_BETWEEN_LOOKS:
            return
        self.looked_at = time.monotonic()
        queue = self._queue()
        if queue is None:  # Slurm does not answer
            return
        missing = [job_id for job_id in self.at_work if job_id not in queue]
        for job_id in missing:
            if job_id in self.missing:  # at two looks: by now, its files are seen here too
                run, job = self.at_work.pop(job_id)
                if not run.finished():
                    yield self._how_it_ended(run, job)
        self.missing = set(missing)

    def _how_it_ended(self, run: Run, job: "submitit.Job[None]") -> Ended:
        state = job.get_info().get("State", "UNKNOWN").upper()
        if state.startswith("CANCELLED"):
            return Ended(run)
        if state in ("COMPLETED", "PREEMPTED") or lock_holder(run.folder) is not None:
            return Ended(run, again=True)
        log = (job.stderr() or "")[-LOG_CHARACTERS:]
        return Ended(run, f"its job {job.job_id} ended in the state {state}: {last_line(log)}".removesuffix(": "), log)

    def _earlier_job(self, job_id: str) -> "submitit.Job[None]":
        """Return a job that an earlier command submitted."""
        files = next(self.folder.glob(f"{PREFIX}*/{job_id}_submitted.pkl"), self.folder / "gone")
        return submitit.SlurmJob(files.parent, job_id)

    def _record(self, run: Run) -> Path:
        return self.folder / f"{'-'.join(run.folder.relative_to(self.folder.parent).parts)}.json"

    def _queue(self) -> set[str] | None:
        """Return the ids of this user's jobs that wait or run; None if Slurm does not answer."""
        command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        return None if shown.returncode else set(shown.stdout.split())
