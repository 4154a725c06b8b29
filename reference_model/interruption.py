"""SIGTERM, with which clusters announce that time is up, and Ctrl-C: noted, and obeyed where nothing is lost by it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

CONTINUE = 75  # the exit status of a command that was stopped and can be run again: EX_TEMPFAIL of sysexits.h

_asked = _noting = False  # as signals are, of the whole process


class Stopped(Exception):
    """The command was asked to stop, and everything up to now is on the disk."""


@contextmanager
def signals_noted() -> Iterator[None]:
    """Inside, a signal is noted; a second one, of either kind, does what it would do without us.

    Where Python delivers no signals, in threads other than the main one, nothing is changed; nor inside another.
    """
    global _asked, _noting
    if _noting:
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


def asked_to_stop() -> bool:
    """Whether a signal was noted; for code that has to save its state first."""
    return _asked


def stop_if_asked() -> None:
    """Where nothing can be lost."""
    if _asked:
        raise Stopped
