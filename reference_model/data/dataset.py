"""Clips and captions from disk, in the same layout for every data set:

    ROOT/NAME/csv_files/{train,val,test}.csv    file_name,caption  or  file_name,caption_1,...,caption_5
    ROOT/NAME/waveforms/{train,val,test}/FILE_NAME

Rows of one file name are one clip. A name counts within its split only, and is used as it stands: real names begin
with spaces or hyphens and hold quotes and entities.
"""

import csv
import hashlib
import itertools
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from tqdm import tqdm

from reference_model import InputError
from reference_model.data.audio import load_waveform
from reference_model.data.manifest import MANIFEST, read_manifest

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Clip:
    """An audio file and its captions, one or more."""

    path: Path
    captions: tuple[str, ...]


def rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file with their line numbers, the header first; every field of them holds text.

    Raises:
        InputError: a row has more or fewer fields than the header, or an empty one; or the file is no CSV in UTF-8.
    """
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        header: list[str] = []
        try:
            for row in reader:
                header = header or row
                if len(row) != len(header) or not all(field.strip() for field in row):
                    raise InputError(
                        f"expected {len(header)} fields with text in line {reader.line_num} of {table}, got {row}"
                    )
                yield reader.line_num, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"expected a CSV file in UTF-8 at {table}, got {error}") from error


def read_split(root: str | Path, dataset: str, split: str) -> list[Clip]:
    """The clips of a split, in the order of its CSV file.

    Raises:
        InputError: the CSV file is missing, or a line of it is not as the layout asks; names file and line.
    """
    table = Path(root) / dataset / "csv_files" / f"{split}.csv"
    if not table.is_file():
        raise InputError(
            f"expected the captions of the {split} split at {table}, got no file; "
            f"prepare --dataset {dataset} makes it, and --data names the folder that holds {dataset}/"
        )
    captions: dict[str, list[str]] = {}
    for name, *texts in _captioned(table):
        captions.setdefault(name, []).extend(texts)
    if not captions:
        raise InputError(f"expected at least one clip in {table}, got the header alone")
    folder = Path(root) / dataset / "waveforms" / split
    return [Clip(folder / name, tuple(of_clip)) for name, of_clip in captions.items()]


def _captioned(table: Path) -> Iterator[list[str]]:
    """The rows of a table of clips: a file name, and captions."""
    listed = rows(table)
    _, header = next(listed, (1, []))
    if len(header) < 2 or header[0] != "file_name" or not all(c.startswith("caption") for c in header[1:]):
        raise InputError(
            f"expected the header file_name,caption or file_name,caption_1,... in {table}, "
            f"got {','.join(header) or 'nothing'}"
        )
    for _, row in listed:
        yield row


def read_captions(file: Path) -> list[str]:
    """The captions in a file: one a line, empty lines left out; or those of a table of clips, if it ends in .csv.

    Raises:
        InputError: the file is missing, holds no caption, or is no text in UTF-8.
    """
    if not file.is_file():
        raise InputError(f"expected a file of captions at {file}, got {'a folder' if file.is_dir() else 'no file'}")
    if file.suffix.lower() == ".csv":
        captions = [caption for _, *texts in _captioned(file) for caption in texts]
    else:
        try:
            with file.open(encoding="utf-8-sig") as lines:
                captions = [line.strip() for line in lines if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"expected captions in UTF-8, one a line, in {file}, got {error}") from error
    if not captions:
        raise InputError(f"expected at least one caption in {file}, got none")
    return captions


def leave_signals_to_the_first_process(worker: int) -> None:
    """In a process that reads: Ctrl-C, and a cluster, signal all processes, and the first one says when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def batches(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate over a loader; what one of its processes refuses is refused in its own words, without its traceback."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from error


class Waveforms(Dataset[Tensor]):
    """Each clip once: ``[samples]`` at 32 kHz."""

    def __init__(self, clips: list[Clip], seconds: float) -> None:
        self.clips = clips
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        return load_waveform(self.clips[index].path, self.seconds)


class Pairs(Dataset[dict[str, Any]]):
    """Every caption with its clip, as training sees them: a clip with five captions makes five pairs."""

    def __init__(self, clips: list[Clip], token_ids: list[list[int]], seconds: float) -> None:
        """token_ids: those of all captions, in the order of ``captions_of(clips)``."""
        self.waveforms = Waveforms(clips, seconds)
        self.token_ids = token_ids
        self.clip_of_caption = clip_of_caption(clips).tolist()

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.clip_of_caption[index]
        return {"waveform": self.waveforms[clip], "token_ids": self.token_ids[index], "id": clip}


class Share(Sampler[list[int]]):
    """The part of every batch that one of several processes reads; parts differ by one pair at most."""

    def __init__(self, batches: BatchSampler, process: int, processes: int) -> None:
        self.batches, self.process, self.processes = batches, process, processes
        self.first = 0  # the batch that the next iteration begins with

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in itertools.islice(self.batches, self.first, None):
            start, stop = (len(batch) * part // self.processes for part in (self.process, self.process + 1))
            yield batch[start:stop]


def captions_of(clips: list[Clip]) -> list[str]:
    """All captions, clip by clip."""
    return [caption for clip in clips for caption in clip.captions]


def checksums(root: str | Path, dataset: str, split: str, clips: list[Clip]) -> list[str]:
    """The SHA-256 of every clip's file: from the manifest of a prepared data set, or else computed."""
    manifest = Path(root) / dataset / MANIFEST
    rows = read_manifest(manifest) if manifest.exists() else []
    known = {row.file_name: row.sha256 for row in rows if row.split == split}

    def checksum(clip: Clip) -> str:
        return known.get(clip.path.name) or hashlib.sha256(clip.path.read_bytes()).hexdigest()

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(checksum, clips), "checksums of audio files", len(clips), leave=False, unit="file"))


def clip_of_caption(clips: list[Clip]) -> Tensor:
    """For every caption the index of its clip, ``[M]``."""
    return torch.repeat_interleave(torch.tensor([len(clip.captions) for clip in clips]))


def pad_tokens(token_ids: list[list[int]]) -> dict[str, Tensor]:
    """Token ids and attention mask, ``[B, T]`` each, padded with 0 to the longest."""
    ids = [torch.tensor(sentence) for sentence in token_ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(sentence) for sentence in ids], batch_first=True),
    }


def collate(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Pairs to what the dual encoder takes, by modality, and the ids of their clips, ``[B]``."""
    return {
        "audio": {"waveforms": torch.stack([pair["waveform"] for pair in pairs])},
        "text": pad_tokens([pair["token_ids"] for pair in pairs]),
        "ids": torch.tensor([pair["id"] for pair in pairs]),
    }


class FromFiles:
    """Batches of pairs, read and decoded by ``workers`` processes, on the device."""

    def __init__(self, pairs: Pairs, share: Share, workers: int, device: torch.device) -> None:
        self.share, self.device = share, device
        self.loader = DataLoader(
            pairs,
            batch_sampler=share,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_signals_to_the_first_process,
        )

    def from_step(self, step: int) -> Iterator[dict[str, Any]]:
        """The epoch's batches after that many."""
        self.share.first = step
        for batch in batches(self.loader):
            yield {
                "audio": {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch["audio"].items()},
                "text": {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch["text"].items()},
                "ids": batch["ids"].to(self.device, non_blocking=True),
            }
