"""Labelled recordings: a folder of short sounds, each of which shows one kind of thing, such as a barking dog.

The label of a recording is the folder that it lies in, or else its name without a number at the end::

    FOLDER/LABEL/ANY NAME.wav       also in subfolders of LABEL
    FOLDER/LABEL-1.ogg              likewise LABEL_1, LABEL 1, LABEL1 and LABEL

A table ``label,category,phrases`` says what captions call a label: ``dog,an animal,a dog barking;the bark of a dog``.
The category names it less exactly. In both columns ``;`` separates alternatives, all of which are noun phrases. A label
that the table does not have is called by its name.

Every recording belongs to one split, which follows from the seed, the label, and the content of the recordings alone.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from reference_model import InputError
from reference_model.data.audio import SAMPLE_RATE, audio_files_in, decode
from reference_model.data.corpus import Signal
from reference_model.data.dataset import SPLITS, csv_rows
from reference_model.runtime.signals import raise_if_stop_requested

HEADER = ["label", "category", "phrases"]
HELD_OUT = 6  # one recording of so many is for validation, and one for testing; at least one for each
LONGEST_SOUND = 10.0  # seconds of a recording that are used
SHORTEST_SOUND = 0.02  # seconds; less is no sound that could be told from others
FAINT = 0.02  # of the peak, at the beginning and the end of a recording, is cut off


@dataclass(frozen=True)
class Recording:
    """A file of sound."""

    name: str  # relative to the folder of all recordings
    checksum: str  # SHA-256 of its content


@dataclass(frozen=True)
class Label:
    """A kind of sound, and its recordings."""

    name: str
    phrases: tuple[str, ...]  # what captions call it
    category: tuple[str, ...]  # the same, less exactly
    recordings: tuple[Recording, ...]


def read_labels(sounds: Path, phrases: Path | None = None) -> list[Label]:
    """Return the labels of a folder of recordings, sorted by name, with the phrases of a table.

    Raises:
        InputError: there are no recordings, or too few of a label; the same recording is there twice; labels differ in
            nothing but capitals, or cannot be written into a table; or the table of phrases is wrong.
    """
    if not sounds.is_dir():
        raise InputError(f"expected a folder of recordings at {sounds}, got {'a file' if sounds.exists() else 'none'}")
    names: dict[str, list[str]] = {}
    for name in sorted(audio_files_in(sounds)):
        names.setdefault(label_of(name), []).append(name)
    if not names:
        raise InputError(f"expected recordings as {sounds}/LABEL/NAME.wav or {sounds}/LABEL-1.wav, got no audio file")
    _check_names(names, sounds)
    table = {} if phrases is None else read_phrases(phrases, names)
    labels = []
    for label, files in sorted(names.items()):
        called = table.get(label, ((), (re.sub("[_-]", " ", label),)))
        recordings = tuple(Recording(name, _checksum(sounds / name)) for name in files)
        labels.append(Label(label, category=called[0], phrases=called[1], recordings=recordings))
    _check_contents(labels, sounds)
    return labels


def label_of(name: str) -> str:
    """Return the label of a recording, whose name is relative to the folder of all recordings.

    >>> label_of("dog/barks 3.wav"), label_of("car horn-12.ogg"), label_of("3d_printer.wav")
    ('dog', 'car horn', '3d_printer')
    """
    path = Path(name)
    return path.parts[0] if len(path.parts) > 1 else re.sub(r"[-_ ]?\d+$", "", path.stem)


def _checksum(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"expected readable audio, got {path}: {error.strerror}") from error


def _check_names(names: dict[str, list[str]], sounds: Path) -> None:
    for label, (first, *_) in names.items():
        if not label.strip() or label != label.strip() or ";" in label or not label.isprintable():
            expected = "a label of printable characters without ; and without spaces around it"
            raise InputError(f"expected {expected}, got {label!r} of {sounds / first}")
    spellings: dict[str, str] = {}
    for label in names:
        plain = re.sub("[_-]", " ", label).casefold()
        if (other := spellings.setdefault(plain, label)) != label:
            raise InputError(f"expected one spelling of each label, got {other} and {label} in {sounds}")
    few = [f"{len(files)} of {label}" for label, files in sorted(names.items()) if len(files) < len(SPLITS)]
    if few:
        least = f"at least {len(SPLITS)} recordings of each label, one for each split"
        raise InputError(f"expected {least}, got {', '.join(few)} in {sounds}")


def _check_contents(labels: list[Label], sounds: Path) -> None:
    """Refuse a recording that is there twice: one of the two could be trained on, and the other tested."""
    seen: dict[str, str] = {}
    for recording in (recording for label in labels for recording in label.recordings):
        if (other := seen.setdefault(recording.checksum, recording.name)) != recording.name:
            raise InputError(f"expected different recordings in {sounds}, got {other} and {recording.name} alike")


def read_phrases(table: Path, labels: Iterable[str]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return categories and phrases by label from a table ``label,category,phrases``.

    Raises:
        InputError: the table has another form, a label twice, an empty phrase, or a label that is not among ``labels``.
    """
    if not table.is_file():
        raise InputError(f"expected a table {','.join(HEADER)} at {table}, got no file")
    rows = csv_rows(table)
    if (header := next(rows, (1, []))[1]) != HEADER:
        raise InputError(f"expected the header {','.join(HEADER)} in {table}, got {','.join(header) or 'nothing'}")
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    known = set(labels)
    for line, (label, *texts) in rows:
        category, phrases = (tuple(phrase.strip() for phrase in text.split(";")) for text in texts)
        if label not in known:
            raise InputError(f"expected labels that have recordings, got {label} in line {line} of {table}")
        if label in found:
            raise InputError(f"expected each label once, got {label} again in line {line} of {table}")
        if not all((*category, *phrases)):
            raise InputError(f"expected phrases between all ; in line {line} of {table}, got an empty one")
        found[label] = category, phrases
    return found


def split_recordings(labels: Sequence[Label], seed: int) -> dict[str, dict[str, tuple[Recording, ...]]]:
    """Return the recordings of each split and label. Every recording belongs to one split.

    Of a label, one recording in six, but at least one, is for validation, as many are for testing, and the others are
    for training. They are dealt out in the order of checksums of the seed and the recording.
    """

    def order(recording: Recording) -> str:
        return hashlib.sha256(f"{seed} {recording.checksum}".encode()).hexdigest()

    splits: dict[str, dict[str, tuple[Recording, ...]]] = {split: {} for split in SPLITS}
    for label in labels:
        held_out = max(1, len(label.recordings) // HELD_OUT)
        dealt = sorted(label.recordings, key=order)
        parts = dealt[2 * held_out :], dealt[:held_out], dealt[held_out : 2 * held_out]
        for split, part in zip(SPLITS, parts, strict=True):
            splits[split][label.name] = tuple(part)
    return splits


def digest(labels: Sequence[Label]) -> str:
    """Return a checksum of the labels, their phrases, and the names and contents of their recordings."""
    content = json.dumps([asdict(label) for label in labels], ensure_ascii=False)
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()


def load_recording(path: Path) -> Signal:
    """Return the sound in a recording at 32 kHz mono, ``[samples]``, with a peak of 1 and no silence around it.

    Raises:
        InputError: the file is not readable as audio, or there is no sound in it.
    """
    waveform = decode(path, LONGEST_SOUND)[: round(LONGEST_SOUND * SAMPLE_RATE)].to(torch.float64).numpy()
    loudness = abs(waveform)
    peak = float(loudness.max(initial=0))
    audible = (loudness > FAINT * peak).nonzero()[0]
    sound: Signal = waveform[audible[0] : audible[-1] + 1] if len(audible) else waveform[:0]
    if len(sound) < SHORTEST_SOUND * SAMPLE_RATE:
        raise InputError(
            f"expected {SHORTEST_SOUND} s of sound or more, got {len(sound) / SAMPLE_RATE:.3f} s in {path}"
        )
    sound /= peak
    return sound


def check_recordings(labels: Sequence[Label], load: Callable[[str], Signal]) -> None:
    """Load every recording once; the InputError names all that cannot be used."""
    faults = []
    recordings = [recording for label in labels for recording in label.recordings]
    for recording in tqdm(recordings, "reading recordings", leave=False, unit="file"):
        raise_if_stop_requested()
        try:
            load(recording.name)
        except InputError as error:
            faults.append(str(error))
    if len(faults) > 1:
        faults.insert(0, f"expected usable recordings, got {len(faults)} bad of {len(recordings)}:")
    if faults:
        raise InputError("\n  ".join(faults))
