"""Which tile size is fastest, and up to which B is it faster to keep all of S?

``python -m benchmarks.tile_size`` writes tile_size.csv, .md and .png, in which the choice of ``tile_size=None`` is
marked. The limits of that choice come from this table.
"""

from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import options
from benchmarks.batch import Conditions, Loss
from benchmarks.measure import time_losses
from benchmarks.results import Panels, Record, write_plot, write_table
from crossmodal_losses import LOSSES, PairLoss
from crossmodal_losses.checks import Batch
from crossmodal_losses.engine.dense import dense_loss
from crossmodal_losses.engine.dispatch import TILE, largest_dense

DENSE = "all of S"
TILE_SIZES = (256, 512, 768, 1024, 1536, 2048, 4096)


def dense(loss: PairLoss) -> Loss:
    """Return the loss over all of S, also for a B at which ``tile_size=None`` takes tiles."""

    def of(x: Tensor, y: Tensor) -> Tensor:
        return dense_loss(Batch(x, y), loss.objective.without_ids(), loss.total)

    return of


def chosen(loss: PairLoss, B: int, device: str) -> str:
    """Return the choice of ``tile_size=None``."""
    of_all = largest_dense(loss.objective.without_ids().aggregation, torch.device(device))
    return DENSE if of_all >= B else str(min(TILE[device], B))


@click.command()
@options.conditions(options.device, options.seconds(0.2), options.rounds(3), dimension=1024)
@options.batch_sizes(1024, 2048, 4096)
@options.several("--tile-sizes", "-t", type=click.IntRange(1), default=TILE_SIZES, help=f"Up to B; {options.TIMES}.")
@options.out
def main(conditions: Conditions, batch_sizes: tuple[int, ...], tile_sizes: tuple[int, ...], folder: Path) -> None:
    """Time every loss over tile sizes, and with all of S at once."""
    records: list[Record] = []
    panels: Panels = {name: {} for name in conditions.losses}
    for B, name in tqdm([(B, name) for B in batch_sizes for name in conditions.losses], "losses and sizes"):
        losses: dict[str, Loss] = {str(t): LOSSES[name](tile_size=t) for t in tile_sizes if t <= B}
        losses[DENSE] = dense(LOSSES[name]())
        timings = time_losses(losses, *conditions.embeddings(B), conditions)
        fastest = min(timing.median for timing in timings.values())
        default = chosen(LOSSES[name](), B, conditions.device)
        for t, timing in timings.items():
            record = {"loss": name, "B": B, "D": conditions.D, "tile size": t}
            record["by default"] = "yes" if t == default else ""
            record |= timing.columns()
            record["times the fastest"] = round(timing.median / fastest, 2)
            records.append(record)
            if t != DENSE:
                panels[name].setdefault(f"B = {B}", []).append((int(t), timing.median))
        panels[name][f"B = {B}, {DENSE}"] = [(t, timings[DENSE].median) for t in (min(tile_sizes), max(tile_sizes))]
    write_table(folder, "tile_size", records, f"forward and backward, {conditions}")
    dashed = {f"B = {B}, {DENSE}": f"B = {B}" for B in batch_sizes}
    write_plot(folder, "tile_size", panels, x="tile size", y="ms, forward and backward", dashed=dashed)


if __name__ == "__main__":
    main()
