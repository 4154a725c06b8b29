"""A downloaded data set to what training reads, every clip accounted for:

    ROOT/DATASET/csv_files/{train,val,test}.csv         the usable clips with their captions, exactly as published
    ROOT/DATASET/waveforms/{train,val,test}/FILE        32 kHz mono WAV
    ROOT/DATASET/manifest.csv                           every clip: usable or not and why, length, peak, checksum

Samples are 32-bit floats, bit for bit those that :func:`reference_model.data.audio.decode` makes of the original, so
training on prepared files is training on the originals. 16 bits would not do: resampling lifts peaks beyond 1, which
would be clipped, and rounding adds noise that stands out in the quiet bins of a logarithmic spectrogram.

It can be killed at any time and run again. A file under its name is whole and has the modification time of its source;
while both hold it is not made again. Tables are written last, so nothing trains on half a data set.
"""

import csv
import hashlib
import multiprocessing
import os
import shutil
import signal
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from reference_model import InputError
from reference_model.data.audio import SAMPLE_RATE, SHORTEST, decode, fault
from reference_model.data.dataset import SPLITS
from reference_model.data.layouts import DownloadedClip, read_download
from reference_model.data.manifest import MANIFEST, Row, read_manifest, summary, write_manifest
from reference_model.paper import DATASET_SIZES
from reference_model.runtime.files import atomic_write
from reference_model.runtime.signals import raise_if_stop_requested

QUIETEST = 2**-15  # one step of 16 bits


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` made, or found to be there already."""

    folder: Path
    rows: list[Row]

    def summary(self) -> str:
        """A table of the clips of each split by status, beside the numbers of the paper; and their length."""
        return summary(self.folder.name, self.rows)


def prepare(
    raw: Path,
    dataset: str,
    root: Path,
    *,
    audio: Path | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
) -> Prepared:
    """Bring ``root/dataset`` up to date with the download in ``raw``, in one of the layouts of ``downloads.py``.

    Args:
        audio: the folder of the clips, where it is not beside the tables.
        allow_missing: leave clips that cannot be used out of the tables, instead of writing no tables.
        workers: processes; 0 or 1: this one alone; None: one for each core.

    Raises:
        InputError: the download is not as expected, the folder is not ours to write, or clips cannot be used; then
            the usable ones and the manifest are there all the same, and every other is named with the reason.
        OSError: the disk is full, or a folder cannot be read or written.
    """
    known = next((name for name in DATASET_SIZES if name.lower() == dataset.lower()), dataset)
    if known != dataset:
        raise InputError(f"expected --dataset {known}, got {dataset}")
    folder = root / dataset
    for original in (raw, audio):
        if original is not None and folder.resolve() in (original.resolve(), *original.resolve().parents):
            raise InputError(f"expected to write elsewhere than where the originals are, got {folder} for both")
    download = read_download(raw, dataset, audio=audio)
    tasks = [_Task(folder, split, entry) for split in SPLITS for entry in download[split]]
    _refuse_one_name_for_two_clips(tasks)
    earlier = _claim(folder)
    for split in SPLITS:
        # What was prepared is about to change; nothing shall train on it by accident.
        (folder / "csv_files" / f"{split}.csv").unlink(missing_ok=True)
        (folder / "waveforms" / split).mkdir(parents=True, exist_ok=True)
        _remove_all_but({task.target.name for task in tasks if task.split == split}, folder / "waveforms" / split)
    progress = tqdm(
        _rows(tasks, os.cpu_count() or 1 if workers is None else workers), "preparing", len(tasks), unit="clip"
    )
    prepared = Prepared(folder, [])
    for row in progress:
        prepared.rows.append(_remember(row, earlier))
        raise_if_stop_requested()
    write_manifest(folder / MANIFEST, prepared.rows)
    _refuse_unusable(prepared, allow_missing)
    (folder / "csv_files").mkdir(exist_ok=True)
    usable = {(row.split, row.file_name) for row in prepared.rows if row.status == "ok"}
    for split in SPLITS:
        captions = [
            (task.target.name, caption)
            for task in tasks
            if task.split == split and (split, task.target.name) in usable
            for caption in task.entry.captions
        ]
        table = folder / "csv_files" / f"{split}.csv"
        _write_table(table, captions)
    return prepared


@dataclass(frozen=True)
class _Task:
    """A clip to prepare."""

    folder: Path
    split: str
    entry: DownloadedClip

    @property
    def target(self) -> Path:
        name = self.entry.file_name
        return self.folder / "waveforms" / self.split / (name if name.lower().endswith(".wav") else f"{name}.wav")


def _refuse_one_name_for_two_clips(tasks: list[_Task]) -> None:
    """``a.flac`` becomes ``a.flac.wav``, which another clip may be called already."""
    named: dict[Path, str] = {}
    for task in tasks:
        name = task.entry.file_name
        if named.setdefault(task.target, name) != name:
            raise InputError(
                f"expected names that differ once .wav is appended, got {named[task.target]} and {name} in {task.split}"
            )


def _claim(folder: Path) -> dict[tuple[str, str], Row]:
    """The rows of the manifest there; a new folder gets an empty one, by which it is known as ours from then on."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if folder.is_dir() and any(path.name != ".manifest.csv.part" for path in folder.iterdir()):
            raise InputError(f"expected {folder} to be new, empty or prepared, got a folder without manifest.csv")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"expected to write {folder}, got: {error}; --data names another place") from error
        write_manifest(manifest, [])
    rows = read_manifest(manifest)
    return {(row.split, row.file_name): row for row in rows}


def _remove_all_but(names: set[str], folder: Path) -> None:
    """Clips that are listed no longer, and what an interruption left."""
    with os.scandir(folder) as listing:
        others = [Path(entry) for entry in listing if entry.name not in names]
    for path in others:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif path.name.startswith(".") and path.suffix == ".part":
            shutil.rmtree(path)


def _rows(tasks: list[_Task], workers: int) -> Iterator[Row]:
    """The clips prepared, in their order."""
    if workers <= 1:
        yield from map(_prepare_clip, tasks)
        return
    # Processes that are forked from one that has used torch hang in its threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        yield from pool.map(_prepare_clip, tasks, chunksize=8)
    except BrokenProcessPool:
        raise_if_stop_requested()  # a signal to all processes may meet one that has not begun
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """A process prepares with one thread, beside which as many others run; and ends when the first one does."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _prepare_clip(task: _Task) -> Row:
    source, target = task.entry.source, task.target
    row = Row(task.split, target.name, "ok")
    if (source is None or not source.exists()) and target.is_file():  # deleted since
        return _measure(row, target)
    found = ("missing", "no file of this clip") if source is None else fault(source)
    if source is None or found is not None:
        target.unlink(missing_ok=True)
        status, reason = found or ("", "")
        return replace(row, status=status, reason=reason)
    header = soundfile.info(source)
    row = replace(row, source_sample_rate=header.samplerate, source_channels=header.channels)
    modified = source.stat().st_mtime_ns
    expected = -(-header.frames * SAMPLE_RATE // header.samplerate)
    if not _is_current(target, modified, expected):
        target.unlink(missing_ok=True)
        try:
            waveform = decode(source)
        except InputError as error:
            return replace(row, status="unreadable", reason=_what_was_got(error))
        if (why := _unusable(waveform, expected)) is not None:
            status, reason = why
            return replace(row, status=status, seconds=len(waveform) / SAMPLE_RATE, reason=reason)
        atomic_write(target, lambda path: _write_wav(path, waveform, modified))
    return _measure(row, target)


def _is_current(target: Path, modified: int, samples: int) -> bool:
    """Whether the prepared file is of this source: modified when it was, and of its length."""
    try:
        return target.stat().st_mtime_ns == modified and soundfile.info(target).frames == samples
    except (OSError, soundfile.LibsndfileError):
        return False


def _unusable(waveform: Tensor, expected: int) -> tuple[str, str] | None:
    """Status and reason, if the samples of a clip are not what it takes."""
    samples = len(waveform)
    if samples < expected:
        return "truncated", f"{samples} of {expected} samples at 32 kHz"
    if samples < SHORTEST:
        return "too short", f"{samples} samples at 32 kHz, fewer than {SHORTEST}"
    peak = float(waveform.abs().max())
    if peak < QUIETEST:
        return "silent", f"peak {peak:.1e}, less than one step of 16 bits"
    return None


def _what_was_got(error: InputError) -> str:
    return str(error).partition("got ")[2]


def _measure(row: Row, target: Path) -> Row:
    """The row of a prepared file, with what is in the file."""
    try:
        waveform = decode(target)
    except InputError as error:
        return replace(row, status="unreadable", reason=_what_was_got(error))
    return replace(
        row,
        seconds=len(waveform) / SAMPLE_RATE,
        peak=float(waveform.abs().max()),
        sha256=hashlib.sha256(target.read_bytes()).hexdigest(),
    )


def _write_wav(path: Path, waveform: Tensor, modified: int) -> None:
    """32 kHz mono WAV of 32-bit floats, last modified at a time in nanoseconds.

    libsndfile would write the time of day into the file, and the same clip would have another checksum every time.
    """
    samples = waveform.numpy().astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32)  # 3: floats
    fact = struct.pack("<4sII", b"fact", 4, len(waveform))
    data = struct.pack("<4sI", b"data", len(samples))
    chunks = b"WAVE" + form + fact + data + samples
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(chunks)) + chunks)
    os.utime(path, ns=(modified, modified))


def _remember(row: Row, earlier: dict[tuple[str, str], Row]) -> Row:
    """Rate and channels of a source that was deleted since, from the manifest of the time when it was there."""
    before = earlier.get((row.split, row.file_name))
    if before is None or row.status != "ok" or row.source_channels is not None:
        return row
    return replace(row, source_sample_rate=before.source_sample_rate, source_channels=before.source_channels)


def _refuse_unusable(prepared: Prepared, allow_missing: bool) -> None:
    bad = [row for row in prepared.rows if row.status != "ok"]
    empty = [split for split in SPLITS if not any(r.split == split and r.status == "ok" for r in prepared.rows)]
    if not empty and (allow_missing or not bad):
        return
    remedy = (
        f"no clip of {' and of '.join(empty)} can be used; is the archive unpacked, or does --audio name the folder?"
        if empty
        else "--allow-missing leaves them out; every result then says how many clips it is among"
    )
    lines = [f"  {row.split}  {row.file_name!r}  {row.status}: {row.reason}" for row in bad]
    raise InputError(
        "\n".join(
            [
                f"expected every clip to be usable, got {len(bad)} of {len(prepared.rows)} that are not:",
                prepared.summary(),
                *lines,
                f"no tables were written to {prepared.folder / 'csv_files'}, {MANIFEST} has all of this: {remedy}",
            ]
        )
    )


def _write_table(path: Path, captions: list[tuple[str, str]]) -> None:
    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "caption"])
            writer.writerows(captions)

    atomic_write(path, write)
