"""Debian packages that hold recordings: downloaded by apt-get, checked and unpacked, but not installed.

``packages.csv`` lists them: name, version and SHA-256, the licences of their recordings, and patterns of files that are
left out, because their licence allows less. Versions and checksums decide which recordings there are.
"""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from reference_model import InputError
from reference_model.data.audio import SUFFIXES
from reference_model.data.dataset import csv_rows
from reference_model.evidence.qt_resources import read_resources
from reference_model.evidence.sound_catalogue import read_catalogue
from reference_model.runtime.files import writing

PACKAGES = Path(__file__).with_name("packages.csv")
NOTHING = "-"  # is left out
# Files that hold other files, by their suffixes.
ARCHIVES: dict[str, Callable[[bytes], Iterator[tuple[str, bytes]]]] = {".rcc": read_resources, ".cat": read_catalogue}


@dataclass(frozen=True)
class Package:
    """A Debian package."""

    name: str
    version: str
    sha256: str  # of its file
    licences: str  # of the recordings in it that are used
    left_out: str  # pattern of files that are not used, or "-"


def read_packages(table: Path = PACKAGES) -> list[Package]:
    """Return the packages of the table, in its order."""
    rows = (row for _, row in csv_rows(table))
    next(rows)
    return [Package(*row) for row in rows]


def fetch(package: Package, folder: Path) -> Path:
    """Return the file of a package in a folder; apt-get downloads it if it is not there.

    Raises:
        InputError: apt-get has no such package, or the file has another checksum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if found := sorted(folder.glob(f"{package.name}_*.deb")):
        return _checked(package, found[0])
    with writing(folder), TemporaryDirectory(dir=folder, prefix=".") as part:
        Path(part).chmod(0o755)
        wanted = f"{package.name}={package.version}"
        _call(["apt-get", "download", "-q", wanted], part, f"{wanted} (or its file in {folder})")
        (downloaded,) = Path(part).glob("*.deb")
        os.replace(_checked(package, downloaded), folder / downloaded.name)
    return folder / downloaded.name


def _checked(package: Package, file: Path) -> Path:
    got = hashlib.sha256(file.read_bytes()).hexdigest()
    if got != package.sha256:
        raise InputError(
            f"expected {package.name} {package.version} with SHA-256 {package.sha256} at {file}, got {got}"
        )
    return file


def _call(command: list[str], folder: str | Path, wanted: str) -> None:
    """Run a program of Debian in a folder; an InputError tells its last words if it fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError as error:
        raise InputError(f"expected {command[0]} to get {wanted}, got no such program; Debian has it") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if not line.startswith("W:")] or ["no reason"]
        raise InputError(f"expected {command[0]} to get {wanted}, got: {said[-1]}")


def unpack(package: Package, file: Path, folder: Path) -> list[Path]:
    """Unpack a package, with the archives in it, and return the audio files that may be used, sorted.

    What an archive holds gets into a folder of the archive's name. Paths are relative to ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _call(["dpkg-deb", "-x", str(file.resolve()), "."], folder, f"the files of {file}")
    for archive in sorted(path for path in folder.rglob("*") if path.suffix in ARCHIVES and path.is_file()):
        try:
            for name, content in ARCHIVES[archive.suffix](archive.read_bytes()):
                if name.lower().endswith(SUFFIXES):
                    place = archive.with_suffix("") / name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content)
        except InputError as error:
            raise InputError(f"{error}, in {archive.relative_to(folder)} of {package.name}") from error
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in SUFFIXES and (package.left_out == NOTHING or not path.match(package.left_out))
    )
