"""The index of what is searched: the embeddings of a folder of audio, or of a file of captions, kept beside it.

RECORDINGS.index/KEY.safetensors holds the embeddings of the folder RECORDINGS, a row a clip, and of every clip size and
time of modification. KEY stands for all that an embedding depends on besides its clip: weights, clip length, precision.
What was added or changed since is embedded, what was removed is dropped, everything else stays; and so an interrupted
computation goes on where it was last saved.

Search is exact, by one product of the query with every row, for any number of rows: a million clips are 4 GB that are
read once a query, a fraction of a second, where embedding them has taken days. An approximate index would answer
sooner, and with other ranks than those that metrics count.
"""

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from reference_model import InputError
from reference_model.data.audio import SUFFIXES, audio_files_in
from reference_model.runtime.signals import raise_if_stop_requested
from reference_model.runtime.tensors import load_tensors, save_tensors

if sys.platform == "darwin":
    # There torch and faiss bring an LLVM OpenMP each, the second of which refuses to start, and crashes once it has
    # threads of its own; it is let in, and gets none. (GNU's, which both bring on Linux, do not mind each other.)
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
import faiss

if sys.platform == "darwin":
    faiss.omp_set_num_threads(1)

SECONDS_BETWEEN_SAVES = 30.0  # at least, and
SHARE_OF_SAVES = 0.05  # at most, of the time: an index of millions takes long to write

log = logging.getLogger(__name__)

Stamp = list[int]  # of a file: size, and time of modification in ns; of a caption nothing, for it is its own name
Embedded = list[tuple[str, Tensor | str]]  # names, with the embedding of each, [D], or why there is none


class Found(NamedTuple):
    """A result of a search."""

    rank: int  # from 1
    score: float  # cosine similarity
    item: str  # a caption, or the name of a clip relative to the folder that was searched


@dataclass(frozen=True)
class Index:
    """What can be found, and its embeddings."""

    items: list[str]
    embeddings: Tensor  # [N, D], float32, normalised, on the CPU
    left_out: Mapping[str, str]  # what cannot be embedded, and why not

    def nearest(self, query: Tensor, top: int) -> list[Found]:
        """The items most similar to the query, ``[D]``, best first; those of equal scores by name.

        Raises:
            InputError: top is less than 1.
        """
        if top < 1:
            raise InputError(f"expected top >= 1, got {top}")
        number = len(self.items)
        # One more than asked for, and more, until the last one is less similar: names decide between equal scores.
        taken = min(top + 1, number)
        while True:
            scores, rows = faiss.knn(
                query[None].numpy(), self.embeddings.numpy(), taken, metric=faiss.METRIC_INNER_PRODUCT
            )
            if taken == number or scores[0, -1] < scores[0, top - 1]:
                break
            taken = min(2 * taken, number)
        found = ((-float(score), self.items[row]) for score, row in zip(scores[0], rows[0], strict=True))
        return [Found(rank, -score, item) for rank, (score, item) in enumerate(sorted(found)[:top], start=1)]


def place_of_index(searched: Path, key: str, elsewhere: str | Path | None) -> Path:
    """The file of an index: beside what is searched, or in a folder for the indexes of many.

    Raises:
        InputError: nothing can lie beside what is searched, or its name is not UTF-8.
    """
    searched = searched.resolve()
    try:
        f"{searched}{elsewhere or ''}".encode()
    except UnicodeEncodeError as error:
        raise InputError(f"expected a path in UTF-8, got {shown(str(searched))}") from error
    if elsewhere is not None:
        path = hashlib.sha256(os.fsencode(searched)).hexdigest()[:8]
        return Path(elsewhere) / f"{searched.name or 'root'}-{path}" / f"{key}.safetensors"
    if not searched.name:
        raise InputError(f"expected another folder for the index of {searched}, got none; --index names it")
    return searched.with_name(f"{searched.name}.index") / f"{key}.safetensors"


def stamps_of_audio(folder: Path) -> tuple[dict[str, Stamp], dict[str, str]]:
    """The audio files of a folder by name, with their stamps; and those that cannot be opened now, with the reason.

    Raises:
        InputError: there is no such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder of audio at {folder}, got {'a file' if folder.exists() else 'nothing'}")
    stamps, closed = {}, {}
    for name in sorted(audio_files_in(folder)):
        try:
            status = os.stat(folder / name)
        except OSError as error:  # a link to nothing
            closed[name] = str(error.strerror)
            continue
        if os.access(folder / name, os.R_OK):
            stamps[name] = [status.st_size, status.st_mtime_ns]
        else:
            closed[name] = "no permission to read it"
    if not stamps and not closed:
        raise InputError(f"expected audio files ({' '.join(sorted(SUFFIXES))}) in {folder}, got none")
    return stamps, closed


def up_to_date(path: Path, stamps: Mapping[str, Stamp], embed: Callable[[list[str]], Iterator[Embedded]]) -> Index:
    """Read the index, or make it, or embed what it lacks.

    Several processes may ask for the same index at the same time: one of them embeds, the others wait for it.

    Args:
        path: the file of the index.
        stamps: what the index is to hold, in this order; what has another stamp than it had is embedded again.
        embed: embeddings for names, or reasons, in parts, at once or one after another.

    Raises:
        InputError: the index cannot be written, or is something else.
    """
    stored = _read(path)
    if stored.entries.keys() != stamps.keys() or any(stored.entries[name][0] != stamps[name] for name in stamps):
        with _alone(path), logging_redirect_tqdm():
            stored = _bring_up_to_date(path, stamps, embed)
    return stored.ordered(stamps).as_index()


@dataclass(frozen=True)
class _Stored:
    """The content of an index file."""

    entries: dict[str, tuple[Stamp, str | None]]  # by name: stamp, and why there is no embedding
    embeddings: Tensor  # [N, D], of the entries that have one, in their order

    def ordered(self, stamps: Mapping[str, Stamp]) -> "_Stored":
        """Those of these names that have these stamps, in this order."""
        entries = {
            name: self.entries[name]
            for name, stamp in stamps.items()
            if name in self.entries and self.entries[name][0] == stamp
        }
        if list(entries) == list(self.entries):
            return self
        row_of = {name: row for row, name in enumerate(self._embedded())}
        rows = [row_of[name] for name in entries if name in row_of]
        return _Stored(entries, self.embeddings[torch.tensor(rows, dtype=torch.int64)])

    def with_more(self, entries: dict[str, tuple[Stamp, str | None]], rows: list[Tensor]) -> "_Stored":
        """Entries and the rows of those that have one, at the end."""
        if rows:
            before = [self.embeddings] if len(self.embeddings) else []  # one without rows may have no width
            return _Stored(self.entries | entries, torch.cat([*before, torch.stack(rows)]))
        return _Stored(self.entries | entries, self.embeddings)

    def as_index(self) -> Index:
        left_out = {name: reason for name, (_, reason) in self.entries.items() if reason is not None}
        return Index(self._embedded(), self.embeddings, left_out)

    def _embedded(self) -> list[str]:
        return [name for name, (_, reason) in self.entries.items() if reason is None]


def _bring_up_to_date(
    path: Path, stamps: Mapping[str, Stamp], embed: Callable[[list[str]], Iterator[Embedded]]
) -> _Stored:
    stored = _read(path).ordered(stamps)  # again: by now another process may have done it
    entries: dict[str, tuple[Stamp, str | None]] = {}
    rows: list[Tensor] = []

    def save() -> float:
        """Returns when to save again."""
        nonlocal stored
        began = time.monotonic()
        stored = stored.with_more(entries, rows).ordered(stamps)
        entries.clear()
        rows.clear()
        _write(path, stored)
        ended = time.monotonic()
        return ended + max(SECONDS_BETWEEN_SAVES, (ended - began) / SHARE_OF_SAVES)

    again = time.monotonic() + SECONDS_BETWEEN_SAVES
    missing = [name for name in stamps if name not in stored.entries]
    try:
        for part in embed(missing) if missing else ():
            for name, made in part:
                entries[name] = (stamps[name], made if isinstance(made, str) else None)
                if isinstance(made, str):
                    log.warning("%s is left out: %s", shown(name), shown(made))
                else:
                    rows.append(made)
            if time.monotonic() >= again:
                again = save()
    finally:  # also where something stopped it
        save()
    return stored


# The names are an array of their own, for safetensors limits its header to 100 MB.
_EMBEDDINGS, _ENTRIES = "embeddings", "entries"


def _write(path: Path, stored: _Stored) -> None:
    entries = json.dumps([[name, *entry] for name, entry in stored.entries.items()])
    text = torch.frombuffer(bytearray(entries.encode()), dtype=torch.uint8)
    with _refusals(path):
        save_tensors(path, {_EMBEDDINGS: stored.embeddings, _ENTRIES: text})


def _read(path: Path) -> _Stored:
    if not path.exists():
        return _Stored({}, torch.empty(0, 0))
    try:
        arrays, _ = load_tensors(path)
        entries: list[Any] = json.loads(arrays[_ENTRIES].numpy().tobytes())
        stored = _Stored({name: (stamp, reason) for name, stamp, reason in entries}, arrays[_EMBEDDINGS])
        if len(stored.as_index().items) != len(stored.embeddings):
            raise ValueError(f"{len(stored.embeddings)} embeddings of {len(stored.as_index().items)} items")
    except (KeyError, ValueError) as error:
        raise InputError(f"expected an index at {path}, got: {error}; without that file it is made again") from error
    return stored


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time brings an index up to date. The lock ends with its process, in any case."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        with _refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process is at work on %s: waiting for it", path)
        while not lock.is_locked:
            raise_if_stop_requested()
            try:
                lock.acquire(timeout=1)
            except Timeout:
                continue
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """A disk that is full, or not to be written, in words."""
    try:
        yield
    except Timeout:  # which is an OSError
        raise
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"expected to write an index in {path.parent}, got: {error}; --index names another folder"
        ) from error


def shown(name: str) -> str:
    """A name, or a text that holds one, in one line; quoted where it holds what cannot be seen."""
    return name if name.isprintable() and name == name.strip() else repr(name)
