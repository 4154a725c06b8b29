"""Qt resource files and sound catalogues."""

import struct
import zlib
from typing import Any

Tree = dict[str, Any]  # name to content, or to another tree


def resources(tree: Tree, *, version: int = 3, flags: int = 0) -> bytes:
    """Return a resource file. Its files are compressed where the flags say so (1)."""
    names, contents, nodes = b"", b"", [b""]
    waiting: list[tuple[int, str, Any]] = [(0, "", tree)]
    time = b"" if version == 1 else bytes(8)
    while waiting:
        index, name, value = waiting.pop(0)
        begin = struct.pack(">I", len(names))
        names += struct.pack(">HI", len(name.encode("utf-16-be")) // 2, 7) + name.encode("utf-16-be")
        if isinstance(value, dict):
            nodes[index] = begin + struct.pack(">HII", 2, len(value), len(nodes)) + time
            waiting += [(len(nodes) + k, *item) for k, item in enumerate(value.items())]
            nodes += [b""] * len(value)
        else:
            nodes[index] = begin + struct.pack(">HHHI", flags, 0, 1, len(contents)) + time
            stored = struct.pack(">I", len(value)) + zlib.compress(value) if flags & 1 else value
            contents += struct.pack(">I", len(stored)) + stored
    places = [20 + (4 if version == 3 else 0)]
    for table in (b"".join(nodes), contents):
        places.append(places[-1] + len(table))
    header = struct.pack(">4s4I", b"qres", version, *places) + (bytes(4) if version == 3 else b"")
    return header + b"".join(nodes) + contents + names


def catalogue(sounds: list[tuple[bytes, bytes]]) -> bytes:
    """Return a sound catalogue of titles with WAV files."""
    table, rest = b"", b""
    for title, wav in sounds:
        table += struct.pack("<II", 8 * len(sounds) + len(rest) | 2**31, len(wav))
        rest += bytes([len(title) + 1]) + title + b"\0" + wav + bytes([4]) + b"a.w\0"  # the name that the file had
    return table + rest
