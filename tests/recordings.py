"""Folders of labelled recordings: each is a steady tone of its own, which is known again in a mixture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATES = (32_000, 44_100, 22_050)
LABELS = {"cat": 3, "dog": 4, "owl": 3}  # number of recordings


def tones(labels: Mapping[str, int] = LABELS) -> dict[str, float]:
    """Return a frequency in Hz for each recording, by its name; they lie half an octave apart."""
    names = [f"{label}/{number}.wav" for label, recordings in labels.items() for number in range(recordings)]
    return {name: 400.0 * 2 ** (0.5 * index) for index, name in enumerate(names)}


def write_tones(folder: Path, labels: Mapping[str, int] = LABELS, *, seconds: float = 0.4) -> Path:
    """Write ``FOLDER/LABEL/NUMBER.wav``, of different rates, with silence before the tone."""
    for index, (name, hertz) in enumerate(tones(labels).items()):
        rate = RATES[index % len(RATES)]
        time = np.arange(round(rate * seconds)) / rate
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        silence = np.zeros(rate // 20)
        soundfile.write(folder / name, np.append(silence, 0.3 * np.sin(2 * np.pi * hertz * time)), rate)
    return folder


def heard(waveform: NDArray[np.float64], labels: Mapping[str, int] = LABELS) -> set[str]:
    """Return the names of the tones that are in a mixture with noise, up to a tenth of an octave higher or lower."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    frequency = np.fft.rfftfreq(len(waveform), 1 / 32_000)
    found = set()
    for name, hertz in tones(labels).items():
        band = power[(frequency > hertz * 2**-0.12) & (frequency < hertz * 2**0.12)]
        if band.max() > max(3e-4 * power.max(), 40 * np.median(band)):
            found.add(name)
    return found
