"""Data sets of Hugging Face with the sounds inside, saved to disk or as parquet.

::

    RAW/SPLIT/state.json                                          DatasetDict.save_to_disk
    RAW/state.json                                                Dataset.save_to_disk
    RAW/data/SPLIT-00000-of-00010.parquet, RAW/SPLIT/*.parquet    and RAW/SPLIT.parquet, as hub repositories have them

A row has ``audio`` (the bytes of an audio file, and its name), and ``caption``, ``captions`` or ``caption_1``, ... Rows
of one ``youtube_id`` are one clip, as in AudioCaps; without that column, rows of equal sounds are.

Files are read from beginning to end, a few rows at a time: what was saved to disk with the package ``datasets``, and
parquet with ``pyarrow``, on which that is built. Nothing is downloaded, no code of a data set runs, and names in a row
are never opened.
"""

import functools
import hashlib
import itertools
import re
import reprlib
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reference_model import InputError, reason_of
from reference_model.data.dataset import Refusals, require_name
from reference_model.data.decoding import Fault
from reference_model.data.sources import AudioBytes, DownloadedClip
from reference_model.data.splits import is_split, name_splits
from reference_model.runtime.records import read_json

SAVED = "state.json"  # in the folder of a split that was saved to disk
_ROWS_AT_ONCE = 16
_BYTES_AT_ONCE = 2**20  # of a column; without a limit all bytes of a group of rows are read
_AUDIO, _BYTES, _VIDEO, _START, _FILE_NAME = "audio", "bytes", "youtube_id", "start_time", "file_name"


@dataclass(frozen=True)
class Table:
    """A parquet file, or the folder of a split that was saved to disk."""

    path: Path

    @functools.cached_property
    def modified(self) -> int:
        """Time of the newest file in nanoseconds."""
        files = self.path.iterdir() if self.path.is_dir() else [self.path]
        return max(file.stat().st_mtime_ns for file in files)

    def columns(self) -> set[str]:
        """Return the names of the columns; an InputError if there are no sounds among them."""
        with self._opened() as (schema, _):
            names: list[str] = schema.names
            audio = schema.field(_AUDIO).type if _AUDIO in names else None
        if audio is None or _BYTES not in [audio.field(k).name for k in range(audio.num_fields)]:
            got = ", ".join(names) if audio is None else f"one of {audio}"
            raise InputError(f"expected a column {_AUDIO} with the bytes of audio files in {self.path}, got {got}")
        return set(names)

    def rows(self, columns: list[str], first: int = 0) -> Generator[dict[str, Any], None, None]:
        """Yield the rows in order, from the first that is wanted on, with these columns alone.

        Raises:
            InputError: rows cannot be read; it says after which one.
        """
        read = first
        with self._opened() as (_, read_rows):
            try:
                for row in read_rows(columns, first):
                    read += 1
                    yield row
            except Exception as error:
                raise self._fault(f"{reason_of(error)} after row {read}") from error

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Callable[[list[str], int], Iterator[dict[str, Any]]]]]:
        """Yield the schema of the table and the function that reads it; any of its faults becomes an InputError."""
        try:
            if self.path.is_dir():
                # Under another name: the package takes some names for patterns, and others for addresses.
                with tempfile.TemporaryDirectory() as folder:
                    link = Path(folder) / "table"
                    link.symlink_to(self.path.resolve())
                    dataset = _datasets(self.path).load_from_disk(str(link), keep_in_memory=False).with_format(None)
                    yield dataset.features.arrow_schema, functools.partial(_read_saved, dataset)
            else:
                with _parquet(self.path).ParquetFile(self.path, buffer_size=_BYTES_AT_ONCE) as file:
                    yield file.schema_arrow, functools.partial(_read_parquet, file)
        except InputError:
            raise
        except Exception as error:  # whatever it is, it is this file's fault
            raise self._fault(reason_of(error)) from error

    def _fault(self, reason: str) -> InputError:
        return InputError(f"expected rows with sounds and captions in {self.path}, got {reason}")


def _read_saved(dataset: Any, columns: list[str], first: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set that was saved to disk; sounds are not decoded."""
    dataset = dataset.select_columns(columns).select(range(first, len(dataset)))
    if _AUDIO in columns:
        from datasets import Audio

        dataset = dataset.cast_column(_AUDIO, Audio(decode=False))
    yield from dataset


def _read_parquet(file: Any, columns: list[str], first: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, one group of rows after the other: a damaged one leaves the others readable."""
    begin = 0
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if first < end:
            batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from itertools.islice(rows, max(first - begin, 0), None)
        begin = end


def _datasets(path: Path) -> Any:
    """Return the package ``datasets``, without its progress bars and messages."""
    try:
        import datasets
    except ImportError as error:
        raise _no_package("datasets", path, error) from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def _parquet(path: Path) -> Any:
    """Return the module of the package ``pyarrow`` that reads parquet files."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise _no_package("pyarrow", path, error) from error
    return pyarrow.parquet


def _no_package(name: str, path: Path, error: ImportError) -> InputError:
    remedy = "pip install -c constraints.txt -r requirements/datasets.txt"
    return InputError(f"expected the package {name}, which reads {path}, got {error}; {remedy}")


def find_tables(raw: Path) -> dict[str, list[Table]]:
    """Return the tables in a folder by train, val and test, those that it lacks left out; empty: it has no tables."""
    if (raw / SAVED).is_file():
        split = read_json(raw / SAVED, dict[str, Any], "the state of a data set").get("_split")
        return {name: [Table(raw)] for name in name_splits([re.split(r"\W", str(split or "train"))[0]], raw)}
    saved = {path.parent.name: [Table(path.parent)] for path in sorted(raw.glob(f"*/{SAVED}"))}
    found = saved or _parquet_files(raw)
    return {split: found[name] for split, name in name_splits(found, raw).items()} if found else {}


def _parquet_files(raw: Path) -> dict[str, list[Table]]:
    """Return the parquet files by the name of their split: the beginning of their own name, or that of their folder."""
    files: dict[str, list[Table]] = {}
    folders: set[Path] = set()
    for path in sorted(itertools.chain(*(raw.glob(f"{'*/' * depth}*.parquet") for depth in range(4)))):
        if any(part.startswith(".") for part in path.relative_to(raw).parts):
            continue
        name = re.sub(r"[-_.]\d+(?:[-_.].*)?$", "", path.stem)
        in_folder = not is_split(name) and path.parent != raw and is_split(path.parent.name)
        files.setdefault(path.parent.name if in_folder else name, []).append(Table(path))
        folders.add(path.parent.parent if in_folder else path.parent)
    if len(folders) > 1:
        got = ", ".join(sorted(str(folder.relative_to(raw)) for folder in folders))
        raise InputError(f"expected the parquet files of one data set in {raw}, got {got}; name the one that is meant")
    return files


def is_audiocaps(tables: dict[str, list[Table]]) -> bool:
    """Return whether the rows name videos, as those of AudioCaps alone do."""
    return any(_VIDEO in table.columns() for of_split in tables.values() for table in of_split[:1])


@dataclass
class _Clip:
    """A clip in the rows of a split."""

    identity: str  # of rows of this clip: the start in the video, or a checksum of the sound
    where: str  # its first row, which has its sound
    source: "_Row"
    captions: list[str] = field(default_factory=list)


def read_tables(tables: dict[str, list[Table]]) -> dict[str, list[DownloadedClip]]:
    """Return the clips of each split, in the order of their first rows; the sounds are read when their turn comes."""
    download: dict[str, list[DownloadedClip]] = {}
    refusals, sounds = Refusals(), _Sounds()
    for split, of_split in tables.items():
        clips: dict[str, _Clip] = {}
        of_sound: dict[str, _Clip] = {}
        for table in tqdm(of_split, f"reading the rows of {split}", leave=False, unit="file"):
            _add_rows(table, sounds, clips, of_sound, refusals)
        if not clips and not refusals.messages:
            raise InputError(f"expected at least one clip in {of_split[0].path}, got no rows")
        download[split] = [DownloadedClip(name, clip.source, tuple(clip.captions)) for name, clip in clips.items()]
    refusals.raise_all()
    return download


def _add_rows(
    table: Table, sounds: "_Sounds", clips: dict[str, _Clip], of_sound: dict[str, _Clip], refusals: Refusals
) -> None:
    """Add the rows of a table to the clips of its split, by name and by checksum; bad rows are collected."""
    there = table.columns()
    captions = _caption_columns(there, table.path)
    has_videos = _VIDEO in there
    names = (_VIDEO, _START) if has_videos else (_AUDIO, _FILE_NAME)
    with closing(table.rows([*captions, *(name for name in names if name in there)])) as rows:
        for number, row in enumerate(rows):
            with refusals.collect():
                where = f"row {number + 1} of {table.path}"
                texts = _captions(row, captions, where)
                if has_videos:
                    name, identity = _video_name(row[_VIDEO], where), str(row.get(_START))
                else:
                    name, identity = _name_of_sound(row, where)
                    if identity in of_sound:
                        of_sound[identity].captions += texts
                        continue
                require_name(name, f"in {where}")
                clip = clips.setdefault(name, _Clip(identity, where, _Row(sounds, table, number, name)))
                if clip.identity != identity:
                    other = "start_time" if has_videos else "sound"
                    raise InputError(f"expected one {other} for {name!r} of {clip.where}, got another in {where}")
                clip.captions += texts
                of_sound[identity] = clip


def _caption_columns(there: set[str], path: Path) -> list[str]:
    numbered = sorted(
        (name for name in there if re.fullmatch(r"caption_\d{1,3}", name)), key=lambda name: int(name[8:])
    )
    columns: list[list[str]] = [["captions"], ["caption"], numbered]
    fitting = [names for names in columns if names and there.issuperset(names)]
    if not fitting:
        got = ", ".join(sorted(there))
        raise InputError(f"expected a column caption, captions or caption_1, ... in {path}, got {got}")
    return fitting[0]


def _captions(row: dict[str, Any], columns: list[str], where: str) -> list[str]:
    """Return the captions of a row, which are texts or lists of texts."""
    values = [row[column] for column in columns]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"expected captions with text in {where}, got {reprlib.repr(texts)}")
    return texts


def _video_name(video: object, where: str) -> str:
    """Return the name that a clip of AudioCaps has in every layout."""
    if not isinstance(video, str) or not video.strip():
        raise InputError(f"expected a youtube_id in {where}, got {video!r}")
    return f"Y{video}.wav"


def _name_of_sound(row: dict[str, Any], where: str) -> tuple[str, str]:
    """Return the name of a clip, without folders, and a checksum of its sound; without a name that is made of it."""
    audio = row[_AUDIO] or {}
    content, name = audio.get(_BYTES), row.get(_FILE_NAME) or audio.get("path")
    if not isinstance(name or "", str) or not (name or content):
        raise InputError(f"expected the bytes of an audio file or its name in {where}, got {reprlib.repr(name)}")
    checksum = hashlib.sha256(content or f"no sound: {name}".encode()).hexdigest()
    return re.split(r"[/\\]", name)[-1] if name else f"{checksum[:16]}.wav", checksum


@dataclass(frozen=True)
class _Row:
    """The row with the sound of a clip."""

    sounds: "_Sounds"
    table: Table
    number: int
    name: str  # of the clip

    def read(self) -> AudioBytes | Fault | None:
        audio = self.sounds.of_row(self.table, self.number)
        return AudioBytes(audio, self.name, self.table.modified) if isinstance(audio, bytes) else audio


class _Sounds:
    """Reads the sounds of rows in their order, one table at a time; for an earlier row it opens the table again."""

    def __init__(self) -> None:
        self._table: Table | None = None  # that is open
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._next = 0

    def of_row(self, table: Table, number: int) -> bytes | Fault | None:
        """Return the sound of a row, or why it cannot be read; None: it has none."""
        if table != self._table or number < self._next:
            del self._rows  # it closes the table
            self._table, self._rows, self._next = table, table.rows([_AUDIO], number), number
        try:
            row = next(itertools.islice(self._rows, number - self._next, None), None)
        except InputError as error:  # of this row alone, perhaps: the next one opens the table again
            self._table = None
            return Fault("unreadable", str(error))
        self._next = number + 1
        if row is None:
            raise InputError(f"expected row {number + 1} of {table.path}, got another file than before")
        content: bytes | None = (row[_AUDIO] or {}).get(_BYTES)
        return content
