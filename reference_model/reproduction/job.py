"""A job: one run of a grid in a process of its own, on this machine or on a cluster.

submitit writes a job to a file, and starts a process that reads the file and calls the job. So a job holds texts,
numbers and paths alone, and this module imports nothing large.
"""

import faulthandler
import os
import signal
import subprocess
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from reference_model.runtime.children import stop_when_released
from reference_model.runtime.signals import EXIT_STOPPED, Stopped, handle_signals, request_stop

if TYPE_CHECKING:
    from reference_model.reproduction.grid import Run

TIME_IS_UP = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")  # Slurm sends it before a time limit
SECONDS_TO_STOP = 60.0  # for a job to end its step and save


@dataclass(frozen=True)
class TrainRun:
    """The job of a run.

    A job on this machine stops when the command that started it ends. A job of Slurm stops before its time limit and
    when it is preempted; it saves the run, and goes back into the queue.
    """

    experiment: str
    settings: dict[str, Any]  # of the run's Config
    folder: Path
    failure_file: Path
    features: Path | None
    checkpoint_minutes: float
    environment: dict[str, str | None] = field(default_factory=dict)  # None: the variable is removed
    shared_by: int = 1  # jobs that share the cores
    command: Path | None = None  # a lock that the command holds on this machine; None: the job is one of Slurm

    @classmethod
    def of(cls, run: "Run", **options: Any) -> "TrainRun":
        """Return the job of a run; the options are the fields that do not follow from the run."""
        folder, failure_file = run.folder.absolute(), run.failure_file.absolute()
        return cls(run.experiment, run.config.as_dict(), folder, failure_file, **options)

    def __call__(self) -> None:
        """Train the run, or continue it; leave it alone if another process trains it.

        Raises:
            SystemExit: the run was stopped by Slurm, and is saved.
        """
        faulthandler.enable()  # in the job's log
        warnings.simplefilter("ignore")  # as in the command
        for name, value in {"TQDM_DISABLE": "1", **self.environment}.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}
        with handle_signals():
            requeue = signal.signal(TIME_IS_UP, lambda *_: request_stop())  # submitit's handler would end a step
            if self.command is not None:
                stop_when_released(self.command, grace=SECONDS_TO_STOP)
            try:
                self.train()
            except Stopped:
                if self.command is not None:
                    return
                if _counts_as_running():
                    assert callable(requeue)
                    requeue(TIME_IS_UP, None)
                raise SystemExit(EXIT_STOPPED) from None

    def train(self) -> None:
        """Train the run in this process, and record its error if it fails."""
        import torch

        from reference_model.config import Config
        from reference_model.reproduction.grid import Run
        from reference_model.run_folder import Diverged
        from reference_model.runtime.lease import Busy
        from reference_model.training.trainer import train

        torch.set_num_threads(max(1, torch.get_num_threads() // self.shared_by))
        run = Run(self.experiment, Config(**self.settings), self.folder, self.failure_file)
        if run.finished():
            return
        options: dict[str, Any] = {"features": self.features, "checkpoint_minutes": self.checkpoint_minutes}
        try:
            train(run.config, run.folder, show_bar=False, **options)
        except (Busy, Diverged):  # another process trains it; or its folder says that it has diverged
            pass
        except Stopped:
            raise
        except Exception as error:
            run.record_failure(error)

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit starts when the job is at work again: the same job, which continues the run."""
        return DelayedSubmission(self)


def _counts_as_running() -> bool:
    """Return whether Slurm counts this job as running; not when Slurm cancels it, or has put it back itself."""
    command = ["squeue", "--noheader", f"--jobs={JobEnvironment().job_id}", "--format=%T"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    return shown.returncode != 0 or shown.stdout.strip() == "RUNNING"
