"""What people have after a download, whoever made it: for each split the clips, where their audio is, their captions.

A folder is recognised by its tables:

    the layout of this project     csv_files/{train,val,test}.csv       waveforms/{train,val,test}/
    Clotho as published            clotho_captions_{development,validation,evaluation}.csv
                                                                        {development,validation,evaluation}/
    Clotho by aac-datasets         clotho_csv_files/clotho_captions_{development,validation,evaluation}.csv
                                                                        clotho_audio_files/{development,...}/
    AudioCaps, by whichever tool   {train,val,test}.csv                 one folder, or {train,val,test}/ in it
    AudioCaps by aac-datasets      csv_files_v1/{train,val,test}.csv    likewise

A table names its clips by ``file_name``, or as AudioCaps does by ``youtube_id`` and ``start_time``; the files of those
are found by the names that the usual tools give them. The names of clips are used as they stand.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from reference_model import InputError
from reference_model.data.dataset import SPLITS, csv_rows

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")  # the first of them is taken where a clip is there in several


@dataclass(frozen=True)
class Entry:
    """A clip of a split: its name, its audio (None: nothing is there), its captions in order."""

    file_name: str
    source: Path | None
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Where a kind of download has its tables, and the folder of its audio (None: not settled)."""

    table: str
    audio: str | None
    names: tuple[str, str, str] = SPLITS  # of train, val, test

    def tables(self, folder: Path) -> list[Path]:
        return [folder / self.table.format(name) for name in self.names]


CLOTHO = ("development", "validation", "evaluation")
LAYOUTS = (
    Layout("csv_files/{}.csv", "waveforms"),
    Layout("clotho_captions_{}.csv", ".", CLOTHO),
    Layout("clotho_csv_files/clotho_captions_{}.csv", "clotho_audio_files", CLOTHO),
    Layout("{}.csv", None),
    Layout("csv_files_v1/{}.csv", None),
    Layout("csv_files_v2/{}.csv", None),
)


def read_download(raw: Path, dataset: str, *, audio: Path | None = None) -> dict[str, list[Entry]]:
    """The clips of each split, in the order of its table.

    Args:
        raw: the folder of the tables; or one that holds it as ``AUDIOCAPS`` or ``CLOTHO_v2.1``, as aac-datasets does.
        dataset: tells which of these is meant.
        audio: the folder of the clips, where it is not beside the tables.

    Raises:
        InputError: the layout is not known, a table is not as its layout asks, or one file would be two clips.
    """
    folder, layout = _recognise(raw, dataset)
    if audio is None:
        audio = _folder_of_clips(folder) if layout.audio is None else folder / layout.audio
    elif not audio.is_dir():
        raise InputError(
            f"expected the folder of the clips at {audio}, got {'a file' if audio.exists() else 'nothing'}"
        )
    _refuse_another_data_set(dataset, folder, layout)
    entries: dict[str, list[Entry]] = {}
    for split, name, table in zip(SPLITS, layout.names, layout.tables(folder), strict=True):
        of_split = [audio / own for own in (name, split) if (audio / own).is_dir()]
        entries[split] = _find(_read(table), (of_split or [audio])[0])
    _refuse_one_file_for_two_clips(entries)
    return entries


def _refuse_another_data_set(dataset: str, folder: Path, layout: Layout) -> None:
    """Clotho under the name of AudioCaps would be cut to its length and set beside its results."""
    _, header = next(csv_rows(layout.tables(folder)[0]), (1, [""]))
    found = "Clotho" if layout.names == CLOTHO else "AudioCaps" if "youtube_id" in header else dataset
    if dataset in ("AudioCaps", "Clotho") and found != dataset:
        raise InputError(f"expected tables of {dataset} in {folder}, got those of {found}; say --dataset {found}")


def _recognise(raw: Path, dataset: str) -> tuple[Path, Layout]:
    if not raw.is_dir():
        raise InputError(f"expected a folder with a downloaded data set at {raw}, got no folder")
    # AUDIOCAPS, CLOTHO_v2.1
    inside = sorted(path for path in raw.iterdir() if path.is_dir() and path.name.startswith(dataset.upper()))
    for folders in ([raw], inside):
        fitting = [
            (folder, layout)
            for folder in folders
            for layout in LAYOUTS
            if all(table.is_file() for table in layout.tables(folder))
        ]
        if len({folder for folder, _ in fitting}) > 1:
            names = ", ".join(folder.name for folder, _ in fitting)
            raise InputError(f"expected one download of {dataset} in {raw}, got {names}; name the one that is meant")
        if fitting:
            return fitting[0]
    looked_for = [f"  {layout.table.format('{' + ','.join(layout.names) + '}')}" for layout in LAYOUTS]
    places = (raw, *inside)
    found = sorted(str(p.relative_to(raw)) + "/" * p.is_dir() for place in places for p in place.iterdir())
    shown = ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")
    raise InputError(
        "\n".join(
            [
                f"expected three tables of one of these layouts in {raw}"
                + (f" or in {', '.join(path.name for path in inside)} there" if inside else "")
                + ":",
                *looked_for,
                f"got {shown or 'an empty folder'}",
            ]
        )
    )


def _folder_of_clips(folder: Path) -> Path:
    """Beside tables that settle no folder: the clips themselves, their splits, or one folder of any name."""
    beside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if any(path.name in SPLITS or path.suffix.lower() in EXTENSIONS for path in beside):
        return folder
    folders = sorted(path for path in beside if path.is_dir() and not path.name.startswith("csv_files"))
    if len(folders) != 1:
        raise InputError(
            f"expected one folder of clips beside the tables in {folder}, or a folder given by --audio, "
            f"got {', '.join(path.name for path in folders) or 'no folder'}"
        )
    return folders[0]


@dataclass
class _Clip:
    """A clip as a table has it."""

    asked: tuple[str, ...]  # names that its file may have, the likeliest first; those without an extension end in a dot
    captions: list[str]


def _read(table: Path) -> dict[str, _Clip]:
    """The clips of a table by their FILE_NAME; rows of one name are one clip."""
    listed = csv_rows(table)
    _, header = next(listed, (1, []))
    by_name = header[:1] == ["file_name"] and len(header) > 1 and all(c.startswith("caption") for c in header[1:])
    if not by_name and not {"youtube_id", "start_time", "caption"} <= set(header):
        raise InputError(
            "expected the header file_name,caption or file_name,caption_1,... "
            f"or audiocap_id,youtube_id,start_time,caption in {table}, got {','.join(header) or 'nothing'}"
        )
    clips: dict[str, _Clip] = {}
    asked: tuple[str, ...]
    for line, row in listed:
        if by_name:
            name, asked, captions = row[0], (row[0],), row[1:]
        else:
            fields = dict(zip(header, row, strict=True))
            name, asked = _youtube_names(fields["youtube_id"], fields["start_time"], f"line {line} of {table}")
            captions = [fields["caption"]]
        if name in (".", "..") or any(separator in name for separator in (os.sep, os.altsep) if separator):
            raise InputError(f"expected the name of a file, not a path, in line {line} of {table}, got {name}")
        clip = clips.setdefault(name, _Clip(asked, []))
        if clip.asked != asked:
            raise InputError(
                f"expected one start_time for all captions of a video, got another in line {line} of {table}: {row}"
            )
        clip.captions += captions
    if not clips:
        raise InputError(f"expected at least one clip in {table}, got the header alone")
    return clips


def _youtube_names(video: str, start: str, where: str) -> tuple[str, tuple[str, ...]]:
    """FILE_NAME of an AudioCaps clip, and what the file of it may be called.

    ``Y<id>``; ``<id>``; with the start in seconds; or as in AudioSet with start and end in milliseconds. Some lead with
    Y because ids begin with hyphens. All ids have 11 characters, so no name fits two of them.
    """
    if not re.fullmatch(r"\d+(\.\d+)?", start):
        raise InputError(f"expected start_time in seconds in {where}, got {start}")
    seconds, milliseconds = f"{float(start):g}", round(1000 * float(start))
    stems = [f"{prefix}{video}{rest}" for rest in ("", f"_{seconds}", f"_{milliseconds}_*") for prefix in ("Y", "")]
    return f"Y{video}.wav", tuple(stem + "." for stem in stems)


def _find(clips: dict[str, _Clip], folder: Path) -> list[Entry]:
    """The clips with their files; the folder is listed once."""
    files = _index(folder)
    return [
        Entry(name, next((files[asked] for asked in clip.asked if asked in files), None), tuple(clip.captions))
        for name, clip in clips.items()
    ]


def _index(folder: Path) -> dict[str, Path]:
    """What lies in a folder, by its name, and audio also by its name without the extension, ``STEM.``."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as listing:
        names = sorted(entry.name for entry in listing)
    files = {name: folder / name for name in names}
    for extension in EXTENSIONS:
        for name in names:
            stem, dot, found = name.rpartition(".")
            if dot + found.lower() == extension:
                files.setdefault(f"{stem}.", folder / name)
                # In AudioSet's names the end is not asked for: clips at the end of a video are shorter.
                if ends := re.fullmatch(r"(.+_\d+)_\d+", stem):
                    files.setdefault(f"{ends[1]}_*.", folder / name)
    return files


def _refuse_one_file_for_two_clips(entries: dict[str, list[Entry]]) -> None:
    """In a folder for all splits, two different sounds of one name cannot both be there."""
    clip_of: dict[Path, str] = {}
    for split, of_split in entries.items():
        for entry in of_split:
            clip = f"{entry.file_name} of {split}"
            if entry.source is not None and clip_of.setdefault(entry.source, clip) != clip:
                raise InputError(
                    f"expected a file for every clip, got {entry.source} for {clip_of[entry.source]} and for {clip}; "
                    f"a folder for each split tells them apart"
                )
