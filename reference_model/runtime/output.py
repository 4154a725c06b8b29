"""What a command prints is for people: output that cannot be written decides nothing.

The reader may go away (a pager that is quit, ``tee`` and Ctrl-C, a terminal that is closed), or the disk be full that a
log is on. The work goes on then, and what it prints is lost.
"""

import os
import sys
from collections.abc import Iterable
from typing import Any

READER_IS_GONE = (BrokenPipeError, ConnectionResetError)


class _Stream:
    """A text stream that loses what cannot be written; in all else the stream that it wraps."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None  # the first one

    def write(self, text: str) -> int:
        """Write the text, or lose it."""
        try:
            self._stream.write(text)
        except OSError as error:
            self.error = self.error or error
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write the lines, or lose them."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Write what is still in memory, or lose it."""
        try:
            self._stream.flush()
        except OSError as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """Let this process print on whatever becomes of its standard output and standard error; one may be closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the process began: no file that is opened later may take its place
            stream = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # noqa: SIM115
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name may have characters that the encoding lacks
        if not isinstance(stream, _Stream):
            setattr(sys, name, _Stream(stream))


def require_written() -> None:
    """Raise the error by which standard output was lost, unless its reader has gone: for a command that is a query."""
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    if error is not None and not isinstance(error, READER_IS_GONE):
        raise error
