"""How many clips does a process read and decode in a second, prepared and as downloaded?

A training that takes c clips a second needs c / (clips a second and worker) workers, ``--workers``. Files are noise of
16 bits, 44.1 kHz, stereo, as downloads often are; they are read from memory that the system keeps of the disk, so a
disk that is slower than that shows nowhere here. ``python -m benchmarks.training.reading`` writes reading.csv and .md.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
import soundfile
import torch
from tqdm import tqdm

from benchmarks import options
from benchmarks.measure import Call, interleaved
from benchmarks.results import Row, write_table
from reference_model.data.audio import load_waveform
from reference_model.data.prepare import prepare

RATE = 44_100
CLIPS = 4  # of each split, read in turn


def download(folder: Path, seconds: float) -> None:
    """A data set of noise in this project's layout."""
    random = np.random.default_rng(0)
    (folder / "csv_files").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (folder / "waveforms" / split).mkdir(parents=True)
        names = [f"{clip}.wav" for clip in range(CLIPS)]
        for name in names:
            noise = random.uniform(-0.5, 0.5, (round(seconds * RATE), 2))
            soundfile.write(folder / "waveforms" / split / name, noise, RATE, "PCM_16")
        lines = ["file_name,caption", *(f"{name},Noise" for name in names)]
        (folder / "csv_files" / f"{split}.csv").write_text("\n".join(lines) + "\n")


def reading(folder: Path, seconds: float) -> Call:
    paths = sorted((folder / "waveforms" / "train").iterdir())

    def read_all() -> None:
        for path in paths:
            load_waveform(path, seconds)

    return read_all


def measure(*, seconds: float, rounds: int) -> list[Row]:
    torch.set_num_threads(1)  # as in a worker
    rows: list[Row] = []
    for dataset, length in tqdm({"AudioCaps": 10.0, "Clotho": 30.0}.items(), "lengths"):
        with tempfile.TemporaryDirectory() as temporary:
            raw, prepared = Path(temporary) / "raw", Path(temporary) / "prepared"
            download(raw, length)
            prepare(raw, dataset, prepared, workers=0)
            calls = {"downloaded": reading(raw, length), "prepared": reading(prepared / dataset, length)}
            timings = interleaved(calls, seconds=seconds, rounds=rounds)
        for name, timing in timings.items():
            a_second = [1e3 * CLIPS / ms for ms in (timing.median, timing.upper, timing.lower)]
            rows.append(
                {"data set": dataset, "s, a clip": length, "files": name,
                 "clips a second and worker": round(a_second[0]),
                 "quartiles": f"{a_second[1]:.0f} to {a_second[2]:.0f}",
                 "workers for 500 clips a second": -(-500 // max(1, round(a_second[0]))),
                 "MB, a clip": round(length * (RATE * 4 if name == "downloaded" else 32_000 * 4) / 1e6, 1)}
            )  # fmt: skip
    return rows


@click.command()
@options.repetitions(seconds=2.0, rounds=5)
@options.out
def main(seconds: float, rounds: int, folder: Path) -> None:
    """Time the reading of clips, prepared and as downloaded."""
    rows = measure(seconds=seconds, rounds=rounds)
    write_table(folder, "reading", rows, "one thread; noise of 44.1 kHz, stereo, 16 bits, and what prepare makes of it")


if __name__ == "__main__":
    main()
