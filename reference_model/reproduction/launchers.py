"""What starts the jobs of a grid, and sees them end: on this machine (``local_jobs``) or on a cluster (``slurm_jobs``).

OUT/jobs holds a folder of submitit's files for each command on this machine, and for each array of Slurm. No other user
can write there, since jobs are read from there.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from submitit.helpers import environment_variables

import reference_model
from reference_model.reproduction.grid import Run

JOBS = "jobs"
NO_LIMIT = 60 * 24 * 365 * 10  # minutes that a job on this machine may take, and times that Slurm may put one back
LOG_CHARACTERS = 10_000  # of the end of a job's log, in the record of a failure

logging.getLogger("submitit").setLevel(logging.CRITICAL)  # in the command; jobs have logs of their own


@dataclass(frozen=True)
class Ended:
    """The end of a job whose run is not finished."""

    run: Run
    failure: str | None = None  # how the job died, if it did
    log: str = ""  # the end of what it printed
    again: bool = False  # the run may be submitted again: another process had it, or Slurm needed the place


class Launcher(Protocol):
    """Starts jobs and sees them end, inside a ``with`` statement."""

    @property
    def at_work(self) -> Mapping[Any, Any]:
        """The jobs that have not ended."""

    def __enter__(self) -> Any:
        """Make what the jobs need."""

    def __exit__(self, *_: object) -> None:
        """Leave the jobs: those of this machine stop, and those of Slurm too if a stop was requested."""

    def adopt(self, runs: Sequence[Run]) -> list[Run]:
        """Take over the jobs of these runs that an earlier command left at work; return the other runs."""

    def room(self) -> int:
        """Return the number of jobs that may be submitted now."""

    def submit(self, runs: Sequence[Run]) -> None:
        """Submit a job for each run."""

    def ended(self) -> Iterator[Ended]:
        """Forget the jobs that have ended since the last call, and yield those whose runs are not finished."""


def find_package() -> "AbstractContextManager[None]":
    """Let processes that are started inside find this package, in whatever folder that is."""
    known = os.environ.get("PYTHONPATH")
    root = str(Path(reference_model.__file__).parents[1])
    return environment_variables(PYTHONPATH=os.pathsep.join([root, known] if known else [root]))


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
