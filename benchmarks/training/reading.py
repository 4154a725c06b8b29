"""How many clips does a process read and decode in a second, prepared and as downloaded?

A training that takes c clips a second needs c / (clips a second and worker) workers, ``--workers``. Files are noise of
16 bits, 44.1 kHz, stereo, as downloads often are. The system keeps them in memory, so a slow disk does not show here.

``python -m benchmarks.training.reading`` writes reading.csv and .md.
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
from benchmarks.results import Record, write_table
from reference_model.data.audio import load_waveform
from reference_model.data.prepare import prepare

RATE = 44_100  # Hz, of the downloaded files
CLIPS = 4  # clips of each split


def download(folder: Path, seconds: float) -> None:
    """Write a data set of noise in this project's layout."""
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
    """Return a call that reads the training clips one after the other."""
    paths = sorted((folder / "waveforms" / "train").iterdir())

    def read_all() -> None:
        for path in paths:
            load_waveform(path, seconds)

    return read_all


def measure(*, seconds: float, rounds: int) -> list[Record]:
    """Return a record for every data set, with its clip length, and kind of files."""
    records: list[Record] = []
    for dataset, length in tqdm({"AudioCaps": 10.0, "Clotho": 30.0}.items(), "lengths"):
        with tempfile.TemporaryDirectory() as temporary:
            raw, prepared = Path(temporary) / "raw", Path(temporary) / "prepared"
            download(raw, length)
            prepare(raw, dataset, prepared, workers=0)
            calls = {"downloaded": reading(raw, length), "prepared": reading(prepared / dataset, length)}
            timings = interleaved(calls, seconds=seconds, rounds=rounds)
        for name, timing in timings.items():
            median, lower, upper = (1e3 * CLIPS / ms for ms in (timing.median, timing.upper, timing.lower))
            record = {"data set": dataset, "s, a clip": length, "files": name}
            record["clips a second and worker"] = round(median)
            record["quartiles"] = f"{lower:.0f} to {upper:.0f}"
            record["workers for 500 clips a second"] = -(-500 // max(1, round(median)))
            # 2 channels of 2 bytes; prepared: one channel of 4 bytes at 32 kHz
            record["MB, a clip"] = round(length * (RATE * 4 if name == "downloaded" else 32_000 * 4) / 1e6, 1)
            records.append(record)
    return records


@click.command()
@options.seconds(2.0)
@options.rounds(5)
@options.out
def main(seconds: float, rounds: int, folder: Path) -> None:
    """Time the reading of clips, prepared and as downloaded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    records = measure(seconds=seconds, rounds=rounds)
    about = "one thread; noise of 44.1 kHz, stereo, 16 bits, and what prepare makes of it"
    write_table(folder, "reading", records, about)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
