"""Prepare a downloaded data set for training, with a record of every clip.

The result is in the layout of :mod:`reference_model.data.dataset`::

    ROOT/DATASET/csv_files/{train,val,test}.csv         the usable clips with their captions, exactly as published
    ROOT/DATASET/waveforms/{train,val,test}/FILE        32 kHz mono WAV
    ROOT/DATASET/manifest.csv                           every clip: usable or not and why, length, peak, checksum

Samples are 32-bit floats, bit for bit those that :func:`reference_model.data.audio.decode` returns for the original
file, so training on prepared files equals training on the originals. 16 bits would not do: resampling lifts peaks
beyond 1, which would be clipped, and rounding adds noise to the quiet bins of a logarithmic spectrogram.

The process can be killed at any time and run again. A file under its final name is complete and has the modification
time of its source; while both are true it is not made again. The tables are written last, so that no training can use
half a data set.
"""

import hashlib
import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from reference_model import InputError
from reference_model.data.audio import (
    LONGEST,
    SAMPLE_RATE,
    SHORTEST,
    decode,
    inspect_audio,
    samples_when_decoded,
    write_wav,
)
from reference_model.data.dataset import SPLITS, data_folder, write_csv
from reference_model.data.decoding import Fault
from reference_model.data.layouts import DATA_SETS, read_download
from reference_model.data.manifest import MANIFEST, ManifestRow, much_longer, read_manifest, summary, write_manifest
from reference_model.data.sources import AudioBytes, DownloadedClip, ZipMember, as_file
from reference_model.runtime.children import end_with_parent
from reference_model.runtime.files import LONGEST_NAME, atomic_write
from reference_model.runtime.lease import GUARD, LOCK, PART, lock_folder
from reference_model.runtime.signals import raise_if_stop_requested

QUIETEST = 2**-15  # peak of a silent clip at most; one step of 16 bits


@dataclass(frozen=True)
class Prepared:
    """A prepared data set with its manifest."""

    folder: Path
    rows: list[ManifestRow]
    hold_out: float | None = None  # percent of the training clips that are held out for each split that was missing

    def summary(self) -> str:
        """Return a table of the clips of each split by status, beside the counts of the paper; and their length.

        Lines before it tell of clips that are held out, and count those much longer than the clips of this data set.
        """
        told = ""
        if self.hold_out is not None:
            told = (
                f"held out of train, by a checksum of their names, for each split without clips: {self.hold_out:g} %\n"
            )
        return told + much_longer(self.folder.name, self.rows) + summary(self.folder.name, self.rows)


def prepare(
    raw: Path,
    dataset: str,
    root: Path,
    *,
    audio: Path | None = None,
    hold_out: float | None = None,
    blacklist: str | None = None,
    allow_missing: bool = False,
    workers: int | None = None,
) -> Prepared:
    """Bring ``root/dataset`` up to date with a download in one of the layouts of ``layouts.py``, which is only read.

    Args:
        raw, dataset, audio, hold_out, blacklist: as in :func:`reference_model.data.layouts.read_download`.
        root: the folder that contains a folder for each data set.
        allow_missing: leave clips that cannot be used out of the tables, instead of writing no tables.
        workers: number of processes; 0 or 1: this process alone; None: one for each core.

    Raises:
        InputError: the download is not as expected, the folder belongs to something else, another process is at work
            there, or clips cannot be used; in the last case the usable clips and the manifest are written all the same.
    """
    known = next((n for n, of in DATA_SETS.items() if of.layouts and n.lower() == dataset.lower()), dataset)
    if known != dataset:
        raise InputError(f"expected --dataset {known}, got {dataset}")
    folder = data_folder(root, dataset)
    for original in (raw, audio):
        if original is not None and folder.resolve() in (original.resolve(), *original.resolve().parents):
            raise InputError(f"expected to write elsewhere than where the originals are, got {folder} for both")
    download = read_download(raw, dataset, audio=audio, hold_out=hold_out, blacklist=blacklist)
    tasks = [_Task(folder, split, clip) for split, clips in download.items() for clip in clips]
    _refuse_one_name_for_two_clips(tasks)
    _make_folder(folder)
    with lock_folder(folder, keep_guard=False):
        earlier = _read_or_begin_manifest(folder / MANIFEST)
        _remove_outdated(folder, tasks)
        rows = _prepare_clips(tasks, os.cpu_count() or 1 if workers is None else workers)
        prepared = Prepared(folder, [], hold_out)
        for row in tqdm(rows, "preparing", len(tasks), unit="clip"):
            prepared.rows.append(_keep_source_format(row, earlier))
            raise_if_stop_requested()
        write_manifest(folder / MANIFEST, prepared.rows)
        _refuse_unusable(prepared, allow_missing)
        _write_tables(prepared, tasks)
    return prepared


@dataclass(frozen=True)
class _Task:
    """A clip to prepare."""

    folder: Path
    split: str
    clip: DownloadedClip

    @property
    def target(self) -> Path:
        name = self.clip.file_name
        return self.folder / "waveforms" / self.split / (name if name.lower().endswith(".wav") else f"{name}.wav")


def _refuse_one_name_for_two_clips(tasks: list[_Task]) -> None:
    """Refuse equal names of targets: ``a.flac`` becomes ``a.flac.wav``, which may be the name of another clip."""
    named: dict[Path, str] = {}
    for task in tasks:
        name = task.clip.file_name
        if named.setdefault(task.target, name) != name:
            got = f"{named[task.target]} and {name} in {task.split}"
            raise InputError(f"expected names that differ once .wav is appended, got {got}")


def _make_folder(folder: Path) -> None:
    """Make the folder if there is none; refuse one of something else."""
    if not (folder / MANIFEST).is_file() and folder.is_dir():
        # A process that makes the folder at this moment, or was killed then, leaves nothing else.
        foreign = [x.name for x in folder.iterdir() if x.name not in (LOCK, GUARD)]
        foreign = [name for name in foreign if not (name.startswith(".") and name.endswith(PART))]
        if foreign and not (folder / MANIFEST).is_file():
            raise InputError(f"expected {folder} to be new, empty or prepared, got a folder without manifest.csv")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected to write {folder}, got: {error}; --data names another place") from error


def _read_or_begin_manifest(manifest: Path) -> dict[tuple[str, str], ManifestRow]:
    """Return the rows of a manifest; a new folder gets an empty one, which marks it as prepared."""
    if not manifest.is_file():
        write_manifest(manifest, [])
    return {(row.split, row.file_name): row for row in read_manifest(manifest)}


def _remove_outdated(folder: Path, tasks: list[_Task]) -> None:
    """Remove the tables, clips that are no longer listed, and the remains of an interrupted process."""
    for split in SPLITS:
        # The prepared clips are about to change; no training shall use them by accident.
        (folder / "csv_files" / f"{split}.csv").unlink(missing_ok=True)
        waveforms = folder / "waveforms" / split
        waveforms.mkdir(parents=True, exist_ok=True)
        names = {task.target.name for task in tasks if task.split == split}
        with os.scandir(waveforms) as listing:
            others = [Path(entry) for entry in listing if entry.name not in names]
        for path in others:
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            elif path.name.startswith(".") and path.suffix == ".part":
                shutil.rmtree(path)


def _prepare_clips(tasks: list[_Task], workers: int) -> Iterator[ManifestRow]:
    """Prepare the clips in processes, and yield their rows in the order of the tasks.

    Sounds that are in the rows of a table are read by this process, those of a few clips ahead of the others.
    """
    loaded = map(_load, tasks)
    if workers <= 1:
        yield from map(_prepare_clip, loaded)
        return
    # Processes that are forked from one that has used torch hang in its threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_init_worker)
    try:
        pending: deque[Future[ManifestRow]] = deque()
        for task in loaded:
            pending.append(pool.submit(_prepare_clip, task))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise_if_stop_requested()  # a signal to all processes may reach a worker that is not yet initialised
        lower = "--workers 1 needs the least memory, and the same command continues"
        raise InputError(f"expected {workers} processes that decode, got one that was ended; {lower}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _init_worker() -> None:
    """Let a worker use one thread, leave Ctrl-C to the main process, and end when that process ends."""
    end_with_parent()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _load(task: _Task) -> _Task:
    """Return the task with its sound in memory, if that is in the row of a table."""
    source = task.clip.source
    if source is None or isinstance(source, Path | ZipMember | AudioBytes | Fault):
        return task
    return replace(task, clip=replace(task.clip, source=source.read()))


def _prepare_clip(task: _Task) -> ManifestRow:
    source, target = task.clip.source, task.target
    row = ManifestRow(task.split, target.name, "ok")
    if task.clip.blacklist:
        target.unlink(missing_ok=True)
        return replace(row, status="blacklisted", reason=f"in {task.clip.blacklist}")
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        return replace(
            row, status="unreadable", reason=f"its name has more than {LONGEST_NAME} bytes with .wav at its end"
        )
    if (source is None or (isinstance(source, Path) and not source.exists())) and target.is_file():
        return _measure(row, target)  # the source was deleted after it was prepared
    if source is None:
        target.unlink(missing_ok=True)
        return replace(row, status="missing", reason="no file of this clip")
    assert isinstance(source, Path | ZipMember | AudioBytes | Fault), "expected a sound that was loaded"
    with as_file(source, target) as original:
        row = _prepare_file(row, original, target)
    return replace(row, reason=row.reason.replace(str(original), str(source)))


def _prepare_file(row: ManifestRow, original: Path | Fault, target: Path) -> ManifestRow:
    """Bring a prepared file up to date with its original, and return its row."""
    found = original if isinstance(original, Fault) else inspect_audio(original)
    if isinstance(original, Fault) or isinstance(found, Fault):
        target.unlink(missing_ok=True)
        return replace(row, **found._asdict())
    cut = f"only the first {LONGEST} s of {found.seconds:.0f} s" if found.seconds > LONGEST else ""
    row = replace(row, source_sample_rate=found.rate, source_channels=found.channels, reason=cut)
    modified = original.stat().st_mtime_ns
    expected, tolerance = samples_when_decoded(found)
    if not _is_current(target, modified, expected, tolerance):
        target.unlink(missing_ok=True)
        try:
            waveform = decode(original)
        except InputError as error:
            return _unreadable(row, error)
        if (fault := _fault_of_waveform(waveform, expected - tolerance)) is not None:
            return replace(row, seconds=len(waveform) / SAMPLE_RATE, **fault._asdict())
        atomic_write(target, lambda path: write_wav(path, waveform, modified))
    return _measure(row, target)


def _is_current(target: Path, modified: int, samples: int, tolerance: int) -> bool:
    """Return whether the prepared file has the modification time and the length of its source."""
    try:
        same_time = target.stat().st_mtime_ns == modified
        return same_time and abs(soundfile.info(target).frames - samples) <= tolerance
    except (OSError, soundfile.LibsndfileError):
        return False


def _fault_of_waveform(waveform: Tensor, expected: int) -> Fault | None:
    """Return the fault of a decoded clip, ``[samples]``, if it cannot be used."""
    samples = len(waveform)
    if samples < expected:
        return Fault("truncated", f"{samples} of {expected} samples at 32 kHz")
    if samples < SHORTEST:
        return Fault("too short", f"{samples} samples at 32 kHz, fewer than {SHORTEST}")
    peak = float(waveform.abs().max())
    if peak < QUIETEST:
        return Fault("silent", f"peak {peak:.1e}, less than one step of 16 bits")
    return None


def _unreadable(row: ManifestRow, error: InputError) -> ManifestRow:
    """Return the row of an unreadable clip, with the part of a message *expected ... got ...* that says why."""
    return replace(row, status="unreadable", reason=str(error).partition("got ")[2])


def _measure(row: ManifestRow, target: Path) -> ManifestRow:
    """Return the row of a prepared file with the length, the peak and the checksum of the file."""
    try:
        waveform = decode(target)
    except InputError as error:
        return _unreadable(row, error)
    checksum = hashlib.sha256(target.read_bytes()).hexdigest()
    return replace(row, seconds=len(waveform) / SAMPLE_RATE, peak=float(waveform.abs().max()), sha256=checksum)


def _keep_source_format(row: ManifestRow, earlier: dict[tuple[str, str], ManifestRow]) -> ManifestRow:
    """Take rate and channels of a source that has been deleted since from the earlier manifest."""
    before = earlier.get((row.split, row.file_name))
    if before is None or row.status != "ok" or row.source_channels is not None:
        return row
    return replace(row, source_sample_rate=before.source_sample_rate, source_channels=before.source_channels)


def _refuse_unusable(prepared: Prepared, allow_missing: bool) -> None:
    """Refuse clips that cannot be used, unless allowed; and always a split without a usable clip."""
    bad = [row for row in prepared.rows if row.status not in ("ok", "blacklisted")]
    empty = [split for split in SPLITS if not any(r.split == split and r.status == "ok" for r in prepared.rows)]
    if not empty and (allow_missing or not bad):
        return
    remedy = (
        f"no clip of {' and of '.join(empty)} can be used; is the archive unpacked, or does --audio name the folder?"
        if empty
        else "--allow-missing leaves them out; every result then says how many clips it is among"
    )
    lines = [
        f"expected every clip to be usable, got {len(bad)} of {len(prepared.rows)} that are not:",
        prepared.summary(),
        *(f"  {row.split}  {row.file_name!r}  {row.status}: {row.reason}" for row in bad),
        f"no tables were written to {prepared.folder / 'csv_files'}, {MANIFEST} has all of this: {remedy}",
    ]
    raise InputError("\n".join(lines))


def _write_tables(prepared: Prepared, tasks: list[_Task]) -> None:
    """Write the tables of the usable clips, one row a caption."""
    (prepared.folder / "csv_files").mkdir(exist_ok=True)
    usable = {(row.split, row.file_name) for row in prepared.rows if row.status == "ok"}
    for split in SPLITS:
        clips = [task for task in tasks if task.split == split and (split, task.target.name) in usable]
        captions = [(task.target.name, caption) for task in clips for caption in task.clip.captions]
        write_csv(prepared.folder / "csv_files" / f"{split}.csv", [("file_name", "caption"), *captions])
