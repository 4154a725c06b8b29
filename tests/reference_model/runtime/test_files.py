"""A file is there whole or not at all."""

from pathlib import Path

import pytest

from reference_model.runtime.files import atomic_write, write_text


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def half(beside: Path) -> None:
        beside.write_text("ne")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        atomic_write(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".a.json.part"
    left.mkdir()
    (left / ".tmpXYZ").write_text("half")
    write_text(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
