"""Clips and captions of a data set, read from disk.

The layout is the same for every data set::

    ROOT/NAME/csv_files/{train,val,test}.csv    file_name,caption  or  file_name,caption_1,...,caption_5
    ROOT/NAME/waveforms/{train,val,test}/FILE_NAME

Rows with the same file name are one clip. A file name is unique within its split only, and is never changed: real names
begin with spaces or hyphens, and contain quotes and HTML entities.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reference_model import InputError
from reference_model.runtime.files import LONGEST_NAME, atomic_write

SPLITS = ("train", "val", "test")
_SHOWN = 200  # faults of tables in one message at most


@dataclass(frozen=True)
class Clip:
    """An audio file and its captions, one or more."""

    path: Path
    captions: tuple[str, ...]


class Refusals:
    """What is refused of something, collected to be named all at once."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep an InputError of the block instead of raising it."""
        try:
            yield
        except InputError as error:
            self.messages.append(str(error))

    def raise_all(self) -> None:
        """Raise an InputError with all messages, if there are any."""
        if self.messages:
            number = len(self.messages)
            head = [f"expected tables without faults, got {number}:"] if number > 1 else []
            more = [f"  and {number - _SHOWN} more"] if number > _SHOWN else []
            shown = [f"{'  ' if head else ''}{message}" for message in self.messages[:_SHOWN]]
            raise InputError("\n".join([*head, *shown, *more]))


def require_name(name: str, where: str) -> None:
    """Refuse a name of a file or folder with which one outside the data folder could be meant, or none at all."""
    separators = (os.sep, os.altsep or os.sep, "\0")
    if name.strip() in ("", ".", "..") or any(separator in name for separator in separators):
        raise InputError(f"expected the name of a file, not a path, {where}, got {name!r}")


def data_folder(root: str | Path, dataset: str) -> Path:
    """Return the folder of a data set in the folder of all data sets."""
    require_name(dataset, "as --dataset")
    if len(os.fsencode(dataset)) > LONGEST_NAME:
        raise InputError(f"expected at most {LONGEST_NAME} bytes as --dataset, got {len(os.fsencode(dataset))}")
    return Path(root) / dataset


def csv_rows(table: Path, refusals: Refusals | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file with their line numbers, the header first; as many fields in each, all with text.

    Blank lines at the end are skipped. All other rows are refused at the end, or collected in ``refusals``.
    """
    bad = refusals or Refusals()
    header: list[str] = []
    blank: list[int] = []  # lines, of which a row with text has not yet followed
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        while True:
            first = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                break
            except UnicodeDecodeError as error:
                bad.messages.append(f"expected a CSV file in UTF-8 at {table}, got {error}")
                break
            except csv.Error as error:
                where = f"from line {first} to line {reader.line_num} of {table}"
                bad.messages.append(f"expected quotation marks that are closed {where}, got none or others ({error})")
                continue
            if not any(map(str.strip, row)):
                blank.append(reader.line_num)
                continue
            header = header or row
            for line in blank:
                bad.messages.append(f"expected {len(header)} fields with text in line {line} of {table}, got none")
            blank.clear()
            if fault := _fault_of_row(row, header, f"line {reader.line_num} of {table}", first):
                bad.messages.append(fault)
            else:
                yield reader.line_num, row
    if refusals is None:
        bad.raise_all()


def _fault_of_row(row: list[str], header: list[str], where: str, first: int) -> str | None:
    if len(row) != len(header) or not all(map(str.strip, row)):
        return f"expected {len(header)} fields with text in {where}, got {row}"
    # A quotation mark that is closed by one of a later row swallows the rows between them.
    swallowed = (line for field in row for line in field.splitlines()[1:] if line.strip())
    for fields in csv.reader(swallowed):
        if len(fields) == len(header) and Path(fields[0]).suffix == Path(row[0]).suffix:
            got = f"another row in it: {','.join(fields)}"
            return f"expected a closing quotation mark in the row from line {first} to {where}, got {got}"
    return None


def write_csv(table: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8, completely or not at all; the first row is the header."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)

    atomic_write(table, write)


def read_split(root: str | Path, dataset: str, split: str) -> list[Clip]:
    """Return the clips of a split, in the order of its CSV file; an InputError names file and line."""
    table = data_folder(root, dataset) / "csv_files" / f"{split}.csv"
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


def _clip_rows(table: Path) -> list[list[str]]:
    """Return the rows of a table of clips: a file name, then captions."""
    refusals, rows = Refusals(), []
    numbered = csv_rows(table, refusals)
    _, header = next(numbered, (1, []))
    if len(header) < 2 or header[0] != "file_name" or not all(c.startswith("caption") for c in header[1:]):
        refusals.raise_all()
        got = ",".join(header) or "nothing"
        raise InputError(f"expected the header file_name,caption or file_name,caption_1,... in {table}, got {got}")
    for line, row in numbered:
        with refusals.collect():
            require_name(row[0], f"in line {line} of {table}")
            rows.append(row)
    refusals.raise_all()
    return rows


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
