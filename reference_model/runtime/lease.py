"""The lock of a run folder: one process at a time writes there, on this machine or on another that shares the disk.

The lock is a file with the name of its holder. The holder touches it every LEASE_SECONDS / 3, its heartbeat. A lock
is free again at once when its process on this machine has ended, and after LEASE_SECONDS without a heartbeat when its
process is on another machine.
"""

import functools
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, LeaseCompromise, SoftFileLease, Timeout

from reference_model import InputError
from reference_model.runtime.signals import request_stop

LOCK = ".lock"
LEASE_SECONDS = 300.0  # without a heartbeat, after which another machine may take the lock

_lost: set[Path] = set()  # folders whose lock this process held until another one took it


class Busy(InputError):
    """Another process works in the folder."""


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Lock the run folder for this process.

    If this process is suspended for longer than the lease and another one takes the lock, this process is requested
    to stop; see :func:`lost_lock`.

    Raises:
        Busy: another process holds the lock.
    """
    lease = _lease(folder)
    try:
        with _guard(folder):
            lease.acquire(timeout=0)
    except Timeout as error:
        holder = _name_of_holder(lease)
        raise Busy(f"expected {folder} for this run alone, got one that is under way there: {holder}") from error
    try:
        yield
    finally:
        with _guard(folder):
            lease.release()
        _lost.discard(folder)


def lost_lock(folder: Path) -> bool:
    """Return whether another process took the lock that this process held; then nothing may be written there."""
    return folder in _lost


def lock_holder(folder: Path) -> str | None:
    """Return the name of the process that holds the lock, as far as can be seen; None if the lock is free.

    In a folder where this process may not write, a lock counts as held for LEASE_SECONDS after its last heartbeat.
    """
    if not (folder / LOCK).exists():
        return None
    try:
        return _observer(folder).holder()
    except OSError:
        return _name_of_holder(_lease(folder)) if seconds_since_heartbeat(folder) < LEASE_SECONDS else None


def seconds_since_heartbeat(folder: Path) -> float:
    """Return the seconds since the lock was touched, by the clock of this machine; infinity without a lock."""
    status = _status(folder)
    return math.inf if status is None else time.time() - status.st_mtime


class _LockObserver:
    """Sees between two looks at a lock whether its holder still touches it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lease = folder, _lease(folder)
        self.heartbeat: tuple[int, int] | None = None
        self.unchanged_since = 0.0

    def holder(self) -> str | None:
        with _guard(self.folder):
            try:
                with self.lease.acquire(timeout=0):
                    return None
            except Timeout:
                pass
            status = _status(self.folder)
            heartbeat = status and (status.st_ino, status.st_mtime_ns)
            if heartbeat != self.heartbeat:
                self.heartbeat, self.unchanged_since = heartbeat, time.monotonic()
            # A lock without a name: its process was killed before it wrote it. And a lock that was not touched for so
            # long that acquire should have taken it: NFS and its like lack the system call that filelock needs for it.
            if self.lease.owner is None or time.monotonic() - self.unchanged_since > 1.2 * LEASE_SECONDS:
                self.lease.break_lock()
                return None
            return _name_of_holder(self.lease)


_observer = functools.cache(_LockObserver)


def _status(folder: Path) -> os.stat_result | None:
    try:
        return (folder / LOCK).stat()
    except OSError:
        return None


def _guard(folder: Path) -> FileLock:
    """Return a short lock around every acquire, look and release; the system releases it when a process ends."""
    return FileLock(folder / f"{LOCK}.guard")


def _lease(folder: Path) -> SoftFileLease:
    def compromised(_: LeaseCompromise) -> None:
        _lost.add(folder)
        request_stop()

    return SoftFileLease(folder / LOCK, lease_duration=LEASE_SECONDS, on_compromise=compromised)


def _name_of_holder(lease: SoftFileLease) -> str:
    owner = lease.owner
    return "another process" if owner is None else f"process {owner.pid} on {owner.hostname}"
