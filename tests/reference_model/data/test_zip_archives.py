"""An archive in parts has the members that it had in one piece; other files are refused in words."""

import zipfile
from pathlib import Path

import miniature
import numpy as np
import pytest

from reference_model import InputError
from reference_model.data.zip_archives import Archive

CONTENT = {f"folder/{k}.flac": np.random.default_rng(k).bytes(100 * k) + bytes(200 * k) for k in range(12)}


@pytest.fixture(params=["numbers of 32 bits", "numbers of 64 bits"])
def archive(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive in one piece, some of whose members are compressed, with a comment at its end."""
    if "64" in request.param:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as file:
        for k, (name, content) in enumerate(CONTENT.items()):
            file.writestr(name, content, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[k % 2])
        file.comment = b"a comment"
    return tmp_path / "whole.zip"


@pytest.mark.parametrize("size", [101, 1_000, 5_000, 10**6])
def test_parts_are_read_as_the_whole(archive: Path, size: int) -> None:
    """Members, their headers, the list of members and the end may lie across several parts."""
    parts = miniature.split_archive(archive, size)
    assert (len(parts) == 1) == (size == 10**6)
    opened = Archive(archive)
    assert [member.filename for member in opened.members] == list(CONTENT)
    for name, content in reversed(CONTENT.items()):
        with opened.open(name) as file:
            assert file.read() == content
        assert opened.size(name) == len(content)


def test_every_part_is_needed(archive: Path) -> None:
    first, *_, last = miniature.split_archive(archive, 1_000)
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(
        InputError, match=r"expected a zip archive with all its parts at .*whole\.zip, got .*whole\.z01"
    ):
        Archive(archive)
    first.write_bytes(content)
    last.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"at .*whole\.zip, got a file that does not end like one$"):
        Archive(archive)


def test_damaged_ends_are_refused_or_read(archive: Path) -> None:
    """400 archives with bytes of the list of members and of the end replaced: one line, or members."""
    *_, last = miniature.split_archive(archive, 9_000)
    whole, random, refused = last.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        content = bytearray(whole)
        place = len(whole) - 1 - int(random.exponential(60)) % len(whole)
        content[place : place + 4] = random.bytes(int(random.integers(5)))
        last.write_bytes(content)
        try:
            opened = Archive(archive)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        else:
            assert len(opened.members) <= len(CONTENT)
    assert 50 < refused < 400
