"""Promises that the headers of audio files make about their length, and signs that the end of a file is missing."""

import re
import struct
from typing import BinaryIO

# Bytes. Programs that write to a pipe do not know the length, and leave 0 or a number from here on: SoX 0x7f000000 or
# 0x7ffff000, espeak-ng 0x7ffff000, arecord 0x80000000, FFmpeg 0xffffffff.
UNKNOWN_LENGTH = 0x7F000000

_OGG_PAGE = 27 + 255 + 255 * 255  # bytes; the longest page
_MOST_CHUNKS = 1000  # of a WAV file before its samples; real files have fewer than ten


def missing_end(file: BinaryIO, size: int) -> str | None:
    """Return how a WAV or an Ogg file of ``size`` bytes shows that its end is missing; None: it does not."""
    file.seek(0)
    start = file.read(24)
    if start[8:12] == b"WAVE" and start[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _missing_end_of_wav(file, size, ">" if start[:4] == b"RIFX" else "<")
    if start[:4] == b"riff":  # Sony Wave64, which begins with its own length after an id of 16 bytes
        return _missing(size, int.from_bytes(start[16:24], "little"))
    return _missing_end_of_ogg(file, size) if start[:4] == b"OggS" else None


def _missing(size: int, promised: int) -> str | None:
    return f"{size} of {promised} bytes" if size < promised < UNKNOWN_LENGTH else None


def _missing_end_of_wav(file: BinaryIO, size: int, order: str) -> str | None:
    """Judge by the chunk of the samples: what follows is no sound, and the length of the whole is often wrong."""
    position, long = 12, 0
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            break
        name, length = struct.unpack(f"{order}4sI", header)
        if name == b"ds64":  # of RF64, whose own lengths are 2^32 - 1
            long = int.from_bytes(file.read(16)[8:], "little")
        position += 8
        if name == b"data":
            return _missing(size, position + (long or length))
        position += length + length % 2
    file.seek(4)
    return _missing(size, 8 + struct.unpack(f"{order}I", file.read(4))[0])


def _missing_end_of_ogg(file: BinaryIO, size: int) -> str | None:
    """Judge by the last page: it is there to its last byte, and so is the packet that it ends with.

    A flag marks the last page of a stream, but recorders and radio stations leave it out.
    """
    file.seek(max(0, size - _OGG_PAGE - 3))
    tail = file.read()
    page = tail[tail.rindex(b"OggS") :] if b"OggS" in tail else b""
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    end = 27 + len(lengths) + sum(lengths)
    if page and (len(page) < end or len(lengths) < page[26]):
        return "its last page is incomplete"
    if lengths[-1:] == b"\xff":
        return "its last packet is incomplete"
    return "its last page is incomplete" if page[end:] in (b"O", b"Og", b"Ogg") else None


def promised_mp3_frames(file: BinaryIO) -> int | None:
    """Return the number of frames that the first frame of an MP3 file promises (Xing, Info, VBRI); None: it does not.

    Without such a frame the length can only be guessed from the bit rate of the first frames.
    """
    position = 0
    while True:
        file.seek(position)
        start = file.read(10)
        if start[:3] != b"ID3" or len(start) < 10:
            break
        length = 0
        for byte in start[6:10]:  # of 7 bits each
            length = length << 7 | byte
        position += 10 + length + 10 * bool(start[5] & 0x10)
    file.seek(position)
    # The lowest flag after the name says that the number follows.
    named = rb"(?:Xing|Info)\0{3}[\x01\x03\x05\x07\x09\x0b\x0d\x0f]|VBRI[\0-\xff]{10}"
    found = re.search(rb"(?:" + named + rb")([\0-\xff]{4})", file.read(4096))
    return int.from_bytes(found[1], "big") or None if found else None
