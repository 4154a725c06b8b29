"""The manifest of a prepared data set: every clip of its tables, usable or not and why; length, peak, checksum."""

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from reference_model import InputError, reason_of
from reference_model.data.audio import SAMPLE_RATE
from reference_model.data.dataset import Clip, data_folder, write_csv
from reference_model.data.layouts import DATA_SETS
from reference_model.paper import DATASET_SIZES
from reference_model.runtime.files import require_file

MANIFEST = "manifest.csv"  # in the folder of the data set
MUCH_LONGER = 1.2  # times the fixed length of a data set's clips
STATUSES = ("ok", "missing", "unreadable", "truncated", "too short", "silent", "blacklisted")


@dataclass(frozen=True)
class ManifestRow:
    """A clip in the manifest; unknown fields are None or empty."""

    split: str
    file_name: str  # within waveforms/SPLIT
    status: str  # one of STATUSES
    seconds: float | None = None
    source_sample_rate: int | None = None
    source_channels: int | None = None
    peak: float | None = None
    sha256: str = ""
    reason: str = ""


MANIFEST_COLUMNS = [field.name for field in fields(ManifestRow)]


def read_manifest(path: Path) -> list[ManifestRow]:
    """Return the rows of a manifest; anything else is an InputError."""
    require_file(path)
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            header, *rows = csv.reader(lines)
        if header != MANIFEST_COLUMNS:
            raise ValueError(",".join(header))
        return [_parse(row) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"expected a manifest of prepared clips at {path}, got {reason_of(error)}") from error


def write_manifest(path: Path, rows: Sequence[ManifestRow]) -> None:
    """Write a manifest, completely or not at all."""
    write_csv(path, [MANIFEST_COLUMNS, *(astuple(row) for row in rows)])


def _parse(cells: list[str]) -> ManifestRow:
    split, file_name, status, seconds, rate, channels, peak, sha256, reason = cells
    numbers = (_finite(seconds), int(rate) if rate else None, int(channels) if channels else None, _finite(peak))
    return ManifestRow(split, file_name, status, *numbers, sha256, reason)


def _finite(cell: str) -> float | None:
    if cell and not math.isfinite(number := float(cell)):
        raise ValueError(cell)
    return number if cell else None


def summary(dataset: str, rows: Sequence[ManifestRow]) -> str:
    """Return a text table: clips of each split by status, the counts of the paper, hours, and size when prepared."""
    paper = DATASET_SIZES.get(dataset)
    statuses = [s for s in STATUSES if s != "blacklisted" or any(row.status == s for row in rows)]
    header = ["split", "listed", *statuses, *(["paper"] if paper else []), "hours", "GB"]
    lines = [header]
    for split in (*dict.fromkeys(row.split for row in rows), "all"):
        of_split = [row for row in rows if split in (row.split, "all")]
        counts = Counter(row.status for row in of_split)
        seconds = sum(row.seconds or 0 for row in of_split if row.status == "ok")
        published = [f"{sum(paper.values()) if split == 'all' else paper[split]:,}"] if paper else []
        sizes = [f"{seconds / 3600:.2f}", f"{seconds * SAMPLE_RATE * 4 / 1e9:.2f}"]
        lines.append([split, *(f"{n:,}" for n in (len(of_split), *(counts[s] for s in statuses))), *published, *sizes])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def much_longer(dataset: str, rows: Sequence[ManifestRow]) -> str:
    """Return a line that counts the clips much longer than those of the data set, or an empty text without any.

    Such clips are of another download, or were not cut.
    """
    fixed = DATA_SETS[dataset].clip_seconds if dataset in DATA_SETS else math.inf
    long = [(row.seconds, row) for row in rows if row.seconds is not None and row.seconds > MUCH_LONGER * fixed]
    if not long:
        return ""
    seconds, row = max(long, key=lambda pair: pair[0])
    example = f"{row.split} {row.file_name!r} has {seconds:.1f} s"
    return f"much longer than the {fixed:g} s of {dataset}: {len(long)} of {len(rows)} clips; {example}\n"


def in_several_splits(rows: Sequence[ManifestRow]) -> list[str]:
    """Return the clips with the same samples in different splits, as one line for each sound."""
    same: dict[str, list[ManifestRow]] = {}
    for row in rows:
        if row.status == "ok":
            same.setdefault(row.sha256, []).append(row)
    return [
        " = ".join(f"{row.split} {row.file_name!r}" for row in clips)
        for clips in same.values()
        if len({row.split for row in clips}) > 1
    ]


def audio_checksums(root: str | Path, dataset: str, split: str, clips: list[Clip]) -> list[str]:
    """Return the SHA-256 of every clip's file, from the manifest of a prepared data set, or else computed."""
    manifest = data_folder(root, dataset) / MANIFEST
    rows = read_manifest(manifest) if manifest.exists() else []
    known = {row.file_name: row.sha256 for row in rows if row.split == split}

    def checksum(clip: Clip) -> str:
        return known.get(clip.path.name) or hashlib.sha256(clip.path.read_bytes()).hexdigest()

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(checksum, clips), "checksums of audio files", len(clips), leave=False, unit="file"))
