"""How close to the speed of the platform's matrix product is every loss?

The roofline of a loss is k M: M, the time of one B x B x D product, done as (B/t)^2 products of t x D by D x t; and k,
the number of such products that the loss cannot do without. Nothing else is part of it: no normalisation, no
exponentials, and always the same tile. ``python -m benchmarks.roofline`` writes roofline.csv and .md.
"""

from pathlib import Path

import click
import torch
from tqdm import tqdm

from benchmarks import options
from benchmarks.batch import Conditions
from benchmarks.measure import Call, time_losses
from benchmarks.results import Record, write_table
from crossmodal_losses import LOSSES
from crossmodal_losses.engine.dispatch import largest_dense

# k: forward and backward, without storing S; where all of S is kept, none has more than 3.
PRODUCTS = {
    "triplet_sum": 3,
    "triplet_max": 1,
    "triplet_weighted": 1,
    "triplet_weighted_mined": 1,
    "nt_xent": 4,
    "sup_con": 4,
    "sigmoid": 3,
}
# Device -> t.
SIDE = {"cpu": 1024, "cuda": 4096}


def product(B: int, t: int, conditions: Conditions) -> Call:
    """Return a call that computes one B x B x D product, as tiles of t x t."""
    a, b = (torch.randn(t, conditions.D, dtype=conditions.dtype, device=conditions.device) for _ in range(2))
    tile = torch.empty(t, t, dtype=conditions.dtype, device=conditions.device)

    def call() -> None:
        for _ in range((B // t) ** 2):
            torch.mm(a, b.T, out=tile)

    return call


@click.command()
@options.conditions(options.device, options.seconds(1.0), options.rounds(5), dimension=1024)
@options.batch_sizes(1024, 4096, 8192)
@click.option("--side", type=click.IntRange(1), help="t, of the roofline's tiles.  [default: 1024, on a GPU 4096]")
@options.suffix
@options.out
def main(conditions: Conditions, batch_sizes: tuple[int, ...], side: int | None, suffix: str, folder: Path) -> None:
    """Time every loss over the roofline k M of its matrix products, in one interleaved run."""
    t = side or SIDE[conditions.device]
    records: list[Record] = []
    for B in tqdm(batch_sizes, "sizes"):
        if B % t:
            raise click.BadParameter(f"expected batch sizes divisible by the side of a tile, {t}, got {B}")
        losses = {name: LOSSES[name]() for name in conditions.losses}
        timings = time_losses(losses, *conditions.embeddings(B), conditions, M=product(B, t, conditions))
        M = timings.pop("M").median
        for name, timing in timings.items():
            aggregation = LOSSES[name]().objective.aggregation
            keeps = largest_dense(aggregation, torch.device(conditions.device)) >= B
            k = min(PRODUCTS[name], 3) if keeps else PRODUCTS[name]
            record = {"loss": name, "B": B, "D": conditions.D, **timing.columns(), "k": k, "M in ms": round(M, 3)}
            record["times the floor k M"] = round(timing.median / (k * M), 2)
            record["TFLOP/s of M"] = f"{2 * B * B * conditions.D / M / 1e9:.3g}"
            records.append(record)
    about = f"forward and backward, {conditions}; M: one B x B x D product in tiles of {t} x {t}"
    write_table(folder, f"roofline{suffix}", records, about)


if __name__ == "__main__":
    main()
