"""Clips and captions are read from disk unchanged; a table that does not follow the layout is refused."""

from pathlib import Path

import pytest

from reference_model import InputError
from reference_model.data.dataset import Clip, captions_of, clip_of_caption, read_split
from reference_model.data.layouts import read_download


def write_csv(root: Path, text: str, *, split: str = "test", encoding: str = "utf-8") -> None:
    path = root / "Mini" / "csv_files" / f"{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def test_one_caption_a_row_or_five(tmp_path: Path) -> None:
    write_csv(tmp_path, "file_name,caption\na.wav,One\nb.wav,Two\na.wav,Three\n")
    a, b = read_split(tmp_path, "Mini", "test")
    assert a == Clip(tmp_path / "Mini/waveforms/test/a.wav", ("One", "Three"))
    assert b.captions == ("Two",)
    write_csv(tmp_path, "file_name,caption_1,caption_2\na.wav,One,Two\n", split="val")
    (clip,) = read_split(tmp_path, "Mini", "val")
    assert clip.captions == ("One", "Two")
    assert captions_of([a, b]) == ["One", "Three", "Two"]
    assert clip_of_caption([a, b]).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "expected the header file_name,caption .* in .*test.csv, got nothing"),
        ("name,caption\na.wav,One\n", "expected the header file_name,caption .* got name,caption"),
        ("file_name\na.wav\n", "expected the header file_name,caption .* got file_name"),
        ("file_name,caption\n", "expected at least one clip in .*test.csv, got the header alone"),
        ("file_name,caption\na.wav,One\nb.wav\n", "expected 2 fields with text in line 3 of .*test.csv"),
        ("file_name,caption\na.wav,One\nb.wav, \n", "expected 2 fields with text in line 3 of .*test.csv"),
        ("file_name,caption\na.wav,One,Two\n", "expected 2 fields with text in line 2"),
        ("file_name,caption\na.wav,café\n", r"expected a CSV file in UTF-8 at .*test\.csv"),
    ],
)
def test_bad_tables_are_refused_in_training_and_in_a_download(tmp_path: Path, text: str, words: str) -> None:
    for split in ("train", "val"):
        write_csv(tmp_path, "file_name,caption\na.wav,One\n", split=split)
    write_csv(tmp_path, text, encoding="latin-1")
    with pytest.raises(InputError, match=words):
        read_split(tmp_path, "Mini", "test")
    with pytest.raises(InputError, match=words):
        read_download(tmp_path / "Mini", "Mini")


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected the captions of the val split at .*val\.csv, got no file"):
        read_split(tmp_path, "Mini", "val")
