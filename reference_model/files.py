"""Files are written whole or not at all: beside, then renamed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make the file in a folder of its own beside the place, then move it there.

    It is on the disk before it is moved, so that a computer that loses power keeps the old file or the new one. What a
    killed process has left, the next one that writes the same file clears away.
    """
    folder = path.with_name(f".{path.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        beside = folder / path.name
        write(beside)
        beside.chmod(folder.stat().st_mode & 0o666)  # as any new file; some writers make it their user's alone
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill beside the place of this one, which must be free, and to which it is moved at the end."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """JSON, indented."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
