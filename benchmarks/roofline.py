"""How close to the speed of the platform's matrix product is every loss?

The floor of a loss is k M: M, the time of one B x B x D product, done as (B/t)^2 products of t x D by D x t; and k, how
many such products the loss cannot do without. The floor does nothing else: no normalisation, no exponentials, and
always the same tile. ``python -m benchmarks.roofline`` writes roofline.csv and .md.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from tqdm import tqdm

from benchmarks import options
from benchmarks.batch import embeddings, gradients
from benchmarks.measure import Call, interleaved
from benchmarks.results import Row, write_table
from crossmodal_losses import LOSSES

# k: forward and backward, without storing S.
PRODUCTS = {"triplet_sum": 3, "triplet_max": 1, "triplet_weighted": 1, "triplet_weighted_mined": 1, "nt_xent": 4}
SIDE = {"cpu": 1024, "cuda": 4096}
M = "M"


def products(B: int, D: int, t: int, *, dtype: torch.dtype, device: str) -> Call:
    """One B x B x D product, as tiles of t x t."""
    a, b = (torch.randn(t, D, dtype=dtype, device=device) for _ in range(2))
    tile = torch.empty(t, t, dtype=dtype, device=device)

    def run() -> None:
        for _ in range((B // t) ** 2):
            torch.mm(a, b.T, out=tile)

    return run


def measure(
    names: Sequence[str], batch_sizes: Sequence[int], D: int, t: int, *, dtype: torch.dtype, device: str,
    seconds: float, rounds: int,
) -> list[Row]:  # fmt: skip
    """A row for every loss and size; losses and floor are measured in one interleaved run."""
    rows: list[Row] = []
    for B in tqdm(batch_sizes, "sizes"):
        if B % t:
            raise click.BadParameter(f"expected batch sizes divisible by the side of a tile, {t}, got {B}")
        x, y = embeddings(B, D, dtype=dtype, device=device)
        calls: dict[str, Call] = {M: products(B, D, t, dtype=dtype, device=device)}
        calls |= {name: functools.partial(gradients, LOSSES[name](), x, y) for name in names}
        timings = interleaved(calls, seconds=seconds, rounds=rounds)
        for name in names:
            floor = PRODUCTS[name] * timings[M].median
            rows.append(
                {"loss": name, "B": B, "D": D, **timings[name].columns(), "k": PRODUCTS[name],
                 "M in ms": round(timings[M].median, 3), "times the floor k M": round(timings[name].median / floor, 2),
                 "TFLOP/s of M": f"{2 * B * B * D / timings[M].median / 1e9:.3g}"}
            )  # fmt: skip
    return rows


def about(t: int, dtype: torch.dtype, device: str) -> str:
    return f"forward and backward, {dtype}, {device}; M: one B x B x D product in tiles of {t} x {t}"


@click.command()
@options.losses
@options.batch_sizes(8192)
@options.dimension(1024)
@click.option("--side", type=click.IntRange(1), help="t, of the floor's tiles.  [default: 1024, on a GPU 4096]")
@options.dtype()
@options.device
@options.repetitions(seconds=1.0, rounds=5)
@options.out
def main(
    names: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    dimension: int,
    side: int | None,
    dtype: torch.dtype,
    device: str,
    seconds: float,
    rounds: int,
    folder: Path,
) -> None:
    """Time every loss over the floor k M of its matrix products."""
    t = side or SIDE[device]
    rows = measure(names, batch_sizes, dimension, t, dtype=dtype, device=device, seconds=seconds, rounds=rounds)
    write_table(folder, "roofline", rows, about(t, dtype, device))


if __name__ == "__main__":
    main()
