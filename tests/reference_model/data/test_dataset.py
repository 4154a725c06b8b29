"""A table of clips is read whole or refused with all its faults, and its names lead to no other folder."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_model import InputError
from reference_model.data.dataset import captions_of, read_split


def write_csv(root: Path, text: str, *, split: str = "test", encoding: str = "utf-8") -> Path:
    path = root / "Mini" / "csv_files" / f"{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def refusal(tmp_path: Path, text: str) -> str:
    write_csv(tmp_path, text)
    with pytest.raises(InputError) as refused:
        read_split(tmp_path, "Mini", "test")
    return str(refused.value)


CATS = "".join(f"b{k}.wav,a cat {k}\n" for k in range(50))


@pytest.mark.parametrize(
    "text, line",
    [
        (f'file_name,caption\na.wav,"a dog barks\n{CATS}', 2),
        (f'file_name,caption\n{CATS}z.wav,"a dog\n', 52),
        (f'file_name,caption\n"a.wav,a dog\n{CATS}', 2),
        (f'file_name,caption\n{CATS}a.wav,"a dog\n{CATS}c.wav,"a ""cat"""\n', 52),  # closed by a later row
        (f'file_name,caption\na.wav,"a dog\nb.wav,a cat\nc.wav,"\n{CATS}', 2),
        (f'file_name,caption\na.wav,"a dog\nb.wav,a cat\nc.wav,says "" and "\n{CATS}', 2),
        (f'"file_name,caption\n{CATS}', 1),
        (f'file_name,caption\na.wav,"a dog\n{CATS * 200}', 2),  # more than a field of the csv module may have
    ],
)
def test_a_quotation_mark_that_is_not_closed_swallows_no_row(tmp_path: Path, text: str, line: int) -> None:
    assert f"from line {line} to line " in refusal(tmp_path, text)


def test_a_caption_of_several_lines_is_one(tmp_path: Path) -> None:
    write_csv(tmp_path, 'file_name,caption\na.wav,"a dog,\nand a cat"\nb.wav,"two\n\nlines, and a comma"\n')
    captions = captions_of(read_split(tmp_path, "Mini", "test"))
    assert captions == ["a dog,\nand a cat", "two\n\nlines, and a comma"]


def test_all_bad_rows_are_named_at_once(tmp_path: Path) -> None:
    rows = ["a.wav,a dog", "b.wav", "../c.wav,a cat", ",a cow", "d.wav,", 'e.wav,"a "hen"', "", "f.wav,a pig"]
    message = refusal(tmp_path, "file_name,caption\n" + "\n".join(rows) + "\n")
    assert message.startswith("expected tables without faults, got 6:\n")
    for line in (3, 4, 5, 6, 7, 8):
        assert message.count(f" line {line} of ") == 1, message


@pytest.mark.parametrize("end", ["\n", "\n\n\n", "\n \n", "\n,\n,\n", "\r\n\r\n", "\n\t\n,\n\n"])
def test_blank_last_lines_are_skipped(tmp_path: Path, end: str) -> None:
    write_csv(tmp_path, f"file_name,caption\na.wav,One{end}")
    assert captions_of(read_split(tmp_path, "Mini", "test")) == ["One"]


@pytest.mark.parametrize("name", ["../x.wav", "a/b.wav", "/tmp/x.wav", ".", "..", "a\0.wav", "\0"])
def test_names_lead_to_no_other_folder(tmp_path: Path, name: str) -> None:
    """One rule for files in tables and for data sets."""
    assert "expected the name of a file, not a path, in line 2 of " in refusal(
        tmp_path, f"file_name,caption\n{name},x\n"
    )
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="expected the name of a file, not a path, as --dataset, got"):
            read_split(root, name, "test")
    with pytest.raises(InputError, match="expected at most 255 bytes as --dataset, got 256"):
        read_split(tmp_path, "é" * 128, "test")


@given(st.text(st.sampled_from('ab,"\n\r é\0/.'), max_size=60))
def test_any_table_is_read_or_refused_in_words(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_csv(Path(folder), f"file_name,caption\n{text}")
        try:
            clips = read_split(folder, "Mini", "test")
        except InputError as error:
            assert "expected" in str(error)  # noqa: PT017
        else:
            assert all(clip.path.parent == Path(folder) / "Mini/waveforms/test" for clip in clips)
            assert all(caption.strip() for caption in captions_of(clips))
