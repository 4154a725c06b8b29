"""Reader of Qt resource files (``.rcc``), in which a Qt program ships a tree of files.

The format is that of Qt's ``rcc`` tool, versions 1 to 3, in big-endian numbers: a header with the places of three
tables, the tree of nodes, the contents, and the names in UTF-16.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from reference_model import InputError

MAGIC = b"qres"
VERSIONS = (1, 2, 3)
COMPRESSED, DIRECTORY, ZSTANDARD = 1, 2, 4  # flags of a node
MOST_NODES = 100_000
LARGEST = 2**26  # bytes of one file's content


class _Tables(NamedTuple):
    tree: int
    contents: int
    names: int
    node_size: int


def read_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file in a resource file. Those that are compressed by Zstandard are left out.

    Raises:
        InputError: the data are no resource file, or a damaged one.
    """
    try:
        yield from _files(data, _tables(data))
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"expected a Qt resource file, got a damaged one ({error})") from error


def _tables(data: bytes) -> _Tables:
    magic, version, tree, contents, names = struct.unpack_from(">4s4I", data)
    if magic != MAGIC or version not in VERSIONS:
        raise InputError(f"expected a Qt resource file of version 1 to 3, got one that begins with {data[:8]!r}")
    return _Tables(tree, contents, names, node_size=14 if version == 1 else 22)


def _files(data: bytes, tables: _Tables) -> Iterator[tuple[str, bytes]]:
    waiting = [(0, "")]  # index of a node, and its path
    seen = 0
    while waiting:
        index, path = waiting.pop()
        seen += 1
        place = tables.tree + index * tables.node_size
        name, flags = struct.unpack_from(">IH", data, place)
        if index:
            path = f"{path}/{_name(data, tables.names + name)}" if path else _name(data, tables.names + name)
        if flags & DIRECTORY:
            number, first = struct.unpack_from(">II", data, place + 6)
            if seen + len(waiting) + number > MOST_NODES:
                raise InputError(f"expected a Qt resource file of at most {MOST_NODES} nodes, got more")
            waiting += [(child, path) for child in range(first, first + number)]
        elif not flags & ZSTANDARD:
            (content,) = struct.unpack_from(">I", data, place + 10)
            yield path, _content(data, tables.contents + content, compressed=bool(flags & COMPRESSED))


def _name(data: bytes, place: int) -> str:
    """Return a name in the table of names: its length, a hash, and its characters."""
    (length,) = struct.unpack_from(">H", data, place)
    name = _bytes(data, place + 6, 2 * length).decode("utf-16-be")
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InputError(f"expected names of files in a Qt resource file, got {name!r}")
    return name


def _content(data: bytes, place: int, *, compressed: bool) -> bytes:
    """Return the content of a file: its length, and its bytes, which begin with another length if compressed."""
    (length,) = struct.unpack_from(">I", data, place)
    stored = _bytes(data, place + 4, length)
    if not compressed:
        return stored
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(stored[4:], LARGEST)
    if not decompressor.eof:
        raise InputError(f"expected at most {LARGEST} bytes of each file in a Qt resource file, got more or a part")
    return content


def _bytes(data: bytes, place: int, length: int) -> bytes:
    if place + length > len(data):
        raise struct.error(f"{length} bytes at {place} of {len(data)}")
    return data[place : place + length]
