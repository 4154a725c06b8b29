"""WavCaps as it is published: JSON with the captions of each source, and FLAC files in zip archives or unpacked.

::

    RAW/json_files/SOURCE/*.json       {"data": [{"id": ..., "caption": ...}, ...]}
    RAW/json_files/blacklist/*.json    {"AudioSet": ["Y....wav", ...], "FreeSound": ["156", ...]}
    RAW/Zip_files/SOURCE/SOURCE.zip    and its parts SOURCE.z01, SOURCE.z02, ...; or what was in it, in any folders

Files may be in ``RAW/waveforms/SOURCE`` too. SOURCE is one of ``SOURCES``; one that is not in ``json_files`` is left
out. An id names a sound within its source alone, so the clip ``2219`` of SoundBible becomes ``SoundBible_2219.wav``.

WavCaps shares sounds with data sets that models are judged on. Each of the published ``BLACKLISTS`` has the ids of some
of them: ``test_ac`` those in the validation and test sets of AudioCaps and Clotho, ``all_ac`` those in any split of
these two, ``ub8k_esc50_vggsound`` those in UrbanSound8K, ESC-50 and VGGSound.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from typing_extensions import TypedDict

from reference_model import InputError
from reference_model.data.audio import SUFFIXES, audio_files_in
from reference_model.data.dataset import Refusals, require_name
from reference_model.data.sources import DownloadedClip, ZipMember
from reference_model.data.zip_archives import Archive
from reference_model.runtime.records import read_json

SOURCES = ("AudioSet_SL", "BBC_Sound_Effects", "FreeSound", "SoundBible")
BLACKLISTS = ("test_ac", "all_ac", "ub8k_esc50_vggsound")  # the first one is applied, unless another is chosen
NO_BLACKLIST = "none"
_TABLES = "json_files"
_ENTRIES = {"AudioSet_SL": "AudioSet", "FreeSound": "FreeSound"}  # the entry of a source in a blacklist
_Sound = Path | ZipMember


class _Entry(TypedDict):
    id: str  # with or without an extension
    caption: str


class _Table(TypedDict):
    data: list[_Entry]


class _Blacklist(TypedDict):
    AudioSet: list[str]
    FreeSound: list[str]  # "Not found" stands for sounds of Clotho whose id is not known


def is_wavcaps(raw: Path) -> bool:
    """Return whether a folder holds a table of WavCaps."""
    return any((raw / _TABLES / source).is_dir() for source in SOURCES)


def read_wavcaps(raw: Path, *, audio: Path | None = None, blacklist: str | None = None) -> list[DownloadedClip]:
    """Return the clips of all sources, which have no splits.

    Args:
        raw: the folder that holds ``json_files``.
        audio: a folder of folders SOURCE or SOURCE_flac, if the sounds are not beside ``json_files``.
        blacklist: one of ``BLACKLISTS``, or ``NO_BLACKLIST``; None: the first of them. Its clips are marked as such.
    """
    refusals, clips = Refusals(), []
    sources = [source for source in SOURCES if (raw / _TABLES / source).is_dir()]
    for source in sources:
        sounds = _find_sounds(source, [audio] if audio else [raw / "Zip_files", raw / "waveforms"])
        clips += _read_clips(source, raw / _TABLES / source, sounds, refusals)
    refusals.raise_all()
    if blacklist == NO_BLACKLIST or not _ENTRIES.keys() & sources:
        return clips
    path = raw / _TABLES / "blacklist" / f"blacklist_exclude_{blacklist or BLACKLISTS[0]}.json"
    names = _read_blacklist(path)
    return [replace(clip, blacklist=path.name) if clip.file_name in names else clip for clip in clips]


def _read_blacklist(path: Path) -> set[str]:
    """Return the names of the clips in a blacklist."""
    if not path.exists():
        remedy = f"--blacklist {NO_BLACKLIST} keeps every clip"
        raise InputError(f"expected the clips to leave out at {path}, got nothing; {remedy}")
    content = read_json(path, _Blacklist, "ids of clips to leave out")
    return {_file_name(source, _stem(name)) for source, entry in _ENTRIES.items() for name in content[entry]}


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
        clips.append(DownloadedClip(_file_name(source, stem), found[0] if found else None, tuple(texts)))
    return clips


def _file_name(source: str, stem: str) -> str:
    return f"{source}_{stem}.wav"


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
