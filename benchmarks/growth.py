"""How does the time of a loss grow with B, and with D?

``python -m benchmarks.growth`` writes growth.csv, .md and .png, with the slope of a straight line through the
logarithms: a loss of B x B x D products grows with B to the power 2, and with D to at most 1.
"""

import functools
import math
import statistics
from pathlib import Path

import click
import torch
from tqdm import tqdm

from benchmarks import options
from benchmarks.batch import embeddings, gradients
from benchmarks.measure import Call, Timing, interleaved
from benchmarks.results import Row, write_plot, write_table
from crossmodal_losses import LOSSES


def slope(points: dict[int, Timing]) -> str:
    """The exponent of a fitted power law."""
    if len(points) < 2:
        return ""
    logarithms = zip(*((math.log(n), math.log(timing.median)) for n, timing in points.items()), strict=True)
    return f"{statistics.linear_regression(*logarithms).slope:.2f}"


@click.command()
@options.losses
@options.batch_sizes(1024, 2048, 4096, 8192, 16384)
@options.dimension(256)
@click.option(
    "--dimensions", "-d", multiple=True, type=click.IntRange(1), default=(64, 128, 256, 512, 1024), show_default=True,
    help="D, over which the second sweep goes; give it several times for several.",
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(2), default=4096, show_default=True, help="B of the second sweep.")
@options.dtype()
@options.device
@options.repetitions(seconds=0.2, rounds=3)
@options.out
def main(
    names: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    dimension: int,
    dimensions: tuple[int, ...],
    batch_size: int,
    dtype: torch.dtype,
    device: str,
    seconds: float,
    rounds: int,
    folder: Path,
) -> None:
    """Time every loss over B at one D (--dimension), and over D at one B (--batch-size)."""
    sweeps = {
        "B": [(B, dimension) for B in batch_sizes],
        "D": [(batch_size, D) for D in dimensions],
    }
    rows: list[Row] = []
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for over, sizes in sweeps.items():
        found: dict[str, dict[int, Timing]] = {name: {} for name in names}
        for B, D in tqdm(sizes, f"over {over}"):
            x, y = embeddings(B, D, dtype=dtype, device=device)
            calls: dict[str, Call] = {name: functools.partial(gradients, LOSSES[name](), x, y) for name in names}
            for name, timing in interleaved(calls, seconds=seconds, rounds=rounds).items():
                found[name][B if over == "B" else D] = timing
        title = f"over B, D = {dimension}" if over == "B" else f"over D, B = {batch_size}"
        panels[title] = {name: [(n, t.median) for n, t in points.items()] for name, points in found.items()}
        for name, points in found.items():
            for (B, D), timing in zip(sizes, points.values(), strict=True):
                rows.append(
                    {"loss": name, "over": over, "B": B, "D": D, **timing.columns(), "fitted slope": slope(points)}
                )
    write_table(folder, "growth", rows, f"forward and backward, {dtype}, {device}")
    write_plot(folder, "growth", panels, x="B or D", y="ms, forward and backward")


if __name__ == "__main__":
    main()
