"""What only a GPU can answer: ``python -m benchmarks.gpu`` writes \\*-gpu.csv, .md and .png; by default in bfloat16.

* floor: how close to its matrix products every loss comes, B = 16384 and 65536;
* rivals: times beside what torch.compile makes of all of S, and Inf-CL, from B = 4096 while they fit;
* memory: the peak beyond inputs and gradients, up to B = 262144;
* million: one step at B = 1048576;
* ranks: where there are several GPUs, batches of 65536 over them, and of 16384 on each.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import torch
from tqdm import tqdm

from benchmarks import losses, memory, options, ranks, roofline
from benchmarks.baselines import COMPILED, INF_CL
from benchmarks.batch import embeddings, gradients
from benchmarks.measure import repeated
from benchmarks.results import Row, write_table
from crossmodal_losses import LOSSES


class Setting(NamedTuple):
    names: tuple[str, ...]
    D: int
    dtype: torch.dtype
    device: str
    divisor: int  # of every B
    folder: Path

    @property
    def about(self) -> str:
        return f"forward and backward, {self.dtype}, {self.device}"


def measure_floor(of: Setting) -> None:
    t = max(1, roofline.SIDE["cuda"] // of.divisor)
    sizes = [B // of.divisor for B in (16384, 65536)]
    rows = roofline.measure(of.names, sizes, of.D, t, dtype=of.dtype, device=of.device, seconds=1.0, rounds=5)
    write_table(of.folder, "roofline-gpu", rows, roofline.about(t, of.dtype, of.device))


def measure_rivals(of: Setting) -> None:
    sizes = [B // of.divisor for B in (4096, 16384, 65536)]
    only = (COMPILED, INF_CL)
    rows = losses.measure(
        of.names, sizes, of.D, dtype=of.dtype, device=of.device, seconds=0.5, rounds=5, only=only
    )  # fmt: skip
    losses.write(of.folder, rows, of.about, "-gpu")


def measure_memory(of: Setting) -> None:
    sizes = [B // of.divisor for B in (16384, 65536, 262144)]
    rows = memory.measure(
        of.names, sizes, of.D, dtype=of.dtype, device=of.device, largest_dense=32768 // of.divisor
    )  # fmt: skip
    memory.write(of.folder, "memory-gpu", rows, f"{of.dtype}, {of.device}")


def measure_million(of: Setting) -> None:
    B = (1 << 20) // of.divisor
    x, y = embeddings(B, of.D, dtype=of.dtype, device=of.device)
    small = embeddings(min(B, 16384), of.D, dtype=of.dtype, device=of.device)
    rows: list[Row] = []
    for name in tqdm(of.names, f"one step at B = {B}"):
        loss = LOSSES[name]()
        gradients(loss, *small)
        seconds = repeated(functools.partial(gradients, loss, x, y), 1)
        rows.append({"loss": name, "B": B, "D": of.D, "s": round(seconds, 3)})
    write_table(of.folder, "million-gpu", rows, f"one {of.about}")


def measure_ranks(of: Setting) -> None:
    count = torch.cuda.device_count()
    if count < 2:
        click.echo(f"ranks are left out: expected 2 GPUs or more, got {count}")
        return
    processes = [W for W in (1, 2, 4, 8) if count >= W]
    t, B, rows = (max(1, size // of.divisor) for size in (roofline.SIDE["cuda"], 65536, 16384))
    found = ranks.measure(
        of.names, processes, B, rows, of.D, tile_size=t, dtype=of.dtype, device=of.device, rounds=5, timeout=600
    )  # fmt: skip
    ranks.write(of.folder, "ranks-gpu", found, B, rows, f"{of.dtype}, {of.device}, tiles of {t}")


PARTS: dict[str, Callable[[Setting], None]] = {
    "floor": measure_floor,
    "rivals": measure_rivals,
    "memory": measure_memory,
    "million": measure_million,
    "ranks": measure_ranks,
}


@click.command()
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(list(PARTS)), default=list(PARTS), show_default=True,
    help="What to measure; give it several times for several.",
)  # fmt: skip
@options.losses
@options.dimension(1024)
@options.dtype("bfloat16")
@click.option(
    "--divisor", type=click.Choice(["1", "2", "4", "8", "16", "32", "64"]), default="1", show_default=True,
    help="Of every B: for a small GPU, or a trial.",
)  # fmt: skip
@options.out
def main(
    parts: tuple[str, ...], names: tuple[str, ...], dimension: int, dtype: torch.dtype, divisor: str, folder: Path
) -> None:
    """Measure on a CUDA device what a CPU cannot answer: floor, compiled rivals, memory, a million pairs, ranks."""
    if not torch.cuda.is_available():
        raise click.ClickException(f"expected a CUDA device, got none: torch {torch.__version__} sees no GPU")
    setting = Setting(names, dimension, dtype, "cuda", int(divisor), folder)
    for part in parts:
        PARTS[part](setting)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
