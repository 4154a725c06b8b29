"""The folder of a run: whose it is, whether the run is finished, and that one process at a time works in it."""

import functools
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, LeaseCompromise, SoftFileLease, Timeout

from reference_model import InputError
from reference_model.config import Config
from reference_model.runtime.signals import ask_to_stop

CONFIG = "config.json"
CHECKPOINT = "checkpoint.safetensors"  # while it is under way
METRICS = "metrics.json"  # when it is finished
TEST_EMBEDDINGS = "test_embeddings.safetensors"  # of the best weights: audio [N, D] and text [M, D]
TIME = "time.json"  # seconds at work, and on what machine
DIVERGED = "diverged.json"
LOG = "log.txt"
LOCK = ".lock"
LEASE = 300.0  # seconds without a sign of life after which another machine may take a run over


class Diverged(InputError):
    """The loss, or an embedding, is no longer finite."""


def open_run(config: Config, run: Path) -> dict[str, Any] | None:
    """Make the run's folder, or find it: its metrics if it is finished, None if there is work to do.

    Raises:
        InputError: the folder holds something else, or a run of another configuration.
        Diverged: the folder holds this run, and it has diverged.
    """
    if (run / CONFIG).exists():
        stored = Config.read(run / CONFIG)
        different = [f"{name} {there} there, {here} here" for name, (there, here) in stored.differences(config).items()]
        if different:
            raise InputError(
                f"expected {run} to be new or a run of this configuration, got a run of another "
                f"({'; '.join(different)}); choose another --out"
            )
        if (run / DIVERGED).exists():
            raise Diverged(json.loads((run / DIVERGED).read_text(encoding="utf-8"))["reason"])
        if not (run / METRICS).exists():
            return None
        (run / CHECKPOINT).unlink(missing_ok=True)  # it was killed just before that
        return stored_metrics(run)
    if run.exists() and (
        not run.is_dir() or any(path.name != LOG and not path.name.startswith(".") for path in run.iterdir())
    ):
        raise InputError(
            f"expected {run} to be new or a run's folder, got something without {CONFIG}; choose another --out"
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected to write a run in {run}, got: {error}; --out names another folder") from error
    return None


class Busy(InputError):
    """Another process is at work in the folder."""


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Two at work in one folder would spoil what the other writes.

    The lock is a file that names its holder and is touched by it every LEASE / 3 seconds. One whose process is gone is
    taken over at once on the same machine, and by others when it has not been touched for LEASE seconds. A holder that
    could not touch it for so long, because it was suspended, and finds it taken, stops; see :func:`taken_over`.

    Raises:
        Busy: another has it.
    """
    lease = _lease(run)
    try:
        with _guard(run):
            lease.acquire(timeout=0)
    except Timeout as error:
        raise Busy(f"expected {run} for this run alone, got one that is under way there: {_named(lease)}") from error
    try:
        yield
    finally:
        with _guard(run):
            lease.release()
        _taken_over.discard(run)


def taken_over(run: Path) -> bool:
    """Whether the lock that this process holds was given to another; nothing may be written there any more."""
    return run in _taken_over


def holder(run: Path) -> str | None:
    """Which process of which machine is at work in the folder, as far as can be seen; None: it is free."""
    return _watch(run).holder() if (run / LOCK).exists() else None


def quiet_for(run: Path) -> float:
    """Seconds since the lock was touched, by the clock of this machine, for people to read."""
    try:
        return time.time() - (run / LOCK).stat().st_mtime
    except OSError:
        return math.inf


class _Watch:
    """Looks at the lock of a folder, from one to the next of which one sees whether its holder lives."""

    def __init__(self, run: Path) -> None:
        self.run, self.lease = run, _lease(run)
        self.sign: tuple[int, int] | None = None  # of life
        self.since = 0.0

    def holder(self) -> str | None:
        with _guard(self.run):
            try:
                with self.lease.acquire(timeout=0):
                    return None
            except Timeout:
                pass
            sign = self._sign()
            if sign != self.sign:
                self.sign, self.since = sign, time.monotonic()
            # Killed before it could write its name. Or quiet for so long that the lease should have been ours by now,
            # but NFS and its like lack what filelock takes it over by.
            if self.lease.owner is None or time.monotonic() - self.since > 1.2 * LEASE:
                self.lease.break_lock()
                return None
            return _named(self.lease)

    def _sign(self) -> tuple[int, int] | None:
        try:
            status = (self.run / LOCK).stat()
        except OSError:
            return None
        return (status.st_ino, status.st_mtime_ns)


def _guard(run: Path) -> FileLock:
    """For the moments in which the lock is taken, looked at or given back: one at a time, or they trip over each other.

    The system gives it back when a process ends, however it ends.
    """
    return FileLock(run / f"{LOCK}.guard")


_watch = functools.cache(_Watch)
_taken_over: set[Path] = set()


def _lease(run: Path) -> SoftFileLease:
    def lost(_: LeaseCompromise) -> None:
        _taken_over.add(run)
        ask_to_stop()

    return SoftFileLease(run / LOCK, lease_duration=LEASE, on_compromise=lost)


def _named(lease: SoftFileLease) -> str:
    owner = lease.owner
    return "another process" if owner is None else f"process {owner.pid} on {owner.hostname}"


def stored_metrics(run: Path) -> dict[str, Any]:
    """What a finished run has left in ``metrics.json``."""
    return read_json(run / METRICS)


def read_json(path: Path) -> dict[str, Any]:
    """What a run has left in one of its files."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
