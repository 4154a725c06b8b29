"""A manifest is read as it was written, anything else is refused, and its checksums are used by split."""

import hashlib
import re
from pathlib import Path

import pytest

from reference_model import InputError
from reference_model.data import manifest
from reference_model.data.dataset import Clip
from reference_model.data.manifest import MANIFEST_COLUMNS, ManifestRow, audio_checksums, read_manifest, write_manifest

HEADER = ",".join(MANIFEST_COLUMNS)
ROWS = [
    ManifestRow("train", " a, \"b\" 'c'.wav", "ok", 1 / 3, 44_100, 2, 1.0000001, "aa"),
    ManifestRow("train", "d.wav", "silent", 2.5, 22_050, 1, reason='peak, "low"'),
    ManifestRow("val", "e.wav", "missing", reason="no file of this clip"),
    ManifestRow("test", "f.wav", "ok", 2.0, 8_000, 1, 0.5, "aa"),
]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(path, [])
    assert read_manifest(path) == []
    write_manifest(path, ROWS)
    assert read_manifest(path) == ROWS


@pytest.mark.parametrize(
    "content", ["", "file_name,caption\n", f"{HEADER}\ntoo,few\n", f"{HEADER}\ntrain,a.wav,ok,long,,,,,\n"]
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"expected a manifest of prepared clips at .*manifest\.csv, got "):
        read_manifest(path)


def test_equal_sounds_are_listed_when_they_are_in_different_splits() -> None:
    assert manifest.in_several_splits(ROWS) == [f"train {ROWS[0].file_name!r} = test 'f.wav'"]
    assert manifest.in_several_splits([ROWS[0], ROWS[0]]) == []


def test_the_summary_counts_clips_by_split_and_status_beside_the_paper() -> None:
    hours = [ManifestRow("test", "g.wav", "ok", 3600 * 36.5), ManifestRow("test", "h.wav", "silent", 3600)]
    lines = manifest.summary("Clotho", [*ROWS, *hours]).splitlines()
    assert [re.split(" {2,}", line) for line in lines] == [
        ["split", "listed", *manifest.STATUSES, "paper", "hours", "GB"],
        ["train", "2", "1", "0", "0", "0", "0", "1", "3,839", "0.00", "0.00"],
        ["val", "1", "0", "1", "0", "0", "0", "0", "1,045", "0.00", "0.00"],
        ["test", "3", "2", "0", "0", "0", "0", "1", "1,045", "36.50", "16.82"],  # of 32,000 samples of 4 bytes a second
        ["all", "6", "3", "1", "0", "0", "0", "2", "5,929", "36.50", "16.82"],
    ]
    assert "paper" not in manifest.summary("Mine", ROWS)


def test_checksums_are_those_of_the_split_or_of_the_file(tmp_path: Path) -> None:
    """The same file name in two splits is two sounds."""
    clips = {}
    for split in ("train", "test"):
        path = tmp_path / "Mine" / "waveforms" / split / "same.wav"
        path.parent.mkdir(parents=True)
        path.write_bytes(split.encode())
        clips[split] = [Clip(path, ("x",))]
    computed = {split: [hashlib.sha256(split.encode()).hexdigest()] for split in clips}
    assert {split: audio_checksums(tmp_path, "Mine", split, clips[split]) for split in clips} == computed
    write_manifest(tmp_path / "Mine" / "manifest.csv", [ManifestRow("train", "same.wav", "ok", sha256="aa")])
    assert audio_checksums(tmp_path, "Mine", "train", clips["train"]) == ["aa"]
    assert audio_checksums(tmp_path, "Mine", "test", clips["test"]) == computed["test"]
