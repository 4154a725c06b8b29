"""WavCaps as it is published: JSON with the captions of each source, and FLAC files in zip archives or unpacked.

::

    RAW/json_files/SOURCE/*.json       {"data": [{"id": ..., "caption": ...}, ...]}
    RAW/Zip_files/SOURCE/SOURCE.zip    and its parts SOURCE.z01, SOURCE.z02, ...; or what was in it, in any folders

Files may be in ``RAW/waveforms/SOURCE`` too. SOURCE is one of ``SOURCES``; one that is not in ``json_files`` is left
out. An id names a sound within its source alone, so the clip ``2219`` of SoundBible becomes ``SoundBible_2219.wav``.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from typing_extensions import TypedDict

from reference_model import InputError
from reference_model.data.audio import SUFFIXES, audio_files_in
from reference_model.data.dataset import Refusals, require_name
from reference_model.data.sources import DownloadedClip, ZipMember
from reference_model.data.zip_archives import Archive
from reference_model.runtime.records import read_json

SOURCES = ("AudioSet_SL", "BBC_Sound_Effects", "FreeSound", "SoundBible")
_TABLES = "json_files"
_Sound = Path | ZipMember


class _Entry(TypedDict):
    id: str  # with or without an extension
    caption: str


class _Table(TypedDict):
    data: list[_Entry]


def is_wavcaps(raw: Path) -> bool:
    """Return whether a folder holds a table of WavCaps."""
    return any((raw / _TABLES / source).is_dir() for source in SOURCES)


def read_wavcaps(raw: Path, *, audio: Path | None = None) -> list[DownloadedClip]:
    """Return the clips of all sources, which have no splits.

    Args:
        raw: the folder that holds ``json_files``.
        audio: a folder of folders SOURCE or SOURCE_flac, if the sounds are not beside ``json_files``.
    """
    refusals, clips = Refusals(), []
    for source in SOURCES:
        if (raw / _TABLES / source).is_dir():
            sounds = _find_sounds(source, [audio] if audio else [raw / "Zip_files", raw / "waveforms"])
            clips += _read_clips(source, raw / _TABLES / source, sounds, refusals)
    refusals.raise_all()
    return clips


def _read_clips(source: str, folder: Path, sounds: dict[str, list[_Sound]], refusals: Refusals) -> list[DownloadedClip]:
    """Return the clips in the tables of a source; entries of one id are one clip, and bad entries are collected."""
    tables = sorted(folder.glob("*.json"))
    if not tables:
        raise InputError(f"expected a table *.json in {folder}, got none")
    captions: dict[str, list[str]] = {}  # by id, without an extension
    for table in tables:
        for number, entry in enumerate(read_json(table, _Table, "clips of WavCaps")["data"], start=1):
            with refusals.collect():
                where = f"entry {number} of {table}"
                stem = _stem(entry["id"])
                require_name(stem, f"in {where}")
                if not entry["caption"].strip():
                    raise InputError(f"expected a caption with text in {where}, got {entry['caption']!r}")
                if entry["caption"] not in captions.setdefault(stem, []):  # a table may repeat a part of another
                    captions[stem].append(entry["caption"])
    clips = []
    for stem, texts in captions.items():
        found = sounds.get(stem, [])
        if len(found) > 1:
            got = " and ".join(map(str, found[:2]))
            refusals.messages.append(f"expected one sound for {stem!r} of {source}, got {got}")
        clips.append(DownloadedClip(f"{source}_{stem}.wav", found[0] if found else None, tuple(texts)))
    return clips


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def _find_sounds(source: str, places: list[Path]) -> dict[str, list[_Sound]]:
    """Return the sounds of a source: files, or else members of archives; of several formats the one in SUFFIXES first.

    Raises:
        InputError: there are none, or an archive cannot be read.
    """
    folders = [path for place in places for path in (place / source, place / f"{source}_flac") if path.is_dir()]
    archives = [path for folder in folders for path in sorted(folder.glob("*.zip"))]
    sounds = _by_stem(member for archive in archives for member in _members(archive))
    sounds |= _by_stem((os.path.basename(name), folder / name) for folder in folders for name in audio_files_in(folder))
    if not sounds:
        where = " or ".join(str(place / source) for place in places)
        raise InputError(
            f"expected {source}.zip or its files in {where}, got no sound; json_files may lack {source} too"
        )
    return sounds


def _members(archive: Path) -> Iterator[tuple[str, _Sound]]:
    """Yield the files in an archive with their names, without folders; nothing is unpacked."""
    modified = archive.stat().st_mtime_ns
    for member in Archive(archive).members:
        yield member.filename.rpartition("/")[2], ZipMember(archive, member.filename, modified)


def _by_stem(named: Iterable[tuple[str, _Sound]]) -> dict[str, list[_Sound]]:
    """Return the sounds by their names without extension; those with the extension that is preferred."""
    best: dict[str, tuple[int, list[_Sound]]] = {}
    for name, sound in named:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SUFFIXES:
            continue
        rank = SUFFIXES.index(suffix.lower())
        known, sounds = best.get(stem, (rank, []))
        if rank < known:
            sounds = []
        if rank <= known:
            best[stem] = rank, [*sounds, sound]
    return {stem: sounds for stem, (_, sounds) in best.items()}
