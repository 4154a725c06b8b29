"""How much memory does a loss take beyond its inputs and gradients?

``python -m benchmarks.memory`` writes memory.csv, .md and .png: of one forward and backward pass the highest memory
above what is in use just before it, less the bytes of the two gradients. What is freed before the gradients come can
hide behind them: the number may be less than a tile.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from tqdm import tqdm

from benchmarks import options
from benchmarks.baselines import PEERS
from benchmarks.batch import OURS, Loss, embeddings, gradients
from benchmarks.measure import Call, peak_memory
from benchmarks.results import Row, write_plot, write_table
from crossmodal_losses import LOSSES

# The leaner of the forms written by hand, and what one would use.
COMPARED = {
    "nt_xent": ("autograd, logsumexp", "open_clip"),
    "triplet_sum": ("autograd, diagonal subtracted",),
    "triplet_max": ("autograd, amax",),
    "triplet_weighted": ("autograd, amax",),
    "triplet_weighted_mined": ("autograd, amax",),
}
# More than every loss keeps all of S for by default: its tiles are warm, too.
WARM_UP = 5000
WHOLE = "B x B numbers"


def prepared(name: str, implementation: str, B: int, D: int, dtype: torch.dtype, device: str) -> Call:
    """Forward and backward, after it was done once for a smaller batch: code and buffers are loaded."""
    loss: Loss = LOSSES[name]() if implementation == OURS else PEERS[name][implementation].loss
    gradients(loss, *embeddings(min(B, WARM_UP), D, dtype=dtype, device=device))
    return functools.partial(gradients, loss, *embeddings(B, D, dtype=dtype, device=device))


def measure(
    names: Sequence[str], batch_sizes: Sequence[int], D: int, *, dtype: torch.dtype, device: str,
    largest_dense: int, alone: bool = False,
) -> list[Row]:  # fmt: skip
    """A row for every loss, size and implementation; alone: of ours."""
    cases = [
        (name, B, implementation)
        for name in names
        for B in batch_sizes
        for implementation in (OURS, *(() if alone or largest_dense < B else COMPARED[name]))
        if implementation == OURS or implementation in PEERS[name]
    ]
    rows: list[Row] = []
    for name, B, implementation in tqdm(cases, "losses, sizes and implementations"):
        embedding = B * D * dtype.itemsize
        peak = peak_memory(prepared, name, implementation, B, D, dtype, device, device=device)
        extra = peak - 2 * embedding
        rows.append(
            {"loss": name, "B": B, "D": D, "implementation": implementation, "extra MiB": round(extra / 2**20, 1),
             "bytes per pair": f"{extra / B**2:.2g}", "inputs and gradients MiB": round(4 * embedding / 2**20, 1)}
        )  # fmt: skip
    return rows


def write(folder: Path, name: str, rows: Sequence[Row], about: str) -> None:
    """NAME.csv, .md and .png."""
    write_table(folder, name, rows, f"peak of forward and backward beyond inputs and gradients, {about}")
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    sizes = sorted({int(str(row["B"])) for row in rows})
    for row in rows:
        panel = panels.setdefault(str(row["loss"]), {})
        points = panel.setdefault(str(row["implementation"]), [])
        points.append((float(str(row["B"])), max(float(str(row["extra MiB"])), 0.1)))
    for panel in panels.values():
        panel[WHOLE] = [(B, 4 * B * B / 2**20) for B in sizes]
    write_plot(folder, name, panels, x="B", y="MiB beyond inputs and gradients", dashed={WHOLE: WHOLE})


@click.command()
@options.losses
@options.batch_sizes(4096, 16384, 32768, 65536)
@options.dimension(256)
@options.dtype()
@options.device
@click.option("--largest-dense", type=int, default=16384, show_default=True, help="B up to which others are measured.")
@options.out
def main(
    names: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    dimension: int,
    dtype: torch.dtype,
    device: str,
    largest_dense: int,
    folder: Path,
) -> None:
    """Measure the peak memory of every loss, and of forms that keep B x B numbers, over B."""
    rows = measure(names, batch_sizes, dimension, dtype=dtype, device=device, largest_dense=largest_dense)
    write(folder, "memory", rows, f"{dtype}, {device}")


if __name__ == "__main__":
    main()
