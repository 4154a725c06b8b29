"""Run every benchmark that a CPU can answer, with default settings: ``python -m benchmarks``."""

import tempfile
import time
from pathlib import Path

import click

from benchmarks import losses, memory, negatives, ranks, roofline, tile_size
from benchmarks.results import RESULTS
from benchmarks.training import adam, fine_tuning, frozen_runs, reading

# The benchmarks, and arguments with which each takes seconds, for a trial.
SUITE: list[tuple[click.Command, str]] = [
    (losses.main, "-b 32 -b 64 --dimension 64 --no-compile --seconds 0 --rounds 2"),
    (roofline.main, "-b 2048 --dimension 64 --seconds 0 --rounds 2"),
    (tile_size.main, "-b 512 -t 128 -t 256 --dimension 64 --seconds 0 --rounds 2"),
    (memory.main, "-b 1024 --dimension 64 --loss nt_xent"),
    (negatives.main, "-b 16 -q 8 --queue 64 --dimension 16 --no-compile --memory-from 32 --seconds 0 --rounds 2"),
    (ranks.main, "-w 1 -w 2 -b 512 --rows 128 --dimension 64 --tile-size 128 --rounds 2 --loss nt_xent"),
    (reading.main, "--seconds 0 --rounds 2"),
    (frozen_runs.main, "--divisor 20 --seconds 0 --rounds 2"),
    (adam.main, "--batch-size 4 --seconds 0 --rounds 2"),
    (fine_tuning.main, "--batch-size 2 --seconds-a-clip 1 --no-compile --seconds 0 --rounds 2"),
]


@click.command()
@click.option("--quick", is_flag=True, help="Tiny sizes, for a trial; the results go to a temporary folder.")
def main(quick: bool) -> None:
    """Measure everything and write benchmarks/results; half an hour on two cores.

    What only a GPU can answer: make gpu. Each module has options of its own: python -m
    benchmarks.losses --help, and likewise roofline, tile_size, memory, negatives, ranks, training.reading,
    training.frozen_runs, training.adam and training.fine_tuning.
    """
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-")) if quick else RESULTS
    started = time.perf_counter()
    for command, tiny in SUITE:
        command.main([*(tiny.split() if quick else []), "--out", str(folder)], standalone_mode=False)
    click.echo(f"results are in {folder}, after {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
