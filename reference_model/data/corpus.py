"""The folder of a corpus of rendered clips. An interrupted rendering continues where it stopped.

A corpus has the layout of :mod:`reference_model.data.dataset`, and two things more: ``corpus.json`` with the settings
that it follows from, and ``tags/SPLIT.csv`` with the events in each clip.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from reference_model import InputError
from reference_model.data.audio import LONGEST, SAMPLE_RATE
from reference_model.data.dataset import write_csv
from reference_model.data.layouts import DATA_SETS
from reference_model.runtime.files import atomic_write, require_same_settings, write_json
from reference_model.runtime.lease import GUARD, lock_folder
from reference_model.runtime.records import read_json
from reference_model.runtime.signals import raise_if_stop_requested

Signal = NDArray[np.float64]

SETTINGS = "corpus.json"  # in the folder of a corpus
CAPTIONS = 5  # a clip


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The settings of a corpus; the same settings make the same files."""

    train: int = 600  # clips
    val: int = 200
    test: int = 200
    seconds: float = DATA_SETS["Synthetic"].clip_seconds
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.train, self.val, self.test) < 2 or not 0.5 <= self.seconds <= LONGEST or self.seed < 0:
            expected = f"expected at least 2 clips a split, 0.5 to {LONGEST} seconds, and a seed >= 0"
            raise InputError(f"{expected}, got {asdict(self)}")


@dataclass(frozen=True)
class RenderedClip:
    """A clip of a corpus."""

    captions: list[str]
    tags: list[str]  # one for each event
    render: Callable[[], Signal]  # returns its waveform at 32 kHz mono, [samples], in [-1, 1]


def describe_differently(describe: Callable[[], str]) -> list[str]:
    """Return five different captions, of a function that returns another one at almost every call."""
    captions: dict[str, None] = {}
    while len(captions) < CAPTIONS:
        captions[describe()] = None
    return list(captions)


@contextmanager
def open_corpus(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Lock a folder that is new or holds a corpus of these settings, and write the settings there.

    Raises:
        InputError: the folder holds something else, or another process is at work there.
    """
    if folder.exists() and not (folder / SETTINGS).exists() and not _is_locked_and_empty(folder):
        raise InputError(f"expected {folder} to be new or a synthetic corpus, got a folder without {SETTINGS}")
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, keep_guard=False):
        if (folder / SETTINGS).exists():
            expected, got = "new or of the same settings", f"a corpus of others; see {folder / SETTINGS}"
            stored = read_json(folder / SETTINGS, dict[str, Any], "the settings of a corpus")
            require_same_settings(folder, stored, settings, expected=expected, got=got)
        write_json(folder / SETTINGS, settings)
        yield


def _is_locked_and_empty(folder: Path) -> bool:
    """Return whether another process begins a corpus in the folder, or was killed when it did."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return GUARD in names and all(name.startswith(".") for name in names)


def write_split(folder: Path, split: str, clips: Iterable[RenderedClip], number: int) -> None:
    """Render the clips of a split that are not there yet, then write the tables of all of them.

    Raises:
        Stopped: a stop was requested; the same call continues.
    """
    waveforms = folder / "waveforms" / split
    waveforms.mkdir(parents=True, exist_ok=True)
    captions, tags = [], []
    for index, clip in enumerate(tqdm(clips, f"rendering {split}", number, unit="clip")):
        path = waveforms / f"{index:05d}.wav"
        captions.append([path.name, *clip.captions])
        tags.append([path.name, "; ".join(clip.tags)])
        raise_if_stop_requested()
        if not path.exists():
            atomic_write(path, partial(soundfile.write, data=clip.render(), samplerate=SAMPLE_RATE))
    columns = [f"caption_{k}" for k in range(1, CAPTIONS + 1)]
    for table, header, rows in (("tags", ["tags"], tags), ("csv_files", columns, captions)):
        (folder / table).mkdir(exist_ok=True)
        write_csv(folder / table / f"{split}.csv", [["file_name", *header], *rows])
