"""A small corpus of rendered sound scenes with captions, to run the experiment without a download.

A scene is one event, or one "then" another, or one "while" another. An event is a kind of sound in a register, quiet or
loud. Clips of one scene differ in pitch, timing, level and background noise; its captions differ in wording, order, and
in whether they mention the loudness. Everything follows from the seed, and each clip has a random generator of its own.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from reference_model import InputError
from reference_model.data.audio import HOP, SAMPLE_RATE
from reference_model.data.corpus import Corpus, RenderedClip, Signal, describe_differently, open_corpus, write_split
from reference_model.data.dataset import SPLITS, data_folder

Random = np.random.Generator
T = TypeVar("T")

REGISTERS = {"low": ("low", "deep"), "mid": ("mid", "medium-pitched"), "high": ("high", "shrill")}
LEVELS = {"quiet": ("quiet", "faint", "soft"), "loud": ("loud", "strong", "powerful")}
DECIBELS = {"quiet": -30.0, "loud": -14.0}


@dataclass(frozen=True)
class Event:
    """A kind of sound (a key of SOUNDS) in a register, quiet or loud."""

    kind: str
    register: str
    level: str


@dataclass(frozen=True)
class Scene:
    """One event alone, or the second after the first ("then"), or both at once ("while")."""

    events: tuple[Event, ...]
    joint: str  # "alone", "then" or "while"


def _time(samples: int) -> Signal:
    return np.arange(samples, dtype=np.float64) / SAMPLE_RATE


def _oscillate(frequency: Signal) -> Signal:
    """Return a sine with the given frequency in Hz at every sample."""
    wave: Signal = np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE)
    return wave


def _band(random: Random, samples: int, low: float, high: float) -> Signal:
    """Return noise of unit power between two frequencies in Hz."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum[(frequency < low) | (frequency > high)] = 0
    noise: Signal = np.fft.irfft(spectrum, samples)
    noise /= np.sqrt(np.mean(noise**2)) + 1e-12
    return noise


def _buzz(_random: Random, samples: int, pitch: float) -> Signal:
    return sum((_oscillate(np.full(samples, pitch * k)) / k for k in (1, 3, 5, 7, 9)), np.zeros(samples))


def _rising(_random: Random, samples: int, pitch: float) -> Signal:
    return _oscillate(np.geomspace(0.6 * pitch, 1.6 * pitch, samples))


def _warble(random: Random, samples: int, pitch: float) -> Signal:
    rate = random.uniform(5, 9)
    return _oscillate(pitch * (1 + 0.2 * np.sin(2 * np.pi * rate * _time(samples))))


def _rumble(random: Random, samples: int, pitch: float) -> Signal:
    rate = random.uniform(3, 6)
    swell = 1 + 0.8 * np.sin(2 * np.pi * (rate * _time(samples) + random.uniform()))
    return swell * _band(random, samples, 0.2 * pitch, 0.45 * pitch)


def _clicks(random: Random, samples: int, pitch: float) -> Signal:
    impulses = np.zeros(samples)
    period = int(SAMPLE_RATE / random.uniform(6, 12))
    impulses[random.integers(period) :: period] = 1
    ring = _oscillate(np.full(800, 1.5 * pitch)) * np.exp(-_time(800) * 400)
    return np.convolve(impulses, ring)[:samples]


# Kind of sound: a function that renders it at a pitch in Hz, and its names in captions.
SOUNDS: dict[str, tuple[Callable[[Random, int, float], Signal], tuple[str, ...]]] = {
    "tone": (lambda _, samples, pitch: _oscillate(np.full(samples, pitch)), ("tone", "steady beep", "constant note")),
    "buzz": (_buzz, ("buzz", "buzzing noise", "droning buzzer")),
    "rising": (_rising, ("rising whistle", "whistle going up", "upward sweep")),
    "falling": (lambda *sound: _rising(*sound)[::-1], ("falling whistle", "whistle going down", "downward sweep")),
    "warble": (_warble, ("warble", "trilling sound", "wavering note")),
    "hiss": (
        lambda random, samples, pitch: _band(random, samples, 1.5 * pitch, 4 * pitch),
        ("hiss", "hissing noise", "rush of air"),
    ),
    "rumble": (_rumble, ("rumble", "rumbling noise", "throbbing engine")),
    "clicks": (_clicks, ("clicking noise", "series of clicks", "ticking noise")),
}
PITCHES = {"low": 300.0, "mid": 900.0, "high": 2700.0}  # Hz


def _render_event(random: Random, event: Event, samples: int) -> Signal:
    pitch = PITCHES[event.register] * 2 ** random.uniform(-0.25, 0.25)
    sound = SOUNDS[event.kind][0](random, samples, pitch)
    fade = min(samples // 8, SAMPLE_RATE // 50)
    sound[:fade] *= np.linspace(0, 1, fade)
    sound[-fade:] *= np.linspace(1, 0, fade)
    decibels = DECIBELS[event.level] + random.uniform(-2, 2)
    scaled: Signal = sound / (np.sqrt(np.mean(sound**2)) + 1e-12) * 10 ** (decibels / 20)
    return scaled


def render(random: Random, scene: Scene, seconds: float) -> Signal:
    """Return the waveform of a scene at 32 kHz mono, ``[samples]``, in [-1, 1]."""
    total = round(seconds * SAMPLE_RATE)
    waveform = 10 ** (random.uniform(-70, -50) / 20) * random.standard_normal(total)
    windows = [(0, total)] * len(scene.events)
    if scene.joint == "then":
        middle = round(total * random.uniform(0.42, 0.58))
        windows = [(0, middle), (middle, total)]
    for event, (start, end) in zip(scene.events, windows, strict=True):
        length = round((end - start) * random.uniform(0.7, 0.95))
        length -= length % HOP  # Fourier transforms are fast for lengths with small prime factors
        onset = start + random.integers(end - start - length + 1)
        waveform[onset : onset + length] += _render_event(random, event, length)
    return waveform.clip(-1, 1)


def _choose(random: Random, values: Sequence[T]) -> T:
    return values[int(random.integers(len(values)))]


def _name(random: Random, event: Event) -> str:
    adjectives = [_choose(random, REGISTERS[event.register])]
    if random.uniform() < 0.9:
        adjectives.insert(random.integers(2), _choose(random, LEVELS[event.level]))
    return " ".join([*adjectives, _choose(random, SOUNDS[event.kind][1])])


def describe(random: Random, scene: Scene) -> str:
    """Return a caption of a scene, in random words."""
    first, second = [*(_name(random, event) for event in scene.events), ""][:2]
    sentences = {
        "alone": (f"a {first}", f"a {first} can be heard", f"there is a {first}", f"the sound of a {first} alone"),
        "then": (
            f"a {first}, then a {second}",
            f"a {first} is followed by a {second}",
            f"first a {first}, and after it a {second}",
            f"a {second} comes after a {first}",
            f"before a {second} there is a {first}",
        ),
        "while": (
            f"a {first} while a {second} sounds",
            f"a {first} together with a {second}",
            f"a {second} over a {first}",
            f"a {first} and a {second} at the same time",
        ),
    }
    sentence = _choose(random, sentences[scene.joint])
    return sentence[0].upper() + sentence[1:]


EVENTS = [Event(*words) for words in itertools.product(SOUNDS, REGISTERS, LEVELS)]


def draw_scene(random: Random) -> Scene:
    """Draw a scene: one event in a fifth of the cases, otherwise two events of different kinds."""
    joint = _choose(random, ("alone", "then", "then", "while", "while"))
    first = _choose(random, EVENTS)
    if joint == "alone":
        return Scene((first,), joint)
    second = _choose(random, [event for event in EVENTS if event.kind != first.kind])
    if joint == "while":  # the order of simultaneous events has no meaning
        first, second = sorted((first, second), key=EVENTS.index)
    return Scene((first, second), joint)


def draw_scenes(random: Random, number: int) -> list[Scene]:
    """Draw different scenes; a caption that does not mention the loudness may still fit two of them."""
    scenes: dict[Scene, None] = {}
    repeated = 0  # draws in a row
    while repeated < 1000:
        drawn = draw_scene(random)
        repeated = repeated + 1 if drawn in scenes else 0
        scenes[drawn] = None
        if len(scenes) == number:
            return list(scenes)
    raise InputError(f"expected a split of fewer clips than there are different scenes, got {number}")


def synthesize(corpus: Corpus, out: Path, *, name: str = "Synthetic") -> Path:
    """Render what is missing of the corpus into ``out/name``, in the layout of :mod:`reference_model.data.dataset`.

    Raises:
        InputError: the folder holds something else, or another process is at work there.
        Stopped: a stop was requested; the same call continues.
    """
    folder = data_folder(out, name)
    with open_corpus(folder, asdict(corpus)):
        for index, split in enumerate(SPLITS):
            write_split(folder, split, _clips(corpus, index), getattr(corpus, split))
    return folder


def _clips(corpus: Corpus, index: int) -> Iterator[RenderedClip]:
    """Yield the clips of a split, which is known by its index in SPLITS."""
    scenes = draw_scenes(np.random.default_rng([corpus.seed, index]), getattr(corpus, SPLITS[index]))
    for clip, scene in enumerate(scenes):
        random = np.random.default_rng([corpus.seed, index, clip])
        captions = describe_differently(partial(describe, random, scene))
        tags = [f"{event.register} {event.level} {event.kind}" for event in scene.events]
        yield RenderedClip(captions, tags, partial(render, random, scene, corpus.seconds))
