"""Processes that this one starts: none of them outlives it for long, whatever ends it."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from reference_model.runtime.signals import EXIT_STOPPED, request_stop

_PR_SET_PDEATHSIG = 1  # of Linux, sys/prctl.h
POLL_SECONDS = 0.3  # between two looks at a lock


def end_with_parent() -> None:
    """End this process when the one that started it has ended; called by the started one."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":  # at once, even in a library that never returns to Python
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        parent.join()  # returns at once if it has ended already
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def stop_when_released(lock: Path, *, grace: float) -> None:
    """Request this process to stop when another one releases a lock or ends, and end it ``grace`` seconds later."""

    def watch() -> None:
        with suppress(OSError), FileLock(lock).acquire(poll_interval=POLL_SECONDS):
            pass
        request_stop()
        time.sleep(grace)
        os._exit(EXIT_STOPPED)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM in processes that are started inside, until they say what these mean there."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def how_it_ended(status: int | None) -> str:
    """Return in words how a process ended; a negative exit status is the signal that ended it."""
    if status is None or status >= 0:
        return f"its process ended with status {status}"
    memory = ", as the system does when memory runs out" if -status == signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-status).name}{memory}"
