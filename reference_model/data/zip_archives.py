"""Zip archives, whole or in parts as ``zip -s`` writes them: NAME.z01, NAME.z02, ..., NAME.zip.

The standard library reads whole archives. In an archive in parts, a place is counted from the beginning of its part.
Here all parts are one file with an end of its own, places are counted from its beginning, and the standard library does
the rest. Joining the parts first would take as much disk again, and ``zip -s 0`` of Info-ZIP 3.0 damages some members.
"""

import bisect
import io
import itertools
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

from reference_model import InputError, reason_of

# The record at the end of an archive, and two before it where numbers need 64 bits: what they hold, and how they begin.
_END, _LOCATOR, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_END_BEGINS, _LOCATOR_BEGINS, _END_64_BEGINS = b"PK\5\6", b"PK\6\7", b"PK\6\6"
_LONGEST_END = _LOCATOR.size + _END.size + 2**16  # bytes, with a comment
_MOST_PARTS = 10_000
_MANY, _LARGE = 2**16 - 1, 2**32 - 1  # stand for a number that is in the record of 64 bits
_BUFFER = 2**18  # bytes


class Archive:
    """A zip archive that is open, with all its parts."""

    def __init__(self, path: Path) -> None:
        """Read the list of members; an InputError says why it cannot be read."""
        try:
            parts = [path.with_suffix(f".z{number:02d}") for number in range(1, _number_of_parts(path))]
            if parts:
                joined = _Joined([*parts, path])
                self._zip = zipfile.ZipFile(io.BufferedReader(joined.with_whole_end(), _BUFFER))
                self.members = [_in_whole(member, joined.starts) for member in self._zip.infolist()]
            else:
                self._zip = zipfile.ZipFile(path)
                self.members = self._zip.infolist()
        except Exception as error:  # whatever is wrong with it
            raise InputError(f"expected a zip archive with all its parts at {path}, got {reason_of(error)}") from error
        self._by_name = {member.filename: member for member in self.members}

    def size(self, name: str) -> int:
        """Return the number of bytes of a member when it is unpacked; reading it gives no more."""
        return self._by_name[name].file_size

    def open(self, name: str) -> IO[bytes]:
        """Open a member."""
        return self._zip.open(self._by_name[name])


def _number_of_parts(path: Path) -> int:
    """Return the number of parts of an archive by its last one, NAME.zip."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LONGEST_END))
        tail = file.read()
    number: int = _END.unpack_from(tail, _find_end(tail))[1] + 1
    if number > _MOST_PARTS:
        raise ValueError(f"{number} parts")
    return number


def _find_end(tail: bytes) -> int:
    """Return the place of the last record in the last bytes of an archive."""
    if (end := tail.rfind(_END_BEGINS)) < 0:
        raise ValueError("a file that does not end like one")
    return end


def _in_whole(member: zipfile.ZipInfo, starts: list[int]) -> zipfile.ZipInfo:
    """Return a member whose place is counted from the beginning of the first part."""
    info = zipfile.ZipInfo(member.filename, member.date_time)
    for name in ("orig_filename", "compress_type", "flag_bits", "CRC", "compress_size", "file_size"):
        setattr(info, name, getattr(member, name))
    info.header_offset = starts[member.volume] + member.header_offset
    return info


class _Joined(io.RawIOBase):
    """The parts of an archive as one file."""

    def __init__(self, parts: list[Path], length: int | None = None, tail: bytes = b"") -> None:
        """Cut the parts together to a length, and put a tail behind them."""
        self.starts = [0, *itertools.accumulate(part.stat().st_size for part in parts)]  # of the parts; then the end
        self._parts, self._tail = parts, tail
        self._length = self.starts[-1] if length is None else length
        self._position = 0
        self._opened: tuple[int, IO[bytes]] | None = None  # the number of a part, and its file

    def with_whole_end(self) -> "_Joined":
        """Return the same with an end that tells of one part alone, in numbers of 64 bits."""
        before = max(0, self._length - _LONGEST_END)
        tail = self._exactly(before, self._length - before)
        end = _find_end(tail)
        _, _, part, _, members, size, offset, _ = _END.unpack_from(tail, end)
        if _MANY in (part, members) or _LARGE in (size, offset):
            _, of_64, place, _ = _LOCATOR.unpack_from(tail, end - _LOCATOR.size)
            record = self._exactly(self.starts[of_64] + place, _END_64.size)
            _, _, _, _, _, part, _, members, size, offset = _END_64.unpack(record)
        where = self.starts[part] + offset + size
        whole = _END_64.pack(_END_64_BEGINS, _END_64.size - 12, 45, 45, 0, 0, members, members, size, where - size)
        locator = _LOCATOR.pack(_LOCATOR_BEGINS, 0, where, 1)
        last = _END.pack(_END_BEGINS, 0, 0, _MANY, _MANY, _LARGE, _LARGE, 0)
        return _Joined(self._parts, where, whole + locator + last)

    def _exactly(self, place: int, number: int) -> bytes:
        """Return so many bytes from a place on, or fewer at the end."""
        self.seek(place)
        content = b""
        while block := self.read(number - len(content)):
            content += block
        return content

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place, and return it."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length + len(self._tail)}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read what follows in one part, or in the tail."""
        left = self._length - self._position
        if left > 0:
            number = bisect.bisect_right(self.starts, self._position) - 1
            file = self._part(number)
            file.seek(self._position - self.starts[number])
            content = file.read(min(len(buffer), left))
        else:
            content = self._tail[-left : len(buffer) - left]
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _part(self, number: int) -> IO[bytes]:
        """Return the file of a part, which stays open until another one is asked for."""
        if self._opened is None or self._opened[0] != number:
            self._close_part()
            self._opened = number, self._parts[number].open("rb")
        return self._opened[1]

    def _close_part(self) -> None:
        if self._opened is not None:
            self._opened[1].close()

    def close(self) -> None:
        """Close the part that is open."""
        self._close_part()
        super().close()
