"""What does a loss cost each of W processes that share a batch, the ranks? Forward and backward, beside open_clip's.

``python -m benchmarks.ranks`` writes ranks.csv, .md and .png, over W, in two series:

* with B fixed a rank should have 1 / W of the work;
* with the rows of a rank fixed its memory should not grow with W, once as many blocks are under way as ever are.

Of every figure the table has that of the rank where it is largest. Nothing is measured unless the value, averaged over
the ranks, and the gradients, averaged as DistributedDataParallel does, are those of one process in float64.
"""

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks import options
from benchmarks.autograd import TEMPERATURE
from benchmarks.baselines import OPEN_CLIP, PEERS, absent, open_clip_loss
from benchmarks.batch import Loss, embeddings, gradients
from benchmarks.measure import Call, Timing, peak_here, repeated
from benchmarks.processes import join_group, launch
from benchmarks.results import Row, write_plot, write_table
from benchmarks.traffic import Traffic
from crossmodal_losses import LOSSES, GatheredLoss, RingLoss
from crossmodal_losses.losses.base import largest_tile

# How far value and gradients may be from those of one process, relative to their norm.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Job(NamedTuple):
    """What the ranks have to do, and where they meet, find what is expected, and leave their figures."""

    names: Sequence[str]
    D: int
    tile_size: int
    dtype: torch.dtype
    device: str
    rounds: int
    timeout: float
    folder: Path

    def expected(self, name: str, B: int) -> Path:
        return self.folder / f"{name}-{B}.pt"

    def figures(self, W: int, what: str) -> Path:
        return self.folder / f"{what}-{W}.pt"


def implementations(name: str, tile_size: int, rank: int = 0, W: int = 1) -> dict[str, Loss]:
    """Ours; and open_clip's, with the settings by which a rank computes its share of S alone, and exact gradients."""
    ours = LOSSES[name](tile_size=tile_size)
    found: dict[str, Loss] = {"GatheredLoss": GatheredLoss(ours), "RingLoss": RingLoss(ours)}
    if OPEN_CLIP in PEERS[name]:
        settings = {"local_loss": True, "gather_with_grad": True, "cache_labels": True}
        found[OPEN_CLIP] = open_clip_loss(TEMPERATURE, **settings, rank=rank, world_size=W)
    return found


def one_process(job: Job, name: str, B: int) -> int:
    """Leave value and gradients of one process in float64 for the ranks to find. Returns the number of FLOPs."""
    batch = embeddings(B, job.D, dtype=job.dtype, device="cpu")
    x, y = (side.detach().to(job.device, torch.float64).requires_grad_() for side in batch)
    with FlopCounterMode(display=False) as counter:
        value = LOSSES[name](tile_size=job.tile_size)(x, y)
        value.backward()
    torch.save([found.cpu() for found in (value.detach(), x.grad, y.grad) if found is not None], job.expected(name, B))
    return int(counter.get_total_flops())


def own_rows(B: int) -> slice:
    """Those of this rank."""
    rank, W = dist.get_rank(), dist.get_world_size()
    return slice(rank * B // W, (rank + 1) * B // W)


def inputs(job: Job, B: int) -> tuple[Tensor, Tensor]:
    """This rank's rows of x and y."""
    own = own_rows(B)
    batch = embeddings(B, job.D, dtype=job.dtype, device="cpu")
    x, y = (side.detach()[own].to(job.device, copy=True).requires_grad_() for side in batch)
    return x, y


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected).norm() / expected.norm())


def checked(job: Job, name: str, B: int, which: str, loss: Loss) -> list[float]:
    """An implementation's error, FLOPs, and bytes sent in blocks and others; if it computes what it should."""
    x, y = inputs(job, B)
    with FlopCounterMode(display=False) as counter, Traffic(block=x.numel()) as traffic:
        value = loss(x, y)
        value.backward()
    dist.all_reduce(total := value.detach().double())
    W, own = dist.get_world_size(), own_rows(B)
    expected, *expected_gradients = torch.load(job.expected(name, B), mmap=True)
    assert x.grad is not None
    assert y.grad is not None
    of_value = distance(total / W, expected)
    of_gradients = max(distance(g / W, e[own]) for g, e in zip((x.grad, y.grad), expected_gradients, strict=True))
    largest, allowed = max(of_value, of_gradients), TOLERANCE[job.dtype]
    if not largest <= allowed:
        raise RuntimeError(
            f"expected {which}, {name}, within {allowed:g} of one process, "
            f"got {of_value:.1e} away in the value and {of_gradients:.1e} in the gradients"
        )
    return [largest, counter.get_total_flops(), traffic.bytes, traffic.other_bytes]


def in_turn(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of repetitions, each of which all ranks begin together."""
    ms: dict[str, list[float]] = {which: [] for which in calls}
    for _ in range(rounds):
        for which, call in calls.items():
            dist.barrier()
            ms[which].append(1e3 * repeated(call, 1))
    return ms


def costs(job: Job, name: str, B: int) -> list[list[float]]:
    """Of every implementation: what ``checked`` finds, then the milliseconds of every repetition."""
    losses = implementations(name, job.tile_size, dist.get_rank(), dist.get_world_size())
    counts = {which: checked(job, name, B, which, loss) for which, loss in losses.items()}
    x, y = inputs(job, B)
    ms = in_turn({which: functools.partial(gradients, loss, x, y) for which, loss in losses.items()}, job.rounds)
    return [[*counts[which], *ms[which]] for which in losses]


def peaks(job: Job, name: str, B: int) -> list[list[float]]:
    """Of every implementation: the highest memory."""

    def prepared(loss: Loss) -> Call:
        call = functools.partial(gradients, loss, *inputs(job, B))
        call()
        return call

    losses = implementations(name, job.tile_size, dist.get_rank(), dist.get_world_size())
    return [[peak_here(prepared, loss, device=job.device)] for loss in losses.values()]


def of_rank(rank: int, W: int, batch_sizes: Sequence[int], what: str, job: Job) -> None:
    """What one process does: measure costs or peaks, and leave those of the rank where they are largest."""
    join_group(rank, W, job.folder / f"meeting-{W}-{what}", job.device, job.timeout)
    of = {"costs": costs, "peaks": peaks}[what]
    work = tqdm([(name, B) for B in batch_sizes for name in job.names], f"{what}, W = {W}", disable=rank > 0)
    figures = torch.tensor([row for name, B in work for row in of(job, name, B)], dtype=torch.float64)
    figures = figures.to(job.device)
    dist.all_reduce(figures, dist.ReduceOp.MAX)
    if rank == 0:
        torch.save(figures.cpu(), job.figures(W, what))
    dist.destroy_process_group()


def row(
    name: str, B: int, which: str, W: int, D: int, dtype: torch.dtype, flops_alone: int, costs: Sequence[float],
    peak: float,
) -> Row:  # fmt: skip
    error, flops, sent, other_bytes, *ms = costs
    block = B // W * D * dtype.itemsize
    return {
        "loss": name, "implementation": which, "W": W, "B": B, "rows of a rank": B // W, "D": D,
        "FLOPs / one process": f"{flops / flops_alone:.3f}", "sent / B D": f"{sent / (W * block):.2f}",
        "else sent, KiB": round(other_bytes / 2**10, 1), "extra MiB": round((peak - 2 * block) / 2**20, 1),
        "inputs and gradients MiB": round(4 * block / 2**20, 1), **Timing.of(ms).columns(), "error": f"{error:.0e}",
    }  # fmt: skip


def measure(
    names: Sequence[str],
    processes: Sequence[int],
    B: int,
    rows_of_a_rank: int,
    D: int,
    *,
    tile_size: int,
    dtype: torch.dtype,
    device: str,
    rounds: int,
    timeout: float,
) -> list[Row]:
    """A row for every loss, number of processes, B, and implementation: the series with B fixed, then the other."""
    for W in processes:
        if B % W:
            raise click.BadParameter(f"expected a batch size divisible by the number of processes, got {B} and {W}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        job = Job(names, D, tile_size, dtype, device, rounds, timeout, Path(folder))
        sizes = {W: list(dict.fromkeys([B, W * rows_of_a_rank])) for W in processes}
        work = [(name, size) for size in sorted({size for of in sizes.values() for size in of}) for name in names]
        alone = {(name, size): one_process(job, name, size) for name, size in tqdm(work, "one process")}
        if device == "cuda":
            torch.cuda.empty_cache()  # for rank 0
        for W, batch_sizes in sizes.items():
            cases = [(name, size, which) for size in batch_sizes for name in names
                     for which in implementations(name, tile_size)]  # fmt: skip
            found = []
            for what in ("costs", "peaks"):  # in processes of their own, where nothing was allocated before
                launch(of_rank, W, W, batch_sizes, what, job, timeout=timeout)
                found.append(torch.load(job.figures(W, what)).tolist())
            for (name, size, which), costs, (peak,) in zip(cases, *found, strict=True):
                rows.append(row(name, size, which, W, D, dtype, alone[name, size], costs, peak))
    return sorted(rows, key=lambda row: (names.index(str(row["loss"])), row["B"] != B, row["W"]))


def write(folder: Path, name: str, rows: Sequence[Row], B: int, rows_of_a_rank: int, about: str) -> None:
    """NAME.csv, .md and .png: the memory of the loss that there is a rival for, or of the first."""
    what = (
        "forward and backward, of the rank where a figure is largest; FLOPs / one process: beside ours alone, 1 / W at "
        "best; sent: embeddings and gradients, in all rows of one side; else sent: all else; extra: the peak beyond "
        "inputs and gradients; "
    )
    write_table(folder, name, rows, what + about)
    names = list(dict.fromkeys(str(row["loss"]) for row in rows))
    shown = next((loss for loss in names if OPEN_CLIP in PEERS[loss]), names[0])
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        titles = {f"{shown}, B = {B}": "B", f"{shown}, {rows_of_a_rank} rows a rank": "rows of a rank"}
        for title, fixed in titles.items():
            if row["loss"] == shown and row[fixed] == (B if fixed == "B" else rows_of_a_rank):
                points = panels.setdefault(title, {}).setdefault(str(row["implementation"]), [])
                points.append((float(str(row["W"])), max(float(str(row["extra MiB"])), 0.1)))
    write_plot(folder, name, panels, x="W", y="MiB of a rank beyond inputs and gradients")


@click.command()
@options.losses
@click.option(
    "--processes", "-w", multiple=True, type=click.IntRange(1), default=(1, 2, 4), show_default=True,
    help="W; give it several times for several.",
)  # fmt: skip
@click.option("--batch-size", "-b", type=click.IntRange(2), default=4096, show_default=True,
              help="B, of all ranks together, of the first series.")  # fmt: skip
@click.option("--rows", type=click.IntRange(2), default=1024, show_default=True,
              help="Of every rank, of the second series.")  # fmt: skip
@options.dimension(512)
@click.option("--tile-size", type=click.IntRange(1), help="t, of our losses.  [default: 1024, on a GPU 4096]")
@options.dtype()
@click.option("--device", type=click.Choice(["cpu", "cuda"]),
              help="Where to measure; cuda takes a GPU for each rank.  [default: cuda if enough]")  # fmt: skip
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Repetitions.")
@click.option("--timeout", type=click.FloatRange(1), default=600, show_default=True,
              help="Seconds after which the processes of one W are given up.")  # fmt: skip
@options.out
def main(
    names: tuple[str, ...],
    processes: tuple[int, ...],
    batch_size: int,
    rows: int,
    dimension: int,
    tile_size: int | None,
    dtype: torch.dtype,
    device: str | None,
    rounds: int,
    timeout: float,
    folder: Path,
) -> None:
    """Count, and measure, what every loss costs a rank, over the number of ranks W.

    Counted are FLOPs and what is sent to others; measured are memory and time, for which all ranks begin together and
    the slowest counts. On CPUs the ranks share the machine's cores, so times say little of how fast W machines are.
    """
    gpus = torch.cuda.device_count()
    device = device or ("cuda" if gpus >= max(processes) else "cpu")
    if device == "cuda" and gpus < max(processes):
        raise click.BadParameter(f"expected a GPU for each of {max(processes)} processes, got {gpus}")
    if OPEN_CLIP in absent(names):
        click.echo(f"not installed here, hence left out: {OPEN_CLIP}")
    t = tile_size or largest_tile(torch.device(device))
    found = measure(
        names, processes, batch_size, rows, dimension, tile_size=t, dtype=dtype, device=device, rounds=rounds,
        timeout=timeout,
    )  # fmt: skip
    where = f"{dtype}, {device}, tiles of {t}"
    if device == "cpu":
        where += "; the ranks share the machine's threads: times are not those of W machines"
    write(folder, "ranks", found, batch_size, rows, where)


if __name__ == "__main__":
    main()
