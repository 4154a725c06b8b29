"""The lock of a folder: one process at a time writes there, on this machine or on another that shares the disk.

The lock is a file with the name of its holder. The holder touches it every LEASE_SECONDS / 3, its heartbeat. A lock
is free again at once when its process on this machine has ended, and after LEASE_SECONDS without a heartbeat when its
process is on another machine.

A process that is suspended for longer than the lease may lose its lock to another one. It can then change no file in
the folder, at whatever instruction it was suspended: it looks at the lock before it writes, and whoever takes the lock
over removes the unfinished files from which it could still replace others; see :mod:`reference_model.runtime.files`.
"""

import functools
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, LeaseCompromise, SoftFileLease, Timeout

from reference_model import InputError
from reference_model.runtime.signals import raise_if_stop_requested, request_stop

LOCK = ".lock"
GUARD = f"{LOCK}.guard"
PART = ".part"  # the end of the name of an unfinished file or folder; the name begins with a dot
LEASE_SECONDS = 300.0  # without a heartbeat, after which another machine may take the lock
POLL_SECONDS = 1.0  # between two looks at the lock of another machine

log = logging.getLogger(__name__)


class Busy(InputError):
    """Another process works in the folder."""


@dataclass(frozen=True)
class HeldLock:
    """The lock of a folder, held by this process or lost to another one."""

    folder: Path
    token: str  # in the lock's file, and in that of no other lock

    def require(self) -> None:
        """Raise Busy if another process has taken the lock."""
        if self._is_held():
            return
        with _guard(self.folder):  # another process may have moved the lock aside for the moment of a look
            if self._is_held():
                return
        raise Busy(f"expected {self.folder} for this run alone, got it taken over while this process was suspended")

    def _is_held(self) -> bool:
        try:
            return self.token.encode() in (self.folder / LOCK).read_bytes()
        except FileNotFoundError:
            return False


_held: dict[Path, HeldLock] = {}  # by folder


@contextmanager
def lock_folder(folder: Path, *, keep_guard: bool = True) -> Iterator[None]:
    """Lock the folder for this process; without ``keep_guard``, no file of the lock stays in it.

    The lock of a process on another machine is watched until that process has touched it, or for a whole lease. If
    this process loses the lock, it is requested to stop.

    Raises:
        Busy: another process holds the lock.
        Stopped: a stop was requested.
    """
    lease = _acquire(folder)
    path = folder.resolve()
    assert lease.token is not None
    _held[path] = HeldLock(folder, lease.token)
    try:
        _remove_unfinished(folder)
        yield
    finally:
        del _held[path]
        with _guard(folder):
            lease.release()
            if not keep_guard:  # whoever waits for it sees that it is gone, and makes a new one
                (folder / GUARD).unlink(missing_ok=True)


def held_lock(folder: Path) -> HeldLock | None:
    """Return the lock of the folder if this process has taken it."""
    return _held.get(folder.resolve()) if _held else None


def _acquire(folder: Path) -> SoftFileLease:
    lease, observer, waits = _lease(folder), _observer(folder), False
    while True:
        with suppress(Timeout), _guard(folder):
            lease.acquire(timeout=0)
            return lease
        if (holder := observer.holder()) is None:
            continue
        if observer.seen_alive:
            raise Busy(f"expected {folder} for this run alone, got one that is under way there: {holder}")
        if not waits:
            at_most = f"at most {LEASE_SECONDS:.0f} s"
            log.warning("%s is locked by %s: waiting for a sign of life of it, %s", folder, holder, at_most)
            waits = True
        raise_if_stop_requested()
        time.sleep(min(POLL_SECONDS, LEASE_SECONDS / 10))


def _remove_unfinished(folder: Path) -> None:
    """Remove what those that held the lock before have not finished, so that they cannot move it into place.

    The removal begins with one move, so none of their paths leads there any more.
    """
    for part in folder.glob(f".*{PART}"):
        removed = part.with_name(f".{secrets.token_hex(8)}{PART}")
        with suppress(FileNotFoundError):
            os.replace(part, removed)
            if removed.is_dir():
                shutil.rmtree(removed, ignore_errors=True)
            else:
                removed.unlink()


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
        self.looked = False
        self.heartbeat: tuple[int, int] | None = None
        self.unchanged_since = 0.0
        self.seen_alive = False  # the holder: its process is on this machine, or touched the lock between two looks

    def holder(self) -> str | None:
        with _guard(self.folder):
            try:
                with self.lease.acquire(timeout=0):
                    self.looked, self.heartbeat, self.seen_alive = True, None, False
                    return None
            except Timeout:
                pass
            status = _status(self.folder)
            heartbeat = status and (status.st_ino, status.st_mtime_ns)
            if heartbeat != self.heartbeat:
                self.seen_alive = self.looked
                self.looked, self.heartbeat, self.unchanged_since = True, heartbeat, time.monotonic()
            if (owner := self.lease.owner) is not None and owner.hostname == _this_machine():
                self.seen_alive = True
            # A lock without a name: its process was killed before it wrote it. And a lock that was not touched for so
            # long that acquire should have taken it: NFS and its like lack the system call that filelock needs for it.
            if owner is None or time.monotonic() - self.unchanged_since > 1.2 * LEASE_SECONDS:
                self.lease.break_lock()
                self.heartbeat, self.seen_alive = None, False
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
    return FileLock(folder / GUARD)


def _lease(folder: Path) -> SoftFileLease:
    def compromised(_: LeaseCompromise) -> None:
        request_stop()

    return SoftFileLease(folder / LOCK, lease_duration=LEASE_SECONDS, on_compromise=compromised)


@functools.cache
def _this_machine() -> str:
    """Return the name of this machine, or of this container, in its locks."""
    with TemporaryDirectory() as folder, SoftFileLease(Path(folder, LOCK)) as lease:
        return "" if lease.owner is None else lease.owner.hostname


def _name_of_holder(lease: SoftFileLease) -> str:
    owner = lease.owner
    return "another process" if owner is None else f"process {owner.pid} on {owner.hostname}"
