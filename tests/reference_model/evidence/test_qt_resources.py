"""Qt resource files that the tests write, whole, damaged and malicious."""

import struct

import pytest
from archives import Tree, resources

from reference_model import InputError
from reference_model.evidence import qt_resources
from reference_model.evidence.qt_resources import read_resources

FILES: Tree = {"sounds": {"dog.ogg": b"bark", "deep": {"Übung.wav": b"x" * 5000}}, "a": b"", "empty": {}}
PATHS = {"sounds/dog.ogg": b"bark", "sounds/deep/Übung.wav": b"x" * 5000, "a": b""}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("flags", [0, 1])
def test_every_file_is_read(version: int, flags: int) -> None:
    assert dict(read_resources(resources(FILES, version=version, flags=flags))) == PATHS


def test_what_is_compressed_by_zstandard_is_left_out() -> None:
    assert not list(read_resources(resources(FILES, flags=4)))


@pytest.mark.parametrize("data", [b"", b"qres", b"RIFF" + bytes(40), resources(FILES, version=4)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="expected a Qt resource file"):
        list(read_resources(data))


def test_a_file_that_is_cut_anywhere_is_refused() -> None:
    whole = resources({"sounds": {"dog.ogg": b"bark"}}, flags=1)
    for end in range(len(whole)):
        with pytest.raises(InputError, match="expected a Qt resource file"):
            list(read_resources(whole[:end]))


@pytest.mark.parametrize("name", ["..", "a/b", "", "a\0"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="expected names of files in a Qt resource file"):
        list(read_resources(resources({"sounds": {name: b"bark"}})))


def test_what_is_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = bytearray(resources({"a": {"b": b""}}))
    struct.pack_into(">I", endless, 24 + 10, 0)  # the first child of the root is the root
    with pytest.raises(InputError, match="at most 100000 nodes, got more"):
        list(read_resources(bytes(endless)))
    monkeypatch.setattr(qt_resources, "LARGEST", 1000)
    with pytest.raises(InputError, match="at most 1000 bytes of each file"):
        list(read_resources(resources(FILES, flags=1)))
