"""Which tile size is fastest, and up to which B is it faster to keep all of S? Hence the rule in base.py.

``python -m benchmarks.tile_size`` writes tile_size.csv, .md and .png. What ``tile_size=None`` takes is marked.
"""

import functools
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import options
from benchmarks.batch import Loss, embeddings, gradients
from benchmarks.measure import Call, interleaved
from benchmarks.results import Row, write_plot, write_table
from crossmodal_losses import LOSSES, PairLoss
from crossmodal_losses.engine.dense import ClosedForm
from crossmodal_losses.losses.base import TILE, largest_dense

DENSE = "all of S"


def dense(loss: PairLoss) -> Loss:
    """The closed form over all of S, also beyond the B up to which ``tile_size=None`` takes it."""
    rule = loss.rule

    def of(x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = ClosedForm.apply(x, y, None, rule.fold.parameter, rule, loss.reduction)  # type: ignore[no-untyped-call]
        return value

    return of


def chosen(loss: PairLoss, B: int, device: str) -> str:
    """What ``tile_size=None`` takes."""
    return DENSE if largest_dense(loss.rule.fold) >= B else str(min(TILE[device], B))


@click.command()
@options.losses
@options.batch_sizes(1024, 2048, 4096)
@options.dimension(1024)
@click.option(
    "--tile-sizes", "-t", multiple=True, type=click.IntRange(1), default=(256, 512, 768, 1024, 1536, 2048, 4096),
    show_default=True, help="Those up to B are measured; give it several times for several.",
)  # fmt: skip
@options.dtype()
@options.device
@options.repetitions(seconds=0.2, rounds=3)
@options.out
def main(
    names: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    dimension: int,
    tile_sizes: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    seconds: float,
    rounds: int,
    folder: Path,
) -> None:
    """Time every loss over tile sizes, and with all of S at once."""
    rows: list[Row] = []
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in names}
    for B, name in tqdm([(B, name) for B in batch_sizes for name in names], "losses and sizes"):
        x, y = embeddings(B, dimension, dtype=dtype, device=device)
        losses: dict[str, Loss] = {str(t): LOSSES[name](tile_size=t) for t in tile_sizes if t <= B}
        losses[DENSE] = dense(LOSSES[name]())
        calls: dict[str, Call] = {t: functools.partial(gradients, loss, x, y) for t, loss in losses.items()}
        timings = interleaved(calls, seconds=seconds, rounds=rounds)
        fastest = min(timing.median for timing in timings.values())
        default = chosen(LOSSES[name](), B, device)
        for t, timing in timings.items():
            rows.append(
                {"loss": name, "B": B, "D": dimension, "tile size": t, "by default": "yes" if t == default else "",
                 **timing.columns(), "times the fastest": round(timing.median / fastest, 2)}
            )  # fmt: skip
            if t != DENSE:
                panels[name].setdefault(f"B = {B}", []).append((int(t), timing.median))
        panels[name][f"B = {B}, {DENSE}"] = [(t, timings[DENSE].median) for t in (min(tile_sizes), max(tile_sizes))]
    write_table(folder, "tile_size", rows, f"forward and backward, {dtype}, {device}")
    dashed = {f"B = {B}, {DENSE}": f"B = {B}" for B in batch_sizes}
    write_plot(folder, "tile_size", panels, x="tile size", y="ms, forward and backward", dashed=dashed)


if __name__ == "__main__":
    main()
