"""Packages that the tests build: downloaded by a stand-in of apt-get, checked, unpacked, with the archives in them."""

import csv
import dataclasses
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from archives import catalogue, resources

from reference_model import InputError
from reference_model.evidence.packages import PACKAGES, Package, fetch, read_packages, unpack

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb, of Debian, is not installed")

FILES = {
    "usr/share/doc/sounds-data/copyright": b"CC0",
    "usr/share/games/dog.ogg": b"bark",
    "usr/share/games/drum_kit.ogg": b"boom",
    "usr/share/games/readme.txt": b"text",
    "usr/share/games/all.rcc": resources({"deep": {"cat.wav": b"meow"}, "picture.svg": b"x"}),
    "usr/share/games/set.cat": catalogue([(b'"Heavy wind"', b"RIFF wind")]),
}
Build = Callable[..., Package]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build a package in the folder of the test's archive, and return its row of the table."""

    def build(files: Mapping[str, bytes] = FILES, *, name: str = "sounds-data", left_out: str = "-") -> Package:
        tree, archive = tmp_path / f"tree-{name}", tmp_path / "archive"
        for path, content in {**files, "DEBIAN/control": control(name)}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        archive.mkdir(exist_ok=True)
        file = archive / f"{name}_1%3a2.0_all.deb"
        subprocess.run(["dpkg-deb", "-Znone", "-b", str(tree), str(file)], check=True, capture_output=True)
        return Package(name, "1:2.0", hashlib.sha256(file.read_bytes()).hexdigest(), "CC0", left_out)

    return build


def control(name: str) -> bytes:
    lines = [f"Package: {name}", "Version: 1:2.0", "Architecture: all", "Maintainer: a <a@b.c>", "Description: a"]
    return "\n".join([*lines, ""]).encode()


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of apt-get, which takes packages from the folder of the test's archive and notes how it is called."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "apt-get"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "W: a warning" >&2\n'
        f'cp {tmp_path}/archive/"${{3%%=*}}"_*.deb . 2>/dev/null || {{ echo "E: no package $3" >&2; exit 100; }}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path / "calls"


def test_a_package_is_downloaded_once(tmp_path: Path, build: Build, calls: Path) -> None:
    package, debs = build(), tmp_path / "debs"
    file = fetch(package, debs)
    assert file == debs / "sounds-data_1%3a2.0_all.deb"
    assert fetch(package, debs) == file
    assert calls.read_text() == "download -q sounds-data=1:2.0\n"
    assert list(debs.iterdir()) == [file]


def test_another_package_is_refused(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    package, debs = build(), tmp_path / "debs"
    other = dataclasses.replace(package, sha256="0" * 64)
    with pytest.raises(InputError, match=rf"with SHA-256 0{{64}} at .*deb, got {package.sha256}$"):
        fetch(other, debs)
    assert not list(debs.iterdir())
    fetch(package, debs)
    with pytest.raises(InputError, match=r"expected sounds-data 1:2.0 with SHA-256 0{64}"):
        fetch(other, debs)
    absent = dataclasses.replace(package, name="absent")
    with pytest.raises(InputError, match=r"expected apt-get to get absent=1:2.0 .*debs\), got: E: no package absent"):
        fetch(absent, debs)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"expected apt-get to get absent=1:2.0 .*, got no such program"):
        fetch(absent, debs)


def test_the_audio_files_of_a_package_and_of_archives_in_it(tmp_path: Path, build: Build) -> None:
    package = build(left_out="drum_kit.ogg")
    found = unpack(package, fetch(package, tmp_path / "debs"), tmp_path / "unpacked")
    content = {
        path.relative_to("usr/share/games").as_posix(): (tmp_path / "unpacked" / path).read_bytes() for path in found
    }
    assert content == {"all/deep/cat.wav": b"meow", "dog.ogg": b"bark", "set/00-heavy-wind.wav": b"RIFF wind"}
    damaged = build({**FILES, "usr/share/games/all.rcc": b"no resources"}, name="damaged")
    with pytest.raises(InputError, match=r"expected a Qt resource file, got .*/all.rcc of damaged$"):
        unpack(damaged, fetch(damaged, tmp_path / "debs"), tmp_path / "other")


def test_the_table_of_packages() -> None:
    packages = read_packages()
    assert len({package.name for package in packages}) == len(packages) > 5
    for package in packages:
        assert re.fullmatch("[0-9a-f]{64}", package.sha256)
        assert "CC" in package.licences or "GPL" in package.licences
    assert next(package for package in packages if package.name == "gcompris-qt-data").left_out == "drum_kit.ogg"
    with PACKAGES.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert rows == [dataclasses.asdict(package) for package in packages]
