"""The data sets that are known by name, and the layouts of their downloads.

A data set in the layout of :mod:`reference_model.data.dataset` needs no code: it is used by the name of its folder, and
``--clip-seconds`` gives the fixed length of its clips. Another data set that shall be known by name, or whose download
has another layout, is one entry of ``DATA_SETS``.

A download is recognised by the places of its three tables. A table names its clips by ``file_name``, or as AudioCaps
does by ``youtube_id`` and ``start_time``; audio files of the latter are found under the names that the usual tools give
them. The file names of clips are never changed. Downloads of other kinds have modules of their own:
:mod:`reference_model.data.hugging_face` and :mod:`reference_model.data.wavcaps`.
"""

import itertools
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from reference_model import InputError
from reference_model.data.audio import SUFFIXES
from reference_model.data.dataset import SPLITS, Refusals, csv_rows, require_name
from reference_model.data.hugging_face import find_tables, is_audiocaps, read_tables
from reference_model.data.sources import DownloadedClip
from reference_model.data.splits import complete
from reference_model.data.wavcaps import is_wavcaps, read_wavcaps


@dataclass(frozen=True)
class Layout:
    """The places of the tables and of the audio in a download."""

    table: str  # path of a table, with {} for the name of the split
    audio: str | None  # the folder with the audio of all splits; None: the one folder beside the tables
    splits: tuple[str, str, str] = SPLITS  # the names of train, val and test; audio may lie in folders of these names

    def tables(self, folder: Path) -> list[Path]:
        """Return the paths of the tables of train, val and test."""
        return [folder / self.table.format(split) for split in self.splits]


@dataclass(frozen=True)
class DataSet:
    """A data set that is known by name."""

    # Every clip is cut or zero-padded at its end to this length, so that its embedding depends on the clip alone and
    # not on the other clips of its batch.
    clip_seconds: float
    layouts: tuple[Layout, ...] = ()  # of its downloads
    column: str = ""  # a column that its tables alone have; empty: its layouts are its own

    def is_recognised(self, layout: Layout, header: list[str]) -> bool:
        """Return whether a download with this layout and header can only be this data set."""
        return self.column in header if self.column else layout in self.layouts


STANDARD = Layout("csv_files/{}.csv", "waveforms")
CLOTHO_SPLITS = ("development", "validation", "evaluation")
DATA_SETS = {
    "Clotho": DataSet(
        clip_seconds=30.0,  # section 3.1: the longest clip
        layouts=(
            Layout("clotho_captions_{}.csv", ".", CLOTHO_SPLITS),  # Zenodo record 4783391
            Layout("clotho_csv_files/clotho_captions_{}.csv", "clotho_audio_files", CLOTHO_SPLITS),  # aac-datasets
        ),
    ),
    "AudioCaps": DataSet(
        clip_seconds=10.0,  # section 3.1
        # The official tables beside audio from any tool, and aac-datasets before 0.7; aac-datasets since then.
        layouts=(Layout("{}.csv", None), Layout("csv_files_v1/{}.csv", None)),
        column="youtube_id",
    ),
    "Synthetic": DataSet(clip_seconds=1.5),  # rendered by synthetic.py in the standard layout
}
LAYOUTS = (STANDARD, *(layout for known in DATA_SETS.values() for layout in known.layouts))


def clip_seconds(dataset: str, given: float | None) -> float:
    """Return the fixed length of a data set's clips in seconds: the given one, or that of a known data set."""
    if given is None and dataset not in DATA_SETS:
        known = ", ".join(sorted(DATA_SETS))
        raise InputError(f"expected --clip-seconds for a data set other than {known}, got none for {dataset}")
    return DATA_SETS[dataset].clip_seconds if given is None else given


def read_download(
    raw: Path, dataset: str, *, audio: Path | None = None, hold_out: float | None = None, blacklist: str | None = None
) -> dict[str, list[DownloadedClip]]:
    """Return the clips of each split, in the order of its table.

    Args:
        raw: the folder of the tables; or one that contains it as ``AUDIOCAPS`` or ``CLOTHO_v2.1``, as aac-datasets
            makes it, where the name of the data set decides between several.
        dataset: the name of the data set.
        audio: the folder of the clips, if it is not beside the tables.
        hold_out: for a download without val or test, percent of the training clips that each of them gets.
        blacklist: for WavCaps, one of its lists of clips to leave out; see :mod:`reference_model.data.wavcaps`.
    """
    if hold_out is not None and not 0 < hold_out < 100:  # before any row is read
        raise InputError(f"expected --hold-out between 0 and 100 percent, got {hold_out:g}")
    if not raw.is_dir():
        raise InputError(f"expected a folder with a downloaded data set at {raw}, got no folder")
    if audio is not None and not audio.is_dir():
        got = "a file" if audio.exists() else "nothing"
        raise InputError(f"expected the folder of the clips at {audio}, got {got}")
    if blacklist is not None and not is_wavcaps(raw):
        raise InputError(f"expected --blacklist for WavCaps alone, got {blacklist} for {raw}")
    if (recognised := _recognise(raw, dataset)) is not None:
        download = _read_csv_files(*recognised, dataset, audio)
    elif tables := find_tables(raw):
        if audio is not None:
            raise InputError(f"expected no --audio for {raw}, whose tables hold the sounds, got {audio}")
        _refuse_another_data_set(dataset, raw, "AudioCaps" if is_audiocaps(tables) else dataset)
        download = read_tables(tables)
    elif is_wavcaps(raw):
        _refuse_another_data_set(dataset, raw, "WavCaps")
        download = {"train": read_wavcaps(raw, audio=audio, blacklist=blacklist)}
    else:
        raise _unknown_layout(raw, dataset)
    return complete(download, hold_out, raw)


def _read_csv_files(folder: Path, layout: Layout, dataset: str, audio: Path | None) -> dict[str, list[DownloadedClip]]:
    """Return the clips of the three tables of a layout."""
    if audio is None:
        audio = _folder_of_clips(folder) if layout.audio is None else folder / layout.audio
    _, header = next(csv_rows(layout.tables(folder)[0]), (1, [""]))
    found = next((name for name, known in DATA_SETS.items() if known.is_recognised(layout, header)), dataset)
    _refuse_another_data_set(dataset, folder, found)
    download: dict[str, list[DownloadedClip]] = {}
    refusals = Refusals()
    for split, name, table in zip(SPLITS, layout.splits, layout.tables(folder), strict=True):
        folders = [audio / part for part in (name, split) if (audio / part).is_dir()]
        with refusals.collect():
            download[split] = _read_clips(_read_table(table, refusals), (folders or [audio])[0])
    refusals.raise_all()
    _refuse_one_file_for_two_clips(download)
    return download


def _refuse_another_data_set(dataset: str, folder: Path, found: str) -> None:
    """Refuse Clotho under the name of AudioCaps: it would be cut to 10 seconds and compared with its results."""
    if dataset in DATA_SETS and DATA_SETS[dataset].layouts and found != dataset:
        raise InputError(f"expected tables of {dataset} in {folder}, got those of {found}; say --dataset {found}")


def _folders_inside(raw: Path, dataset: str) -> list[Path]:
    """Return the folders in which aac-datasets puts a data set: AUDIOCAPS, CLOTHO_v2.1."""
    return sorted(path for path in raw.iterdir() if path.is_dir() and path.name.startswith(dataset.upper()))


def _recognise(raw: Path, dataset: str) -> tuple[Path, Layout] | None:
    """Return the folder of the tables, ``raw`` or one in it, and its layout; None: it is none of LAYOUTS."""
    for folders in ([raw], _folders_inside(raw, dataset)):
        pairs = itertools.product(folders, LAYOUTS)
        fitting = [(folder, layout) for folder, layout in pairs if all(map(Path.is_file, layout.tables(folder)))]
        if len({folder for folder, _ in fitting}) > 1:
            names = ", ".join(folder.name for folder, _ in fitting)
            raise InputError(f"expected one download of {dataset} in {raw}, got {names}; name the one that is meant")
        if fitting:
            return fitting[0]
    return None


def _unknown_layout(raw: Path, dataset: str) -> InputError:
    """Return the refusal of a folder that holds no download, with the layouts and what is there."""
    inside = _folders_inside(raw, dataset)
    found = sorted(str(p.relative_to(raw)) + "/" * p.is_dir() for place in (raw, *inside) for p in place.iterdir())
    shown = ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")
    also = f" or in {', '.join(path.name for path in inside)} there" if inside else ""
    lines = [
        f"expected tables of one of these layouts in {raw}{also}:",
        *(f"  {layout.table.format('{' + ','.join(layout.splits) + '}')}" for layout in LAYOUTS),
        "  {train,validation,test}/state.json, or data/{train,validation,test}-*.parquet, of Hugging Face",
        "  json_files/SOURCE/*.json of WavCaps",
        f"got {shown or 'an empty folder'}",
    ]
    return InputError("\n".join(lines))


def _folder_of_clips(folder: Path) -> Path:
    """Return where the audio is if the layout does not say it: beside the tables, or in the one folder there."""
    beside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if any(path.name in SPLITS or _suffix(path.name) in SUFFIXES for path in beside):
        return folder
    folders = sorted(path for path in beside if path.is_dir() and not path.name.startswith("csv_files"))
    if len(folders) != 1:
        expected = f"one folder of clips beside the tables in {folder}, or a folder given by --audio"
        raise InputError(f"expected {expected}, got {', '.join(path.name for path in folders) or 'no folder'}")
    return folders[0]


@dataclass
class _TableRow:
    """A clip in a table: its captions, and the possible names of its audio file, the likeliest first.

    A name without an extension ends in a dot.
    """

    candidates: tuple[str, ...]
    captions: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)  # audiocap_id of each caption; some tools name files by one of them


def _read_clips(table: dict[str, _TableRow], folder: Path) -> list[DownloadedClip]:
    """Return the clips of a table with their audio files in a folder, which is listed once."""
    files = _files_by_name(folder)
    listed = {unicodedata.normalize("NFC", name) for name in table}

    def source(name: str, row: _TableRow) -> Path | None:
        names = (form for c in (name, *row.candidates, *row.ids) for form in (c, unicodedata.normalize("NFC", c)))
        found = map(files.get, names)
        # The file of another clip may differ from this name in its extension alone.
        others = listed - {unicodedata.normalize("NFC", name)}
        return next((f for f in found if f and unicodedata.normalize("NFC", f.name) not in others), None)

    return [DownloadedClip(name, source(name, row), tuple(row.captions)) for name, row in table.items()]


def _read_table(table: Path, refusals: Refusals) -> dict[str, _TableRow]:
    """Return the clips of a table by their file names; rows of one name are one clip, and bad rows are collected."""
    numbered = csv_rows(table, refusals)
    _, header = next(numbered, (1, []))
    by_name = header[:1] == ["file_name"] and len(header) > 1 and all(c.startswith("caption") for c in header[1:])
    if not by_name and not {"youtube_id", "start_time", "caption"} <= set(header):
        headers = "file_name,caption or file_name,caption_1,... or audiocap_id,youtube_id,start_time,caption"
        raise InputError(f"expected the header {headers} in {table}, got {','.join(header) or 'nothing'}")
    clips: dict[str, _TableRow] = {}
    for line, row in numbered:
        where = f"line {line} of {table}"
        with refusals.collect():
            fields = dict(zip(header, row, strict=True))
            if by_name:
                name, captions = row[0], row[1:]
                candidates: tuple[str, ...] = (_stem(name),)
            else:
                name, candidates = _audiocaps_names(fields["youtube_id"], fields["start_time"], where)
                captions = [fields["caption"]]
            require_name(name, f"in {where}")
            clip = clips.setdefault(name, _TableRow(candidates))
            if clip.candidates != candidates:
                got = f"another in {where}: {row}"
                raise InputError(f"expected one start_time for all captions of a video, got {got}")
            clip.captions += captions
            if not by_name and "audiocap_id" in fields:
                clip.ids.append(f"{fields['audiocap_id']}.")
    if not clips and not refusals.messages:
        raise InputError(f"expected at least one clip in {table}, got the header alone")
    return clips


def _stem(name: str) -> str:
    """Return a name without its extension if that is one of audio, with a dot at its end."""
    stem, extension = os.path.splitext(name)
    return f"{stem if extension.lower() in SUFFIXES else name}."


def _audiocaps_names(video: str, start: str, where: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of an AudioCaps clip, and the names that its audio file may have.

    These are ``Y<id>`` and ``<id>``, alone, with the start in seconds, or as in AudioSet with start and end in
    milliseconds. Some tools add the Y because ids may begin with a hyphen. All ids have 11 characters, so no name fits
    two of them.
    """
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", start):
        raise InputError(f"expected start_time in seconds in {where}, got {start}")
    seconds, milliseconds = f"{float(start):g}", round(1000 * float(start))
    stems = [f"{prefix}{video}{rest}" for rest in ("", f"_{seconds}", f"_{milliseconds}_*") for prefix in ("Y", "")]
    return f"Y{video}.wav", tuple(stem + "." for stem in stems)


def _files_by_name(folder: Path) -> dict[str, Path]:
    """Return the contents of a folder by name, and in NFC; audio also by its name without the extension, ``STEM.``.

    Tools and file systems write letters with accents as one character (NFC) or as two (NFD).
    """
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as listing:
        names = sorted(entry.name for entry in listing)
    files = {name: folder / name for name in names}
    for name in names:
        files.setdefault(unicodedata.normalize("NFC", name), folder / name)
    by_suffix = sorted((SUFFIXES.index(suffix), name) for name in names if (suffix := _suffix(name)) in SUFFIXES)
    for _, name in by_suffix:
        stem = unicodedata.normalize("NFC", os.path.splitext(name)[0])
        files.setdefault(f"{stem}.", folder / name)
        # The end in AudioSet's names may be any: clips at the end of a video are shorter.
        if ends := re.fullmatch(r"(.+_\d+)_\d+", stem):
            files.setdefault(f"{ends[1]}_*.", folder / name)
    return files


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _refuse_one_file_for_two_clips(download: dict[str, list[DownloadedClip]]) -> None:
    """Refuse clips of one name in several splits whose audio would be one file, in a folder for all splits."""
    clip_of: dict[Path, str] = {}
    for split, clips in download.items():
        for clip in clips:
            label = f"{clip.file_name} of {split}"
            if isinstance(clip.source, Path) and clip_of.setdefault(clip.source, label) != label:
                got = f"{clip.source} for {clip_of[clip.source]} and for {label}"
                raise InputError(f"expected a file for every clip, got {got}; a folder for each split tells them apart")
