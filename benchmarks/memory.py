"""How much memory does a loss take beyond its inputs and gradients?

``python -m benchmarks.memory`` writes memory.csv, .md and .png: the peak memory of one forward and backward pass above
the level just before it, less the bytes of the two gradients. Memory that is freed before the gradients are made can
hide behind them: the number may be less than a tile.
"""

import functools
from pathlib import Path

import click
from tqdm import tqdm

from benchmarks import options
from benchmarks.baselines import BASELINES
from benchmarks.batch import OURS, Conditions, Loss, gradients
from benchmarks.measure import Call, peak_memory
from benchmarks.results import Record, panels_of, write_plot, write_table
from crossmodal_losses import LOSSES

# Loss -> its measured baselines: the leaner of the forms written by hand, and the package that one would use.
COMPARED = {
    "nt_xent": ("autograd, logsumexp", "open_clip"),
    "triplet_sum": ("autograd, diagonal subtracted",),
    "triplet_max": ("autograd, amax",),
    "triplet_weighted": ("autograd, amax",),
    "triplet_weighted_mined": ("autograd, amax",),
    "sup_con": ("autograd, logsumexp",),
    "sigmoid": ("autograd, softplus", "open_clip, SigLipLoss"),
}
# The largest B of the warm-up: at this B every loss takes tiles by default.
WARM_UP = 5000
WHOLE = "B x B numbers"


def prepared(name: str, implementation: str, B: int, conditions: Conditions) -> Call:
    """Return forward and backward as a call, after a smaller batch has loaded code and buffers."""
    loss: Loss = LOSSES[name]() if implementation == OURS else BASELINES[name][implementation].loss
    gradients(loss, *conditions.embeddings(min(B, WARM_UP)))
    return functools.partial(gradients, loss, *conditions.embeddings(B))


@click.command()
@options.conditions(options.device, dimension=256)
@options.batch_sizes(4096, 16384, 32768, 65536)
@options.option("--largest-dense", type=int, default=16384, help="B up to which baselines are measured.")
@options.suffix
@options.out
def main(conditions: Conditions, batch_sizes: tuple[int, ...], largest_dense: int, suffix: str, folder: Path) -> None:
    """Measure the peak memory of every loss, and of baselines that keep B x B numbers, over B."""
    cases = [
        (name, B, implementation)
        for name in conditions.losses
        for B in batch_sizes
        for implementation in (OURS, *COMPARED[name])
        if implementation == OURS or (largest_dense >= B and implementation in BASELINES[name])
    ]
    records: list[Record] = []
    for name, B, implementation in tqdm(cases, "losses, sizes and implementations"):
        embedding = B * conditions.D * conditions.dtype.itemsize
        peak = peak_memory(prepared, name, implementation, B, conditions, device=conditions.device)
        extra = peak - 2 * embedding
        record = {"loss": name, "B": B, "D": conditions.D, "implementation": implementation}
        record["extra MiB"] = round(extra / 2**20, 1)
        record["bytes per pair"] = f"{extra / B**2:.2g}"
        record["inputs and gradients MiB"] = round(4 * embedding / 2**20, 1)
        records.append(record)
    about = f"peak of forward and backward beyond inputs and gradients, {conditions}"
    write_table(folder, f"memory{suffix}", records, about)
    panels = panels_of(records, line="implementation", x="B", y="extra MiB", at_least=0.1)
    for panel in panels.values():
        panel[WHOLE] = [(B, 4 * B * B / 2**20) for B in batch_sizes]
    write_plot(folder, f"memory{suffix}", panels, x="B", y="MiB beyond inputs and gradients", dashed={WHOLE: WHOLE})


if __name__ == "__main__":
    main()
