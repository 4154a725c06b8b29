"""A corpus of scenes whose events are recordings, with captions.

A scene is one to three events of different labels, one "then" the next, or one "while" the others. An event takes one
of the label's recordings in the split, higher or lower, cut out or repeated, loud or quiet; the scene adds noise.
Captions differ in wording and in exactness, and one in four of several events leaves one of them out.

Captions follow from the settings and the recordings to the letter. So do clips to the bit, on one kind of processor and
with one version of NumPy, FFmpeg, soxr and torch: on others, decoding, resampling and Fourier transforms may round in
another way.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import soxr

from reference_model import InputError
from reference_model.data.audio import SAMPLE_RATE
from reference_model.data.corpus import Corpus, RenderedClip, Signal, describe_differently, open_corpus, write_split
from reference_model.data.dataset import SPLITS, data_folder, write_csv
from reference_model.data.recordings import (
    Label,
    Recording,
    check_recordings,
    digest,
    load_recording,
    read_labels,
    split_recordings,
)

Random = np.random.Generator
T = TypeVar("T")

RECORDINGS = "recordings.csv"  # in the folder of the corpus: the split of every recording
IN_MEMORY = 400  # recordings at most: a gigabyte, if all are long
COUNTS = {1: 0.2, 2: 0.5, 3: 0.3}  # number of events in a scene: how often
DECIBELS = {"loud": -16.0, "quiet": -28.0}  # of full scale
LOUD = 0.6  # of the events
HIGHEST = 0.25  # octaves, up or down
LEFT_OUT, VAGUE, PLACED = 0.25, 0.12, 0.2  # how often: an event, the exact name, and a word about the loudness
PLACES = {"loud": ("loudly", "nearby", "close by"), "quiet": ("quietly", "far away", "in the background")}
ALONE = ("{}", "{} can be heard", "the sound of {}", "one hears {}", "a recording of {}", "nothing but {}")
THEN = ("{}, then {}", "{} and then {}", "{} followed by {}", "{} before {}", "{}; afterwards {}")
AFTER = ("{} after {}", "{}, and before it {}", "{} preceded by {}")  # the second of two events comes first
WHILE = ("{} and {}", "{} with {}", "{} over {}", "{} together with {}", "{} and at the same time {}")


@dataclass(frozen=True)
class Event:
    """A label, and whether it is "loud" or "quiet"."""

    label: str
    level: str


@dataclass(frozen=True)
class Scene:
    """Events alone, one after the other ("then"), or at once ("while")."""

    events: tuple[Event, ...]
    joint: str  # "alone", "then" or "while"


@dataclass(frozen=True, kw_only=True)
class SceneCorpus(Corpus):
    """The settings of a corpus of scenes; with the same recordings they make the same files."""

    events: int = max(COUNTS)  # in a scene, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.events not in COUNTS:
            raise InputError(f"expected 1 to {max(COUNTS)} events, got {self.events}")


def _choose(random: Random, values: Sequence[T]) -> T:
    return values[int(random.integers(len(values)))]


def draw_scenes(random: Random, labels: Sequence[str], events: int, number: int) -> list[Scene]:
    """Draw scenes of so many events at most, with different labels as far as a few draws find any."""
    counts = [count for count in COUNTS if count <= events]
    chances = np.array([COUNTS[count] for count in counts])
    scenes: list[Scene] = []
    known: set[tuple[str, ...]] = set()
    for _ in range(number):
        count = int(random.choice(counts, p=chances / chances.sum()))
        joint = "alone" if count == 1 else _choose(random, ("then", "while"))
        for _ in range(10):
            drawn = [labels[index] for index in random.choice(len(labels), count, replace=False)]
            if joint == "while":  # the order of simultaneous events has no meaning
                drawn.sort()
            if (joint, *drawn) not in known:
                break
        known.add((joint, *drawn))
        levels = np.where(random.uniform(size=count) < LOUD, "loud", "quiet")
        scenes.append(Scene(tuple(Event(label, str(level)) for label, level in zip(drawn, levels, strict=True)), joint))
    return scenes


def vary(random: Random, recording: Signal, longest: int) -> Signal:
    """Return a recording, ``[samples]``, as it is heard in one scene, of ``longest`` samples at most.

    It is up to a quarter of an octave higher or lower, a part of it where it is longer, and repeated where it is short.
    """
    step = 2 ** random.uniform(-HIGHEST, HIGHEST)
    sound: Signal = soxr.resample(recording, SAMPLE_RATE * step, SAMPLE_RATE)
    length = min(len(sound), round(longest * random.uniform(0.7, 1)))
    starts = [0, *random.integers(len(sound) - length + 1, size=2)]
    sound = max((sound[start : start + length] for start in starts), key=lambda part: float(part @ part))
    fade = min(length // 8, SAMPLE_RATE // 100)
    sound = sound * np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / max(fade, 1))
    gap = round(random.uniform(0.05, 0.3) * SAMPLE_RATE)
    times = min(int(random.integers(1, 5)), (longest + gap) // (length + gap))
    return np.tile(np.append(sound, np.zeros(gap)), times)[: times * (length + gap) - gap]


def scale(random: Random, sound: Signal, level: str) -> Signal:
    """Return a sound whose louder samples have the power of a level, give or take 3 dB."""
    power = sound**2
    louder = power[power >= power.mean()].mean() + 1e-12
    scaled: Signal = sound * np.sqrt(10 ** ((DECIBELS[level] + random.uniform(-3, 3)) / 10) / louder)
    return scaled


def background(random: Random, samples: int) -> Signal:
    """Return noise whose power falls with frequency by 0 to 6 dB an octave, 35 to 60 dB below full scale."""
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    real, imaginary = random.standard_normal((2, len(frequency)))
    noise: Signal = np.fft.irfft((real + 1j * imaginary) / (frequency + 20) ** random.uniform(0, 1), samples)
    noise *= 10 ** (random.uniform(-60, -35) / 20) / np.sqrt(np.mean(noise**2))
    return noise


def place(random: Random, joint: str, lengths: Sequence[int], samples: int) -> list[int]:
    """Return where the events begin: each in a part of its own, or all within the longest of them ("while")."""
    if joint == "then":
        part = samples // len(lengths)
        return [index * part + int(random.integers(part - length + 1)) for index, length in enumerate(lengths)]
    longest = max(lengths)
    first = int(random.integers(samples - longest + 1))
    return [first + int(random.integers(longest - length + 1)) for length in lengths]


def render(random: Random, scene: Scene, seconds: float, record: Callable[[Random, str], Signal]) -> Signal:
    """Return the waveform of a scene at 32 kHz mono, ``[samples]``, in [-1, 1].

    ``record(random, label)`` returns one of the label's recordings, ``[samples]``.
    """
    samples = round(seconds * SAMPLE_RATE)
    waveform = background(random, samples) if random.uniform() < 0.8 else np.zeros(samples)
    longest = samples // len(scene.events) if scene.joint == "then" else samples
    sounds = [scale(random, vary(random, record(random, event.label), longest), event.level) for event in scene.events]
    starts = place(random, scene.joint, [len(sound) for sound in sounds], samples)
    for start, sound in zip(starts, sounds, strict=True):
        waveform[start : start + len(sound)] += sound
    waveform /= max(1.0, float(abs(waveform).max()) / 0.99)
    return waveform


def describe(random: Random, scene: Scene, labels: Mapping[str, Label]) -> str:
    """Return a caption of a scene, in random words."""
    events = list(scene.events)
    if len(events) > 1 and random.uniform() < LEFT_OUT:
        del events[random.integers(len(events))]
    names = [_name(random, event, labels[event.label]) for event in events]
    if len(names) == 1:
        sentence = _choose(random, ALONE).format(*names)
    elif scene.joint == "then" and len(names) == 2 and random.uniform() < 0.3:
        sentence = _choose(random, AFTER).format(*reversed(names))
    else:
        joints = THEN if scene.joint == "then" else WHILE
        if scene.joint == "while":
            random.shuffle(names)
        sentence = functools.reduce(lambda before, name: _choose(random, joints).format(before, name), names)
    return sentence[0].upper() + sentence[1:]


def _name(random: Random, event: Event, label: Label) -> str:
    vague = bool(label.category) and random.uniform() < VAGUE
    name = _choose(random, label.category if vague else label.phrases)
    return f"{name} {_choose(random, PLACES[event.level])}" if random.uniform() < PLACED else name


def synthesize_scenes(corpus: SceneCorpus, sounds: Path, out: Path, *, name: str, phrases: Path | None = None) -> Path:
    """Render what is missing of a corpus into ``out/name``, whose events are the recordings in a folder.

    The corpus has the layout of :mod:`reference_model.data.corpus`, and ``recordings.csv``, which says in which split
    every recording is. Corpora of the same recordings and the same seed have the same recordings in each split,
    whatever their other settings are.

    Raises:
        InputError: recordings or phrases are not as :mod:`reference_model.data.recordings` describes them; the folder
            holds something else; or another process is at work there.
        Stopped: a stop was requested; the same call continues.
    """
    folder = data_folder(out, name)
    labels = read_labels(sounds, phrases)
    if len(labels) < corpus.events:
        raise InputError(f"expected at least {corpus.events} labels, as many as a scene has, got {len(labels)}")

    @functools.lru_cache(IN_MEMORY)
    def load(recording: str) -> Signal:
        return load_recording(sounds / recording)

    check_recordings(labels, load)
    splits = split_recordings(labels, corpus.seed)
    with open_corpus(folder, {**asdict(corpus), "recordings": digest(labels)}):
        rows = [
            [split, label, recording.name, recording.checksum]
            for split, by_label in splits.items()
            for label, recordings in by_label.items()
            for recording in recordings
        ]
        write_csv(folder / RECORDINGS, [["split", "label", "recording", "sha256"], *rows])
        for index, split in enumerate(SPLITS):
            clips = _clips(corpus, index, labels, splits[split], load)
            write_split(folder, split, clips, getattr(corpus, split))
    return folder


def _clips(
    corpus: SceneCorpus,
    index: int,
    labels: Sequence[Label],
    recordings: Mapping[str, Sequence[Recording]],
    load: Callable[[str], Signal],
) -> Iterator[RenderedClip]:
    """Yield the clips of a split, which is known by its index in SPLITS, with its recordings by label."""
    by_name = {label.name: label for label in labels}

    def record(random: Random, label: str) -> Signal:
        return load(_choose(random, recordings[label]).name)

    number = getattr(corpus, SPLITS[index])
    scenes = draw_scenes(np.random.default_rng([corpus.seed, index]), list(by_name), corpus.events, number)
    for clip, scene in enumerate(scenes):
        random = np.random.default_rng([corpus.seed, index, clip])
        captions = describe_differently(partial(describe, random, scene, by_name))
        tags = [event.label for event in scene.events]
        yield RenderedClip(captions, tags, partial(render, random, scene, corpus.seconds, record))
