"""SIGTERM, with which clusters announce that time is up, and Ctrl-C."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CONTINUE = 75  # the exit status of a command that was stopped and can be run again: EX_TEMPFAIL of sysexits.h


class Stopped(Exception):
    """The command was asked to stop, and everything up to now is on the disk."""


class Interruption:
    """While it is entered, a signal raises :class:`Stopped` where nothing can be lost, and is only noted elsewhere.

    A second signal does at once what it would have done without us. Where Python delivers no signals, in threads other
    than the main one, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._wait = False

    def __enter__(self) -> "Interruption":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._before[signal.Signals(number)])
        if not self._wait:
            raise Stopped

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Here a signal waits: until the end at the latest, or until the code sees that it is ``requested``."""
        self._wait = True
        try:
            yield
        finally:
            self._wait = False
        if self.requested:
            raise Stopped
