"""SIGTERM, with which clusters announce that time is up, and Ctrl-C: work stops where nothing is lost by it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

EXIT_STOPPED = 75  # exit status of a command that was stopped and can be run again: EX_TEMPFAIL of sysexits.h
STOPPED = "stopped when asked to; the same command continues"
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Handlers of signals belong to the whole process, and so does this state.
_requested = _handling = False
_parent_requests: Callable[[], bool] | None = None


class Stopped(Exception):
    """The command was requested to stop, and everything up to now is on the disk."""


def exit_on_signals() -> None:
    """Let SIGTERM and SIGINT end this process at once with EXIT_STOPPED, except inside :func:`handle_signals`.

    Files are written whole or not at all, so the same command continues.
    """
    process = os.getpid()

    def end(_number: int, _frame: FrameType | None) -> None:
        if os.getpid() == process:  # processes that were forked from it end without a word
            with suppress(OSError):  # the reader may have gone
                os.write(2, f"{STOPPED}\n".encode())
        os._exit(EXIT_STOPPED)

    for number in SIGNALS:
        signal.signal(number, end)


@contextmanager
def handle_signals() -> Iterator[None]:
    """Take the first SIGTERM or SIGINT as a request to stop; a second one has the effect that it had before.

    Nothing changes inside another ``handle_signals``, in a process that follows its parent, and in threads other than
    the main one, where Python delivers no signals.
    """
    global _requested, _handling
    if _handling or _parent_requests is not None:
        yield
        return
    before: dict[int, Any] = {}
    _requested, _handling = False, True

    def handle(_number: int, _frame: FrameType | None) -> None:
        request_stop()
        for each, handler in before.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        _requested = _handling = False
        for number, handler in before.items():
            signal.signal(number, handler)


def request_stop() -> None:
    """Request this process to stop, as a signal does."""
    global _requested
    _requested = True


def follow_parent(parent_requests: Callable[[], bool]) -> None:
    """Ignore signals in a process that another one started, and stop when ``parent_requests()`` is true."""
    global _parent_requests
    _parent_requests = parent_requests
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stop_requested() -> bool:
    """Return whether a signal or the parent process requested a stop; for code that saves its state first."""
    return _requested or (_parent_requests is not None and _parent_requests())


def raise_if_stop_requested() -> None:
    """Raise Stopped if a stop was requested; for places where nothing is lost by it."""
    if stop_requested():
        raise Stopped
