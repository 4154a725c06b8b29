"""Clotho and AudioCaps in miniature, in every layout that downloads have, with the traps of the real files.

All layouts contain the same sounds and captions: a clip is a tone in noise, and its captions name the frequency. The
numbers of clips determine everything.
"""

import csv
import io
import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 44_100
SPLITS = ("train", "val", "test")
CLOTHO_SPLITS = ("development", "validation", "evaluation")
CLIPS = (12, 4, 4)  # of each split

# Kinds of file names that Clotho has. "same name.wav" is a different sound in every split.
TRAPS = (
    "same name.wav", " leading space.wav", "it's '#1' (take 2), a comma.wav", "Q&amp;A.wav", "x" * 129 + ".wav",
    "-starts with a hyphen..WAV.wav",
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """A clip, equal in every layout."""

    file_name: str
    captions: tuple[str, ...]
    samples: NDArray[np.int16]


def _samples(split: int, clip: int) -> NDArray[np.int16]:
    """Return 0.5 to 1.5 s of sound; the pitch depends on the clip."""
    random = np.random.default_rng([split, clip])
    time = np.arange(round(RATE * (0.5 + (7 * clip + 3 * split) % 11 / 11.1))) / RATE
    tone = 0.4 * np.sin(2 * np.pi * 200 * 1.19 ** (clip % 16) * time)
    noise = 0.01 * (1 + split) * random.standard_normal(len(time))
    return np.round(2**15 * (tone + noise)).astype(np.int16)


def _captions(split: int, clip: int) -> tuple[str, ...]:
    height = f"{round(200 * 1.19 ** (clip % 16))} hertz"
    return (
        f"A tone of {height}, hissing", f'Somebody plays "{height}", steadily', f"A café’s “hum” of {height}",
        f" {height} and a space before", f"Noise &amp; a tone: {height} (number {split}.{clip})",
    )  # fmt: skip


def clotho_clips(clips: Sequence[int] = CLIPS) -> dict[str, list[Clip]]:
    """Return the clips of Clotho by split: five captions each."""
    names = [*TRAPS, *(f"sound {k:02d}.wav" for k in range(max(clips)))]
    return {
        name: [Clip(names[clip], _captions(split, clip), _samples(split, clip)) for clip in range(clips[split])]
        for split, name in enumerate(SPLITS)
    }


def video(split: int, clip: int) -> str:
    """Return an id of eleven characters, like YouTube's; some begin with a hyphen, one with Y, one ends like a time."""
    return f"{'-Y_ab'[clip % 5]}cd-_eF{'GHI'[split]}{'_12' if clip == 2 else f'{clip:03d}'}"


def start(clip: int) -> int:
    """Return the start of a clip in its video, in seconds."""
    return 10 * (clip % 4)


def audiocaps_clips(clips: Sequence[int] = CLIPS) -> dict[str, list[Clip]]:
    """Return the clips of AudioCaps by split: one caption each for training, five for validation and test."""
    return {
        name: [
            Clip(f"Y{video(split, k)}.wav", _captions(split, k)[: 5 if split else 1], _samples(split, k))
            for k in range(clips[split])
        ]
        for split, name in enumerate(SPLITS)
    }


def standard(folder: Path, clips: dict[str, list[Clip]]) -> Path:
    """Write the layout that training reads."""
    for split, of_split in clips.items():
        _one_row_a_clip(folder / "csv_files" / f"{split}.csv", of_split)
        _write(folder / "waveforms" / split, {clip.file_name: clip for clip in of_split})
    return folder


def clotho(folder: Path, clips: Sequence[int] = CLIPS, *, tables: str = ".", audio: str = ".") -> Path:
    """Write Zenodo record 4783391, with its archives unpacked beside the tables."""
    for name, of_split in zip(CLOTHO_SPLITS, clotho_clips(clips).values(), strict=True):
        _one_row_a_clip(folder / tables / f"clotho_captions_{name}.csv", of_split)
        _write(folder / audio / name, {clip.file_name: clip for clip in of_split})
        (folder / tables / f"clotho_metadata_{name}.csv").write_text("file_name,keywords\n", encoding="latin-1")
    return folder


def aac_datasets_clotho(folder: Path, clips: Sequence[int] = CLIPS) -> Path:
    """Write the output of ``aac-datasets-download --root FOLDER clotho``."""
    inside = clotho(folder / "CLOTHO_v2.1", clips, tables="clotho_csv_files", audio="clotho_audio_files")
    (inside / "archives").mkdir()
    return folder


# Names that tools give to the file of an AudioCaps clip, as functions of its video and its start in seconds.
CLIP_NAMES: dict[str, Callable[[str, int], str]] = {
    "Y<id>": lambda video, start: f"Y{video}.wav",
    "<id>": lambda video, start: f"{video}.WAV",
    "<id>_<start>": lambda video, start: f"{video}_{start}.flac",
    "Y<id>_<start>": lambda video, start: f"Y{video}_{start}.FLAC",
    "AudioSet": lambda video, start: f"{video}_{1000 * start}_{1000 * start + 10_000}.flac",
    "Y and AudioSet": lambda video, start: f"Y{video}_{1000 * start}_{1000 * start + 9_120}.wav",
}


def audiocaps(
    folder: Path, clips: Sequence[int] = CLIPS, *, names: str = "Y<id>", flat: bool = False, clips_in: str = "audio"
) -> Path:
    """Write the tables of the official repository, and a folder of clips or one for each split."""
    for split, (name, of_split) in enumerate(audiocaps_clips(clips).items()):
        rows = [
            [f"{split}{n}{k}", video(split, k), str(start(k)), caption]
            for n in range(5)
            for k, clip in enumerate(of_split)
            for caption in clip.captions[n : n + 1]
        ]
        _write_table(folder / f"{name}.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows)
        files = {CLIP_NAMES[names](video(split, k), start(k)): clip for k, clip in enumerate(of_split)}
        _write(folder / clips_in if flat else folder / clips_in / name, files)
    return folder


def aac_datasets_audiocaps(folder: Path, clips: Sequence[int] = CLIPS) -> Path:
    """Write the output of ``aac-datasets-download --root FOLDER audiocaps``."""
    inside = audiocaps(folder / "AUDIOCAPS", clips, names="<id>_<start>", clips_in="audio_32000Hz")
    (inside / "class_labels_indices.csv").write_text("index,mid,display_name\n")
    return folder


def audiocaps_by_file_name(folder: Path, clips: Sequence[int] = CLIPS, *, flat: bool = True) -> Path:
    """Write tables of ``file_name,caption``, one row a caption, in UTF-8 with its mark, and clips of these names."""
    for split, of_split in audiocaps_clips(clips).items():
        rows = [[clip.file_name, caption] for clip in of_split for caption in clip.captions]
        _write_table(folder / f"{split}.csv", ["file_name", "caption"], rows, encoding="utf-8-sig")
        _write(folder / "clips" if flat else folder / "clips" / split, {clip.file_name: clip for clip in of_split})
    return folder


def encoded(clip: Clip, container: str = "FLAC") -> bytes:
    """Return the content of an audio file with the sound of a clip."""
    file = io.BytesIO()
    soundfile.write(file, clip.samples, RATE, format=container)
    return file.getvalue()


def rows_of(clips: list[Clip], captions: str) -> list[dict[str, Any]]:
    """Return the rows of clips with the sounds inside: one with all captions of a clip; or a row for each caption.

    In the latter, a clip's rows are not together. Clips of AudioCaps are named by their video alone.
    """
    if captions == "caption":
        pairs = sorted((k, number) for number, clip in enumerate(clips) for k in range(len(clip.captions)))
        rows: list[dict[str, Any]] = [
            {"audio": sound_of(clips[number]), "caption": clips[number].captions[k]} for k, number in pairs
        ]
        for row, (k, number) in zip(rows, pairs, strict=True):
            if clips[number].file_name.startswith("Y"):
                row |= {"youtube_id": clips[number].file_name[1:-4], "start_time": 10}
                row["audio"] |= {"path": f"{number}{k}.flac"}
        return rows
    if captions == "captions":
        return [{"audio": sound_of(clip), "captions": list(clip.captions)} for clip in clips]
    return [{"audio": sound_of(clip)} | {f"caption_{k + 1}": c for k, c in enumerate(clip.captions)} for clip in clips]


def sound_of(clip: Clip) -> dict[str, Any]:
    """Return a sound as it is in a row."""
    return {"bytes": encoded(clip), "path": clip.file_name}


def hugging_face(folder: Path, clips: dict[str, list[Clip]], captions: str, splits: Sequence[str], to: str) -> Path:
    """Write a data set with its sounds inside, as ``datasets`` does.

    Args:
        folder: the data set's.
        clips: its clips by split.
        captions: the column of the captions: captions, caption or caption_1, ...
        splits: names of train, val and test.
        to: name of a file with ``{split}`` and ``{part}``, the number of one of two parquet files; without ``{part}``
            there is one; without an ending, splits are saved to disk.
    """
    for split, of_split in zip(splits, clips.values(), strict=True):
        rows = rows_of(of_split, captions)
        half = len(rows) // 2 if "{part}" in to else len(rows)
        for part, of_part in enumerate((rows[:half], rows[half:])):
            if of_part:
                write_table(folder / to.format(split=split, part=f"{part:05d}"), of_part)
    return folder


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as a parquet file, or to a folder as a data set that is saved to disk."""
    import datasets

    table = datasets.Dataset.from_list(rows)
    if isinstance(rows[0].get("audio"), dict):
        table = table.cast_column("audio", datasets.Audio())
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table.to_parquet(path, batch_size=2)
    else:
        table.save_to_disk(path)
    return path


def wavcaps_clips(number: int = 12) -> dict[str, list[Clip]]:
    """Return the clips of WavCaps by source: one caption each, and ids that are names in their source alone."""
    sounds = clotho_clips((number, number, number))
    ids = {"AudioSet_SL": "Y-cd_eF{:03d}.wav", "FreeSound": "{}", "SoundBible": "{}"}
    return {
        source: [Clip(ids[source].format(k), clip.captions[:1], clip.samples) for k, clip in enumerate(of_source)]
        for source, of_source in zip(ids, sounds.values(), strict=True)
    }


def wavcaps(folder: Path, clips: dict[str, list[Clip]], *, zipped: bool = True) -> Path:
    """Write WavCaps as published: its tables, and the sounds in archives or as they were in these."""
    for source, of_source in clips.items():
        data = [{"id": clip.file_name, "caption": clip.captions[0], "duration": 1.0} for clip in of_source]
        table = folder / "json_files" / source / f"{source.lower()}_final.json"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(json.dumps({"num_captions_per_audio": 1, "data": data}), encoding="utf-8")
        place = folder / "Zip_files" / source
        place.mkdir(parents=True, exist_ok=True)
        files = {
            f"mnt/fast/WavCaps/data/waveforms/{source}_flac/{Path(clip.file_name).stem}.flac": encoded(clip)
            for clip in of_source
        }
        if zipped:
            with zipfile.ZipFile(place / f"{source}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        else:
            for name, content in files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
    return folder


def wavcaps_blacklists(folder: Path, **lists: dict[str, list[str]]) -> Path:
    """Write lists of clips to leave out as WavCaps publishes them; one of them is indented."""
    place = folder / "json_files" / "blacklist"
    place.mkdir(parents=True, exist_ok=True)
    for name, content in lists.items():
        text = json.dumps(content, indent=4 if name == "test_ac" else None)
        (place / f"blacklist_exclude_{name}.json").write_text(text)
    return folder


def split_archive(archive: Path, size: int) -> list[Path]:
    """Cut a zip archive into parts of a size, as ``zip -s`` does; return their paths, that of the archive last."""
    with zipfile.ZipFile(archive) as opened:
        places, start = [info.header_offset for info in opened.infolist()], opened.start_dir
    content = bytearray(archive.read_bytes())
    last = (len(content) - 1) // size
    position = start
    for place in places:  # the part of a member, and its place there
        struct.pack_into("<H", content, position + 34, place // size)
        struct.pack_into("<L", content, position + 42, place % size)
        position += 46 + sum(struct.unpack_from("<3H", content, position + 28))
    end_64 = content.rfind(b"PK\6\6")
    if end_64 > 0:
        struct.pack_into("<2L", content, end_64 + 16, end_64 // size, start // size)
        struct.pack_into("<Q", content, end_64 + 48, start % size)
        struct.pack_into("<LQL", content, end_64 + 60, end_64 // size, end_64 % size, last + 1)
    end = content.rfind(b"PK\5\6")
    assert end // size == last, "expected another size: the end is in one part"
    struct.pack_into("<2H", content, end + 4, last, start // size)
    struct.pack_into("<L", content, end + 16, start % size if end_64 < 0 else 2**32 - 1)
    paths = [*(archive.with_suffix(f".z{number + 1:02d}") for number in range(last)), archive]
    for number, path in enumerate(paths):
        path.write_bytes(content[number * size :][:size])
    return paths


def _one_row_a_clip(path: Path, clips: list[Clip]) -> None:
    header = ["file_name", *(f"caption_{k + 1}" for k in range(len(clips[0].captions)))]
    _write_table(path, header, [[clip.file_name, *clip.captions] for clip in clips])


def _write_table(path: Path, header: list[str], rows: list[list[str]], *, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _write(folder: Path, clips: dict[str, Clip]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in clips.items():
        soundfile.write(folder / name, clip.samples, RATE)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# Kinds of damage: the status that the clip then has, and a function that spoils a good file longer than 0.5 s.
FAULTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no file": ("missing", lambda path: path.unlink()),
    "0 bytes": ("unreadable", lambda path: path.write_bytes(b"")),
    "header only": ("truncated", lambda path: path.write_bytes(path.read_bytes()[:44])),
    "text": ("unreadable", lambda path: path.write_text("this is no audio, although it is called so")),
    "folder": ("unreadable", _make_folder),
    "no samples": ("unreadable", lambda path: soundfile.write(path, np.zeros(0), RATE)),
    "NaN": ("unreadable", lambda path: soundfile.write(path, np.full(RATE, np.nan), RATE, "FLOAT")),
    "inf": ("unreadable", lambda path: soundfile.write(path, np.r_[np.zeros(RATE), np.inf], RATE, "FLOAT")),
    "half": ("truncated", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
    "one sample": ("too short", lambda path: soundfile.write(path, np.full(1, 0.5), RATE)),
    "silence": ("silent", lambda path: soundfile.write(path, np.full(RATE, 2**-16), RATE, "FLOAT")),
}


def spoil(path: Path, kind: str) -> str:
    """Damage a file in one of the ways of FAULTS, and return the status that it then has."""
    status, change = FAULTS[kind]
    change(path)
    return status


def everything_in(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder and its subfolders, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
