"""Search indices: embeddings of a folder of audio or of a file of captions, saved on disk and searched exactly.

The index of the folder RECORDINGS is RECORDINGS.index/KEY.safetensors. It holds the embedding of every clip, and the
size and modification time that its file had. KEY stands for everything that an embedding depends on besides its clip:
weights, clip length, precision. An update embeds new and changed clips and drops removed ones; everything else stays,
so an interrupted update continues where it was last saved.

Search is exact, by one product of the query with every row, for any number of rows: the embeddings of a million clips
are 4 GB, which are read once per query in a fraction of a second, while computing them takes days. An approximate index
is faster, but its ranks are not those that the metrics are computed from.
"""

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from reference_model import InputError, reason_of
from reference_model.data.audio import SUFFIXES, audio_files_in
from reference_model.runtime.files import NotWritten, fit_name
from reference_model.runtime.records import fault_of_form
from reference_model.runtime.signals import raise_if_stop_requested
from reference_model.runtime.tensors import load_tensors, save_tensors

if sys.platform == "darwin":
    # On macOS torch and faiss bring an LLVM OpenMP runtime each. The second one refuses to start, unless this variable
    # allows it, and crashes with more than one thread. (The GNU runtimes that both bring on Linux do not conflict.)
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
import faiss

if sys.platform == "darwin":
    faiss.omp_set_num_threads(1)

# An index of millions takes long to write: it is saved at most this often, and in at most this share of the time.
SECONDS_BETWEEN_SAVES = 30.0
SHARE_OF_SAVES = 0.05

log = logging.getLogger(__name__)

Version = list[int]  # of a file: size, and modification time in ns; of a caption: empty, because its text is its name
ItemEmbeddings = list[tuple[str, Tensor | str]]  # names with embeddings, [D], or with the reasons why there are none
Embed = Callable[[list[str]], Iterator[ItemEmbeddings]]  # computes those of items by name, in parts
Entries = dict[str, tuple[Version, str | None]]  # by name: version, and the reason why there is no embedding


class SearchResult(NamedTuple):
    """One result of a search."""

    rank: int  # from 1
    score: float  # cosine similarity
    item: str  # a caption, or the name of a clip relative to the folder that was searched


@dataclass(frozen=True)
class Index:
    """Items that can be found, and their embeddings."""

    items: list[str]
    embeddings: Tensor  # [N, D], float32, normalised, on the CPU
    skipped: Mapping[str, str]  # names of items that cannot be embedded, with the reasons

    def nearest(self, query: Tensor, top: int) -> list[SearchResult]:
        """Return the items most similar to the query, ``[D]``, best first; items of equal scores are sorted by name."""
        if top < 1:
            raise InputError(f"expected top >= 1, got {top}")
        number = len(self.items)
        # Names decide between equal scores. So more items are fetched until the score of the last one is lower.
        fetched = min(top + 1, number)
        while True:
            scores, rows = faiss.knn(query[None].numpy(), self.embeddings.numpy(), fetched, faiss.METRIC_INNER_PRODUCT)
            if fetched == number or scores[0, -1] < scores[0, top - 1]:
                break
            fetched = min(2 * fetched, number)
        ordered = sorted((-float(score), self.items[row]) for score, row in zip(scores[0], rows[0], strict=True))
        return [SearchResult(rank, -score, item) for rank, (score, item) in enumerate(ordered[:top], start=1)]


def index_path(searched: Path, key: str, folder: str | Path | None) -> Path:
    """Return the file of an index: in ``folder``, which may hold the indices of many; or beside what is searched."""
    searched = searched.resolve()
    try:
        f"{searched}{folder or ''}".encode()
    except UnicodeEncodeError as error:
        raise InputError(f"expected a path in UTF-8, got {printable(str(searched))}") from error
    if folder is not None:
        path = hashlib.sha256(os.fsencode(searched)).hexdigest()[:8]
        return Path(folder) / fit_name(searched.name or "root", after=f"-{path}") / f"{key}.safetensors"
    if not searched.name:
        raise InputError(f"expected another folder for the index of {searched}, got none; --index names it")
    return searched.with_name(fit_name(searched.name, after=".index")) / f"{key}.safetensors"


def versions_of_audio(folder: Path) -> tuple[dict[str, Version], dict[str, str]]:
    """Find the audio files of a folder: names with versions, and names that cannot be opened with the reasons."""
    if not folder.is_dir():
        raise InputError(f"expected a folder of audio at {folder}, got {'a file' if folder.exists() else 'nothing'}")
    versions, unopened = {}, {}
    for name in sorted(audio_files_in(folder)):
        try:
            status = os.stat(folder / name)
            if os.access(folder / name, os.R_OK):
                versions[name] = [status.st_size, status.st_mtime_ns]
            else:
                unopened[name] = "no permission to read it"
        except OSError as error:  # a link to nothing
            unopened[name] = str(error.strerror)
    if not versions and not unopened:
        usual = " ".join(sorted(SUFFIXES[:7]))
        raise InputError(f"expected audio files ({usual}) in {folder}, or others that FFmpeg decodes, got none")
    return versions, unopened


def load_or_update(path: Path, versions: Mapping[str, Version], embed: Embed) -> Index:
    """Return the index of these items, in this order; those that it lacks or has in another version are embedded.

    When several processes need the same index at the same time, one of them embeds and the others wait.
    """
    stored = _read(path)
    if {name: version for name, (version, _) in stored.entries.items()} != versions:
        with _locked(path), logging_redirect_tqdm():
            stored = _update(path, versions, embed)
    return stored.selected(versions).as_index()


@dataclass(frozen=True)
class _StoredIndex:
    """The content of an index file."""

    entries: Entries
    embeddings: Tensor  # [N, D], of the entries that have one, in their order

    def selected(self, versions: Mapping[str, Version]) -> "_StoredIndex":
        """Select the entries with these names and versions, in this order."""
        names = [name for name in versions if name in self.entries and self.entries[name][0] == versions[name]]
        if names == list(self.entries):
            return self
        row_of = {name: row for row, name in enumerate(self.as_index().items)}
        rows = [row_of[name] for name in names if name in row_of]
        entries = {name: self.entries[name] for name in names}
        return _StoredIndex(entries, self.embeddings[torch.tensor(rows, dtype=torch.int64)])

    def extended(self, entries: Entries, rows: list[Tensor]) -> "_StoredIndex":
        """Append entries, and the embeddings of those that have one."""
        before = [self.embeddings] if len(self.embeddings) else []  # an empty one may have another width
        embeddings = torch.cat([*before, torch.stack(rows)]) if rows else self.embeddings
        return _StoredIndex(self.entries | entries, embeddings)

    def as_index(self) -> Index:
        embedded = [name for name, (_, reason) in self.entries.items() if reason is None]
        skipped = {name: reason for name, (_, reason) in self.entries.items() if reason is not None}
        return Index(embedded, self.embeddings, skipped)


def _update(path: Path, versions: Mapping[str, Version], embed: Embed) -> _StoredIndex:
    """Embed the items that the index lacks, and save it from time to time and at the end."""
    stored = _read(path).selected(versions)  # read again: another process may have updated it
    entries: Entries = {}
    rows: list[Tensor] = []

    def save() -> float:
        """Save everything embedded so far; returns the time of the next save."""
        nonlocal stored
        started = time.monotonic()
        stored = stored.extended(entries, rows).selected(versions)
        entries.clear()
        rows.clear()
        listed = json.dumps([[name, *entry] for name, entry in stored.entries.items()]).encode()
        text = torch.frombuffer(bytearray(listed), dtype=torch.uint8)  # safetensors limits its header to 100 MB
        with _write_errors_refused(path):
            save_tensors(path, {"embeddings": stored.embeddings, "entries": text})
        ended = time.monotonic()
        return ended + max(SECONDS_BETWEEN_SAVES, (ended - started) / SHARE_OF_SAVES)

    next_save = time.monotonic() + SECONDS_BETWEEN_SAVES
    missing = [name for name in versions if name not in stored.entries]
    try:
        for part in embed(missing) if missing else ():
            for name, embedding in part:
                if isinstance(embedding, str):
                    entries[name] = (versions[name], embedding)
                    log.warning("%s is left out: %s", printable(name), printable(embedding))
                else:
                    entries[name] = (versions[name], None)
                    rows.append(embedding)
            if time.monotonic() >= next_save:
                next_save = save()
    finally:  # after an error or a signal too
        save()
    return stored


def _read(path: Path) -> _StoredIndex:
    if not path.exists():
        return _StoredIndex({}, torch.empty(0, 0))
    try:
        arrays, _ = load_tensors(path)
        entries = [tuple(entry) for entry in json.loads(arrays["entries"].numpy().tobytes())]
        if fault := fault_of_form(entries, list[tuple[str, list[int], str | None]]):
            raise ValueError(fault)
        rows = arrays["embeddings"]
        stored = _StoredIndex({name: (version, reason) for name, version, reason in entries}, rows)
        items = len(stored.as_index().items)
        if rows.ndim != 2 or rows.dtype != torch.float32 or len(rows) != items or not rows.isfinite().all():
            raise ValueError(f"{rows.dtype} {list(rows.shape)} as embeddings of {items} items, or not all finite")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected an index at {path}, got: {reason_of(error)}; without that file it is made again"
        ) from error
    return stored


def _locked(path: Path) -> AbstractContextManager[Any]:
    """Lock an index for this process while it is updated. The system releases the lock when the process ends."""
    lock = FileLock(path.with_suffix(".lock"))
    with _write_errors_refused(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            log.warning("another process is at work on %s: waiting for it", path)
        while True:
            raise_if_stop_requested()
            with suppress(Timeout):
                return lock.acquire(timeout=1)


@contextmanager
def _write_errors_refused(path: Path) -> Iterator[None]:
    """Convert errors of writing the index to InputError."""
    try:
        yield
    except OSError as error:
        reason = error.reason if isinstance(error, NotWritten) else error
        raise InputError(
            f"expected to write an index in {path.parent}, got: {reason}; --index names another folder"
        ) from error


def printable(text: str) -> str:
    """Return a name, or a text with a name in it, on one line; quoted if it holds characters that are not visible."""
    return text if text.isprintable() and text == text.strip() else repr(text)
