"""Clips and captions of a data set, read from disk.

The layout is the same for every data set::

    ROOT/NAME/csv_files/{train,val,test}.csv    file_name,caption  or  file_name,caption_1,...,caption_5
    ROOT/NAME/waveforms/{train,val,test}/FILE_NAME

Rows with the same file name are one clip. A file name is unique within its split only, and is never changed: real names
begin with spaces or hyphens, and contain quotes and HTML entities.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reference_model import InputError
from reference_model.runtime.files import atomic_write

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Clip:
    """An audio file and its captions, one or more."""

    path: Path
    captions: tuple[str, ...]


def csv_rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file with their line numbers, the header first; as many fields in each, all with text."""
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        header: list[str] = []
        try:
            for row in reader:
                header = header or row
                if len(row) != len(header) or not all(map(str.strip, row)):
                    where = f"line {reader.line_num} of {table}"
                    raise InputError(f"expected {len(header)} fields with text in {where}, got {row}")
                yield reader.line_num, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"expected a CSV file in UTF-8 at {table}, got {error}") from error


def write_csv(table: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8, completely or not at all; the first row is the header."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)

    atomic_write(table, write)


def read_split(root: str | Path, dataset: str, split: str) -> list[Clip]:
    """Return the clips of a split, in the order of its CSV file; an InputError names file and line."""
    table = Path(root) / dataset / "csv_files" / f"{split}.csv"
    if not table.is_file():
        remedy = f"prepare --dataset {dataset} makes it, and --data names the folder that holds {dataset}/"
        raise InputError(f"expected the captions of the {split} split at {table}, got no file; {remedy}")
    captions: dict[str, list[str]] = {}
    for name, *texts in _clip_rows(table):
        captions.setdefault(name, []).extend(texts)
    if not captions:
        raise InputError(f"expected at least one clip in {table}, got the header alone")
    folder = Path(root) / dataset / "waveforms" / split
    return [Clip(folder / name, tuple(texts)) for name, texts in captions.items()]


def _clip_rows(table: Path) -> Iterator[list[str]]:
    """Yield the rows of a table of clips: a file name, then captions."""
    numbered = csv_rows(table)
    _, header = next(numbered, (1, []))
    if len(header) < 2 or header[0] != "file_name" or not all(c.startswith("caption") for c in header[1:]):
        got = ",".join(header) or "nothing"
        raise InputError(f"expected the header file_name,caption or file_name,caption_1,... in {table}, got {got}")
    yield from (row for _, row in numbered)


def read_captions(file: Path) -> list[str]:
    """Return the captions in a text file, one a line without empty lines; or those of a table of clips (``.csv``)."""
    if not file.is_file():
        raise InputError(f"expected a file of captions at {file}, got {'a folder' if file.is_dir() else 'no file'}")
    if file.suffix.lower() == ".csv":
        captions = [caption for _, *texts in _clip_rows(file) for caption in texts]
    else:
        try:
            with file.open(encoding="utf-8-sig") as lines:
                captions = [line.strip() for line in lines if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"expected captions in UTF-8, one a line, in {file}, got {error}") from error
    if not captions:
        raise InputError(f"expected at least one caption in {file}, got none")
    return captions


def captions_of(clips: list[Clip]) -> list[str]:
    """Return all captions, clip by clip."""
    return [caption for clip in clips for caption in clip.captions]


def clip_of_caption(clips: list[Clip]) -> Tensor:
    """Return the index of its clip for every caption, ``[M]``."""
    return torch.repeat_interleave(torch.tensor([len(clip.captions) for clip in clips]))
