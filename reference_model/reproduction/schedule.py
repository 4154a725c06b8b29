"""Train the pending runs of a grid as jobs, each once, although other commands and machines may be at work on it too.

The lock of a run's folder tells who trains it. So the same command may be started on every machine that sees the
folder, on a cluster as well, and continues the runs of one that was killed.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice

from tqdm import tqdm

from reference_model.config import Config
from reference_model.data.dataset import SPLITS, read_split
from reference_model.models.encoders import check_published
from reference_model.reproduction.grid import Run
from reference_model.reproduction.launchers import Launcher
from reference_model.run_folder import CONFIG, LOG
from reference_model.runtime import lease, signals
from reference_model.runtime.files import require_same_settings
from reference_model.runtime.lease import lock_holder
from reference_model.runtime.signals import raise_if_stop_requested

POLL_SECONDS = 1.0  # between two looks at the runs and the jobs


def check_before_training(runs: Sequence[Run]) -> None:
    """Refuse data that is missing, and folders of these runs that hold a run of other settings, with an InputError."""
    for run in runs:
        if (run.folder / CONFIG).exists():
            require_same_settings(run.folder, Config.read(run.folder / CONFIG).deciding(), run.config.deciding())
    for data, dataset in dict.fromkeys((run.config.data, run.config.dataset) for run in runs):
        for split in SPLITS:
            read_split(data, dataset, split)


def check_encoders(runs: Sequence[Run], *, retry_failed: bool) -> None:
    """Refuse published encoders that runs cannot begin with, with an InputError; each is loaded once."""
    to_train = [run for run in runs if not run.finished() or (retry_failed and run.state() == "failed")]
    check_published([run.config for run in to_train])


def train_all(runs: Sequence[Run], launcher: Launcher, *, on_finished: Callable[[], object]) -> None:
    """Train the runs until all are finished, or other commands train the rest.

    Runs are in the order of preference; those that are finished are left alone. ``on_finished`` is called whenever
    runs, of this command or another one, are finished. The run of a job that dies is recorded as failed.

    Raises:
        InputError: jobs cannot be started.
        Stopped: a stop was requested; the same call continues.
    """
    finished = {run.folder for run in runs if run.finished()}
    logs = _Logs(runs)
    with (
        signals.handle_signals(),
        launcher,
        tqdm(desc="runs", total=len(runs), initial=len(finished), unit="run") as bar,
    ):
        waiting = launcher.adopt([run for run in runs if run.folder not in finished])
        idle_since = time.monotonic()
        while True:
            raise_if_stop_requested()
            for job in launcher.ended():
                if job.failure is not None:
                    job.run.record_failure(job.failure, log=job.log)
                elif job.again:
                    waiting.append(job.run)
            waiting = [run for run in runs if run in waiting and not run.finished()]
            free = list(islice((run for run in waiting if lock_holder(run.folder) is None), launcher.room()))
            if free:
                launcher.submit(free)
                waiting = [run for run in waiting if run not in free]
            logs.show()
            if ended := [run for run in runs if run.folder not in finished and run.finished()]:
                finished |= {run.folder for run in ended}
                for run in ended:
                    if run.state() == "failed":
                        tqdm.write(f"failed: {run.name}: {run.reason()}")
                bar.update(len(ended))
                on_finished()
            if launcher.at_work:
                idle_since = time.monotonic()
            elif (
                not waiting or time.monotonic() - idle_since > 1.5 * lease.LEASE_SECONDS
            ):  # by then, dead locks are free
                return
            time.sleep(POLL_SECONDS)


class _Logs:
    """Prints what runs, of any command, write to their logs from now on."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.shown = {run.folder / LOG: 0 for run in runs}
        for path in self.shown:
            with suppress(OSError):
                self.shown[path] = path.stat().st_size

    def show(self) -> None:
        """Print the lines that are new."""
        for path, shown in self.shown.items():
            with suppress(OSError):
                if path.stat().st_size > shown:
                    text = path.read_bytes()[shown:]
                    whole, _, _ = text.rpartition(b"\n")
                    if whole:
                        self.shown[path] += len(whole) + 1
                        tqdm.write(whole.decode(errors="replace"))
