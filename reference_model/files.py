"""Files are written whole or not at all: beside, then renamed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make the file under another name in the same folder, then give it its name."""
    beside = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """JSON, indented."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
