"""Where the sound of a downloaded clip is: a file, a member of a zip archive, or bytes in a row of a table.

Whatever it is, it becomes a file while it is decoded. Nothing is ever written under a name that an archive or a table
gives, and no more than ``LARGEST`` bytes of an archive.
"""

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reference_model import reason_of
from reference_model.data.audio import SUFFIXES
from reference_model.data.decoding import Fault
from reference_model.data.zip_archives import Archive
from reference_model.runtime.files import writing
from reference_model.runtime.lease import PART

LARGEST = 2**31  # bytes of an audio file in an archive, unpacked; the longest of WavCaps has 12.4 hours and 1.4 GB
_BLOCK = 2**20  # bytes that are copied at once


@dataclass(frozen=True)
class ZipMember:
    """An audio file in a zip archive."""

    archive: Path
    name: str  # in the archive
    modified: int  # time of the archive in nanoseconds; times of members have no time zone, and steps of two seconds

    def __str__(self) -> str:
        return f"{self.name} in {self.archive}"

    def blocks(self) -> Iterator[bytes]:
        """Yield the unpacked content; any exception means that it cannot be read."""
        archive = _opened(self.archive, self.modified)
        if (size := archive.size(self.name)) > LARGEST:
            raise ValueError(f"{size} bytes when unpacked, more than {LARGEST}")
        with archive.open(self.name) as file:
            yield from iter(functools.partial(file.read, _BLOCK), b"")


@functools.lru_cache(maxsize=1)
def _opened(archive: Path, modified: int) -> Archive:  # noqa: ARG001 - another time, another archive
    """Open an archive; the last one stays open, because reading the list of 260,000 members takes seconds."""
    return Archive(archive)


@dataclass(frozen=True)
class AudioBytes:
    """The content of an audio file, in memory."""

    content: bytes
    name: str  # of the clip
    modified: int  # time of the table in nanoseconds

    def __str__(self) -> str:
        return f"the sound of {self.name}"

    def blocks(self) -> Iterator[bytes]:
        """Yield the content."""
        yield self.content


class Row(Protocol):
    """A row of a table with the bytes of an audio file, which are read when it is the row's turn."""

    def read(self) -> AudioBytes | Fault | None:
        """Return the sound of the row, or why it cannot be read; None: it has none."""


@dataclass(frozen=True)
class DownloadedClip:
    """A clip of a download: its name, its sound (None: there is none) or what is wrong with it, its captions."""

    file_name: str
    source: Path | ZipMember | AudioBytes | Row | Fault | None
    captions: tuple[str, ...]
    blacklist: str = ""  # the file that says that the clip is to be left out; empty: there is none


@contextmanager
def as_file(source: Path | ZipMember | AudioBytes | Fault, beside: Path) -> Iterator[Path | Fault]:
    """Yield a file with the sound, and remove it afterwards if it was made; or why the sound cannot be read.

    Args:
        source: a file, and the reason why there is none, is yielded itself.
        beside: a path in the folder where the file may be made. What a killed process leaves there ends in ``.part``.

    Raises:
        NotWritten: there is no room, or no permission.
    """
    if isinstance(source, Path | Fault):
        yield source
        return
    with writing(beside):
        folder = tempfile.TemporaryDirectory(prefix=".", suffix=PART, dir=beside.parent)
    with folder:
        # FFmpeg looks at the ending of a name too.
        suffix = os.path.splitext(source.name)[1].lower()
        path = Path(folder.name) / f"original{suffix if suffix in SUFFIXES else ''}"
        yield _copy(source, path) or path


def _copy(source: ZipMember | AudioBytes, path: Path) -> Fault | None:
    """Write the sound to a file that has the time of the source; return why it cannot be read."""
    with writing(path), path.open("wb") as file:
        blocks = source.blocks()
        while True:
            try:
                block = next(blocks, b"")
            except Exception as error:  # whatever is wrong with an archive, it is this clip's fault alone
                return Fault("unreadable", f"not readable in its archive ({reason_of(error)})")
            if not block:
                break
            file.write(block)
    os.utime(path, ns=(source.modified, source.modified))
    return None
