"""Files and folders that are written whole or not at all: beside their place, then renamed."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from reference_model import InputError, reason_of
from reference_model.runtime.lease import PART, Busy, held_lock

LONGEST_NAME = 255  # bytes of a file's name, on all usual file systems

Settings = Mapping[str, Any]


class NotWritten(InputError, OSError):
    """A file or a folder cannot be written: there is no room, or no permission."""

    reason = ""


def fit_name(name: str, *, before: str = "", after: str = "") -> str:
    """Return a name with something before and after it; one that is too long is cut, and has a checksum instead."""
    whole = f"{before}{name}{after}"
    if len(os.fsencode(whole)) <= LONGEST_NAME:
        return whole
    checksum = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f"{before}{os.fsencode(name)[:180].decode(errors='ignore')}-{checksum}{after}"


def require_file(path: Path) -> None:
    """Refuse a folder, and a pipe or a device, of which a reader might wait for ever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # the reader says why
    if not stat.S_ISREG(mode):
        raise InputError(f"expected a file at {path}, got {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Convert the errors of writing to NotWritten; torch and libsndfile raise a RuntimeError on a full disk."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = error.reason if isinstance(error, NotWritten) else reason_of(error)
        refused = NotWritten(f"expected to write {place}, got: {reason}")
        refused.reason = reason
        raise refused from error


@contextmanager
def _empty_folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a place and remove it at the end; what a killed process left there goes first.

    Where this process has locked the folder of the place, the new folder bears the name of the lock. So a process that
    takes the lock over can remove it, and no path of this process leads into what that one writes.

    Raises:
        Busy: another process has taken the lock.
    """
    lock = held_lock(path.parent)
    folder = path.with_name(fit_name(path.name, before=".", after=f".{lock.token}{PART}" if lock else PART))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        if lock:
            lock.require()
        yield folder
    except Exception:
        if lock:
            lock.require()  # without the lock, any error is that one
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Move a file or a folder, unless another process has taken the lock of a folder that it is in."""
    for folder in (source.parent, target.parent):
        if lock := held_lock(folder):
            lock.require()
    os.replace(source, target)


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file in a new folder beside its place, then move it there.

    It is on the disk before it is moved, so a computer that loses power keeps the old file or the new one.

    Raises:
        NotWritten: there is no room, or no permission.
    """
    with writing(path), _empty_folder_beside(path) as folder:
        beside = folder / path.name
        write(beside)
        beside.chmod(folder.stat().st_mode & 0o666)  # the permissions of any new file; some writers give fewer
        _flush(beside)
        _move(beside, path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def atomic_folder(
    folder: Path, write: Callable[[Path], object], *, check: Callable[[Path], object] = lambda _: None
) -> None:
    """Write a folder in a new folder beside its place, then move it there; ``check`` refuses one that is not replaced.

    Raises:
        NotWritten: there is no room, or no permission.
    """
    folder = folder.resolve()
    old = folder.with_name(fit_name(folder.name, before=".", after=".old"))  # is there between the two moves alone
    if old.exists():
        check(old)
        if not folder.exists():  # a killed process left it
            os.replace(old, folder)
    if folder.exists():
        check(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _empty_folder_beside(folder) as part:
            beside = part / folder.name
            beside.mkdir()
            write(beside)
            for path in beside.rglob("*"):
                if path.is_file():
                    _flush(path)
            if old.exists():
                shutil.rmtree(old)
            if held_lock(folder.parent):
                old = part / old.name  # without the lock, there is no such folder to move anything into
            if folder.exists():
                _move(folder, old)
            try:
                _move(beside, folder)
            except (OSError, Busy):
                if old.exists():
                    os.replace(old, folder)
                raise
            if old.exists():
                os.replace(old, beside)  # it goes with the folder beside


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8."""
    atomic_write(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


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
