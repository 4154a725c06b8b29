"""Reader of the sound catalogue of OpenTTD (``.cat``), in which a sound set ships its WAV files.

A table of places and sizes comes first, in little-endian numbers; the first place says how long the table is. At each
place there is the title, behind its length and with a NUL at its end, then a WAV file of that size. The highest bit of
a place says that the sizes are those of the files.
"""

import re
import struct
from collections.abc import Iterator

from reference_model import InputError

PLACE = 2**31 - 1  # bits of a place


def read_catalogue(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the WAV files of a catalogue, under their numbers and titles, such as ``52-wind.wav``.

    Raises:
        InputError: the data are no catalogue, or a damaged one.
    """
    try:
        (first,) = struct.unpack_from("<I", data)
        for number in range((first & PLACE) // 8):
            place, size = struct.unpack_from("<II", data, 8 * number)
            yield _sound(data, number, place & PLACE, size)
    except struct.error as error:
        raise InputError(f"expected a sound catalogue, got a damaged one ({error})") from error


def _sound(data: bytes, number: int, place: int, size: int) -> tuple[str, bytes]:
    (length,) = struct.unpack_from("B", data, place)
    title = data[place + 1 : place + 1 + length].rstrip(b"\0").decode("latin-1")
    wav = data[place + 1 + length : place + 1 + length + size]
    if len(wav) < size or not wav.startswith(b"RIFF"):
        raise InputError(f"expected a WAV file of {size} bytes as number {number} of a sound catalogue, got none")
    quoted = re.match('"([^"]*)"', title)
    words = re.findall("[a-z0-9]+", (quoted[1] if quoted else title).lower())
    return f"{number:02d}-{'-'.join(words[:6])}.wav", wav
