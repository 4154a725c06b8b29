"""SIGTERM, with which clusters announce that time is up, and Ctrl-C: noted, and obeyed where nothing is lost by it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

CONTINUE = 75  # the exit status of a command that was stopped and can be run again: EX_TEMPFAIL of sysexits.h


def _nobody() -> bool:
    return False


_asked = _noting = False  # as signals are, of the whole process
_parent: Callable[[], bool] = _nobody


class Stopped(Exception):
    """The command was asked to stop, and everything up to now is on the disk."""


@contextmanager
def signals_noted() -> Iterator[None]:
    """Inside, a signal is noted; a second one, of either kind, does what it would do without us.

    Where Python delivers no signals, in threads other than the main one, nothing is changed; nor inside another.
    """
    global _asked, _noting
    if _noting or _parent is not _nobody:
        yield
        return
    before: dict[int, Any] = {}
    _asked, _noting = False, True

    def note(number: int, frame: FrameType | None) -> None:
        global _asked
        _asked = True
        for each, handler in before.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        _asked = _noting = False
        for number, handler in before.items():
            signal.signal(number, handler)


def ask_to_stop() -> None:
    """As a signal does."""
    global _asked
    _asked = True


def follow(parent: Callable[[], bool]) -> None:
    """In a process that another one started, which says when to stop: signals are its affair."""
    global _parent
    _parent = parent
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def asked_to_stop() -> bool:
    """Whether a signal was noted, here or by the process that we follow; for code that saves its state first."""
    return _asked or _parent()


def stop_if_asked() -> None:
    """Where nothing can be lost."""
    if asked_to_stop():
        raise Stopped
