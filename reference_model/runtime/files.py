"""Files and folders that are written whole or not at all: beside their place, then renamed."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from reference_model import InputError

Settings = Mapping[str, Any]


@contextmanager
def _empty_folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a place and remove it at the end; what a killed process left there goes first."""
    folder = path.with_name(f".{path.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file in a new folder beside its place, then move it there.

    It is on the disk before it is moved, so a computer that loses power keeps the old file or the new one.
    """
    with _empty_folder_beside(path) as folder:
        beside = folder / path.name
        write(beside)
        beside.chmod(folder.stat().st_mode & 0o666)  # the permissions of any new file; some writers give fewer
        _flush(beside)
        os.replace(beside, path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, and move it to the place of ``folder``, which must be free, at the end of the block."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _empty_folder_beside(folder) as beside:
        yield beside
        os.replace(beside, folder)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8."""
    atomic_write(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file whose content is an object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def require_same_settings(
    folder: Path, stored: Settings, given: Settings, *, expected: str = "of these settings", got: str = "others in {}"
) -> None:
    """Refuse a folder whose content was made with other settings; the message puts those that differ for ``{}``."""
    names = [name for name in dict.fromkeys([*stored, *given]) if stored.get(name) != given.get(name)]
    if names:
        different = "; ".join(f"{name} {stored.get(name)} there, {given.get(name)} here" for name in names)
        raise InputError(
            f"expected {folder} to be {expected}, got {got.replace('{}', different)}; choose another --out"
        )


def replace_folder(folder: Path, write: Callable[[Path], object], *, names: Collection[str], kind: str) -> None:
    """Write a folder beside its place, then move it there; one of this kind, with no other names, is replaced.

    Raises:
        InputError: the place is taken by something else, or cannot be written.
    """
    folder = folder.absolute()
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # a killed process left it between the two moves
        os.replace(old, folder)
    foreign = sorted({path.name for path in folder.iterdir()} - set(names)) if folder.is_dir() else []
    if foreign or (folder.exists() and not folder.is_dir()):
        got = f"a folder with {foreign[0]}" if foreign else "a file"
        raise InputError(f"expected {folder} to be new, empty or {kind} and nothing else, got {got}")
    try:
        with atomic_folder(folder) as beside:
            write(beside)
            for path in beside.rglob("*"):
                if path.is_file():
                    _flush(path)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                os.replace(folder, old)
    except (SafetensorError, OSError) as error:
        raise InputError(f"expected to write {folder}, got: {error}") from error
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(old, ignore_errors=True)
