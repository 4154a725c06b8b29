"""The folder of a run: whose it is, whether the run is finished, and that one process at a time works in it."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import LeaseCompromise, SoftFileLease, Timeout

from reference_model import InputError
from reference_model.config import Config
from reference_model.interruption import ask_to_stop

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
    if run.exists() and (not run.is_dir() or {path.name for path in run.iterdir()} - {LOG, LOCK, f".{CONFIG}.part"}):
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
    could not touch it for so long, because it was suspended, and finds it taken, stops.

    Raises:
        Busy: another has it.
    """
    lease = _lease(run)
    try:
        lease.acquire(timeout=0)
    except Timeout as error:
        raise Busy(
            f"expected {run} for this run alone, got one that is under way there: {_holder_of(lease)}"
        ) from error
    try:
        yield
    finally:
        lease.release()


def holder(run: Path) -> str | None:
    """Which process of which machine is at work in the folder; None if there is none that is known to be gone."""
    if not (run / LOCK).exists():
        return None
    lease = _watched(run)
    try:
        with lease.acquire(timeout=0):
            return None
    except Timeout:
        return _holder_of(lease)


@functools.cache
def _watched(run: Path) -> SoftFileLease:
    """The same at every look, for it is by repeated looks that one sees no sign of life."""
    return _lease(run)


def _lease(run: Path) -> SoftFileLease:
    return SoftFileLease(run / LOCK, lease_duration=LEASE, on_compromise=_lost)


def _lost(compromise: LeaseCompromise) -> None:
    ask_to_stop()


def _holder_of(lease: SoftFileLease) -> str:
    owner = lease.owner
    return "another process" if owner is None else f"process {owner.pid} on {owner.hostname}"


def stored_metrics(run: Path) -> dict[str, Any]:
    """What a finished run has left in ``metrics.json``."""
    return read_json(run / METRICS)


def read_json(path: Path) -> dict[str, Any]:
    """What a run has left in one of its files."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
