"""The cost of a loss for each of W ranks, processes that share a batch: forward and backward, beside open_clip.

``python -m benchmarks.ranks`` writes ranks.csv, .md and .png, over W, in two series:

* with B fixed a rank should have 1 / W of the work;
* with the rows of a rank fixed its memory should not grow with W, once as many blocks are under way as ever are.

The table has, of every figure, that of the rank where it is largest. Nothing is measured unless the value, averaged
over the ranks, and the gradients, averaged as DistributedDataParallel does, are those of one process in float64.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks import options
from benchmarks.autograd import TEMPERATURE
from benchmarks.baselines import BASELINES, OPEN_CLIP, missing, open_clip_loss
from benchmarks.batch import Conditions, Loss, gradients
from benchmarks.measure import Call, Timing, peak_here, repeated
from benchmarks.processes import join_group, launch
from benchmarks.results import Panels, Record, panels_of, write_plot, write_table
from benchmarks.traffic import Traffic
from crossmodal_losses import LOSSES, GatheredLoss, RingLoss
from crossmodal_losses.engine.dispatch import tile_of

# Largest allowed distance of value and gradients from those of one process, relative to their norm.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Job(NamedTuple):
    """The work of the ranks, and the folder through which they exchange files with the first process."""

    conditions: Conditions
    tile_size: int
    timeout: float
    folder: Path

    def expected(self, name: str, B: int) -> Path:
        """Return the file with value and gradients of one process."""
        return self.folder / f"{name}-{B}.pt"

    def figures(self, W: int, kind: str) -> Path:
        """Return the file with the figures that W ranks have found, "costs" or "peaks"."""
        return self.folder / f"{kind}-{W}.pt"

    def embeddings(self, B: int) -> tuple[Tensor, Tensor]:
        """Return x and y, the same wherever they are used: random numbers differ between devices."""
        x, y = dataclasses.replace(self.conditions, device="cpu").embeddings(B)
        return x.detach(), y.detach()


def implementations(name: str, tile_size: int, rank: int = 0, W: int = 1) -> dict[str, Loss]:
    """Return ours, and open_clip's with settings for exact gradients in which a rank computes its part of S alone."""
    ours = LOSSES[name](tile_size=tile_size)
    found: dict[str, Loss] = {"GatheredLoss": GatheredLoss(ours), "RingLoss": RingLoss(ours)}
    if OPEN_CLIP in BASELINES[name]:
        settings = {"local_loss": True, "gather_with_grad": True, "cache_labels": True}
        found[OPEN_CLIP] = open_clip_loss(TEMPERATURE, **settings, rank=rank, world_size=W)
    return found


def one_process(job: Job, name: str, B: int) -> int:
    """Write value and gradients of one process in float64 for the ranks; return the number of FLOPs."""
    x, y = (e.to(job.conditions.device, torch.float64).requires_grad_() for e in job.embeddings(B))
    with FlopCounterMode(display=False) as counter:
        value = LOSSES[name](tile_size=job.tile_size)(x, y)
        value.backward()
    torch.save([found.cpu() for found in (value.detach(), x.grad, y.grad) if found is not None], job.expected(name, B))
    return int(counter.get_total_flops())


def local_slice(B: int) -> slice:
    """Return the rows of this rank."""
    rank, W = dist.get_rank(), dist.get_world_size()
    return slice(rank * B // W, (rank + 1) * B // W)


def local_rows(job: Job, B: int) -> tuple[Tensor, Tensor]:
    """Return this rank's rows of x and y."""
    x, y = (e[local_slice(B)].to(job.conditions.device, copy=True).requires_grad_() for e in job.embeddings(B))
    return x, y


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to that of the expected tensor."""
    return float((found.cpu().double() - expected).norm() / expected.norm())


def checked(job: Job, name: str, B: int, implementation: str, loss: Loss) -> list[float]:
    """Return an implementation's error, its FLOPs, and the bytes that it sends in blocks and in other messages.

    Raises:
        RuntimeError: its value or gradients are not those of one process.
    """
    x, y = local_rows(job, B)
    with FlopCounterMode(display=False) as counter, Traffic(block=x.numel()) as traffic:
        value = loss(x, y)
        value.backward()
    dist.all_reduce(total := value.detach().double())
    W, rows = dist.get_world_size(), local_slice(B)
    expected, *expected_gradients = torch.load(job.expected(name, B), mmap=True)
    assert x.grad is not None
    assert y.grad is not None
    of_value = distance(total / W, expected)
    of_gradients = max(distance(g / W, e[rows]) for g, e in zip((x.grad, y.grad), expected_gradients, strict=True))
    largest, allowed = max(of_value, of_gradients), TOLERANCE[job.conditions.dtype]
    if not largest <= allowed:
        raise RuntimeError(
            f"expected {implementation}, {name}, within {allowed:g} of one process, "
            f"got {of_value:.1e} away in the value and {of_gradients:.1e} in the gradients"
        )
    return [largest, counter.get_total_flops(), traffic.bytes, traffic.other_bytes]


def in_turn(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of repetitions, each of which all ranks begin together."""
    ms: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            dist.barrier()
            ms[name].append(1e3 * repeated(call, 1))
    return ms


def costs(job: Job, name: str, B: int, losses: Mapping[str, Loss]) -> list[list[float]]:
    """Return, for every implementation, the figures of ``checked`` and the milliseconds of every repetition."""
    counts = {implementation: checked(job, name, B, implementation, loss) for implementation, loss in losses.items()}
    x, y = local_rows(job, B)
    calls = {implementation: functools.partial(gradients, loss, x, y) for implementation, loss in losses.items()}
    ms = in_turn(calls, job.conditions.rounds)
    return [[*counts[implementation], *ms[implementation]] for implementation in losses]


def peaks(job: Job, _name: str, B: int, losses: Mapping[str, Loss]) -> list[list[float]]:
    """Return, for every implementation, the peak memory in bytes."""

    def prepared(loss: Loss) -> Call:
        call = functools.partial(gradients, loss, *local_rows(job, B))
        call()
        return call

    return [[peak_here(prepared, loss, device=job.conditions.device)] for loss in losses.values()]


def run_rank(rank: int, W: int, batch_sizes: Sequence[int], kind: str, job: Job) -> None:
    """Measure costs or peaks in one process; rank 0 writes those of the rank where they are largest."""
    join_group(rank, W, job.folder / f"meeting-{W}-{kind}", job.conditions.device, job.timeout)
    measure_case = {"costs": costs, "peaks": peaks}[kind]
    cases = [(name, B) for B in batch_sizes for name in job.conditions.losses]
    found: list[list[float]] = []
    for name, B in tqdm(cases, f"{kind}, W = {W}", disable=rank > 0):
        found += measure_case(job, name, B, implementations(name, job.tile_size, rank, W))
    figures = torch.tensor(found, dtype=torch.float64, device=job.conditions.device)
    dist.all_reduce(figures, dist.ReduceOp.MAX)
    if rank == 0:
        torch.save(figures.cpu(), job.figures(W, kind))
    dist.destroy_process_group()


def record_of(
    case: Mapping[str, Any], conditions: Conditions, flops_of_one: int, costs: Sequence[float], peak: float
) -> Record:
    """Return the record of one implementation at one W and B."""
    error, flops, sent, other_bytes, *ms = costs
    W, rows = case["W"], case["B"] // case["W"]
    block = rows * conditions.D * conditions.dtype.itemsize
    return {
        **case,
        "rows of a rank": rows,
        "D": conditions.D,
        "FLOPs / one process": f"{flops / flops_of_one:.3f}",
        "sent / B D": f"{sent / (W * block):.2f}",
        "else sent, KiB": round(other_bytes / 2**10, 1),
        "extra MiB": round((peak - 2 * block) / 2**20, 1),
        "inputs and gradients MiB": round(4 * block / 2**20, 1),
        **Timing.of(ms).columns(),
        "error": f"{error:.0e}",
    }


def measure(
    conditions: Conditions, processes: Sequence[int], B: int, rows: int, *, tile_size: int, timeout: float
) -> list[Record]:
    """Return a record for every loss, number of processes, B and implementation: first the series with B fixed.

    Args:
        conditions: the losses and how they are measured.
        processes: numbers of processes W.
        B: batch size of the first series, of all ranks together.
        rows: rows of every rank in the second series.
        tile_size: tile size of our losses.
        timeout: seconds after which the processes of one W are stopped.
    """
    for W in processes:
        if B % W:
            raise click.BadParameter(f"expected a batch size divisible by the number of processes, got {B} and {W}")
    names, records = conditions.losses, []
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        job = Job(conditions, tile_size, timeout, Path(folder))
        sizes = {W: list(dict.fromkeys([B, W * rows])) for W in processes}
        work = [(name, size) for size in sorted(set().union(*sizes.values())) for name in names]
        flops_of_one = {(name, size): one_process(job, name, size) for name, size in tqdm(work, "one process")}
        if conditions.device == "cuda":
            torch.cuda.empty_cache()  # for rank 0
        for W, batch_sizes in sizes.items():
            figures = []
            for kind in ("costs", "peaks"):  # in processes of their own, where nothing was allocated before
                launch(run_rank, W, W, batch_sizes, kind, job, timeout=timeout)
                figures.append(torch.load(job.figures(W, kind)).tolist())
            cases: list[dict[str, Any]] = [
                {"loss": name, "implementation": implementation, "W": W, "B": size}
                for size in batch_sizes
                for name in names
                for implementation in implementations(name, tile_size)
            ]
            for case, costs, (peak,) in zip(cases, *figures, strict=True):
                records.append(record_of(case, conditions, flops_of_one[case["loss"], case["B"]], costs, peak))
    return sorted(records, key=lambda record: (names.index(record["loss"]), record["B"] != B, record["W"]))


def memory_panels(records: Sequence[Record], B: int, rows: int) -> Panels:
    """Return both series of the memory of the loss that has a baseline, or of the first loss."""
    names = list(dict.fromkeys(record["loss"] for record in records))
    shown = next((loss for loss in names if OPEN_CLIP in BASELINES[loss]), names[0])
    panels: Panels = {}
    for title, column, fixed in ((f"B = {B}", "B", B), (f"{rows} rows a rank", "rows of a rank", rows)):
        series = [record for record in records if record["loss"] == shown and record[column] == fixed]
        points = panels_of(series, line="implementation", x="W", y="extra MiB", at_least=0.1)
        panels[f"{shown}, {title}"] = points[shown]
    return panels


DEVICE_HELP = "Where to measure; cuda takes a GPU for each rank.  [default: cuda if enough]"
device = click.option("--device", type=click.Choice(["cpu", "cuda"]), help=DEVICE_HELP)


@click.command()
@options.conditions(device, options.rounds(5), dimension=512)
@options.several("--processes", "-w", type=click.IntRange(1), default=(1, 2, 4), help=f"W; {options.TIMES}.")
@options.option("--batch-size", "-b", type=click.IntRange(2), default=4096, help="B of the first series, of all ranks.")
@options.option("--rows", type=click.IntRange(2), default=1024, help="Rows of every rank, of the second series.")
@click.option("--tile-size", type=click.IntRange(1), help="t, of our losses.  [default: 1024, on a GPU 4096]")
@options.option(
    "--timeout", type=click.FloatRange(1), default=600, help="Seconds until the processes of one W are stopped."
)
@options.suffix
@options.out
def main(
    conditions: Conditions,
    processes: tuple[int, ...],
    batch_size: int,
    rows: int,
    tile_size: int | None,
    timeout: float,
    suffix: str,
    folder: Path,
) -> None:
    """Count, and measure, the costs of every loss for a rank, over the number of ranks W.

    Counted are FLOPs and what is sent to others; measured are memory and time, for which all ranks begin together and
    the slowest counts. On CPUs the ranks share the machine's cores, so times say little of how fast W machines are.
    """
    gpus = torch.cuda.device_count()
    device = conditions.device or ("cuda" if gpus >= max(processes) else "cpu")
    if device == "cuda" and gpus < max(processes):
        raise click.BadParameter(f"expected a GPU for each of {max(processes)} processes, got {gpus}")
    conditions = dataclasses.replace(conditions, device=device)
    if OPEN_CLIP in missing(conditions.losses):
        click.echo(f"not installed here, hence left out: {OPEN_CLIP}")
    t = tile_size or tile_of(None, torch.device(device))[0]
    records = measure(conditions, processes, batch_size, rows, tile_size=t, timeout=timeout)
    about = (
        "forward and backward, of the rank where a figure is largest; FLOPs / one process: beside ours alone, 1 / W at "
        "best; sent: embeddings and gradients, in all rows of one side; else sent: all else; extra: the peak beyond "
        f"inputs and gradients; {conditions}, tiles of {t}"
    )
    if device == "cpu":
        about += "; the ranks share the machine's threads: times are not those of W machines"
    write_table(folder, f"ranks{suffix}", records, about)
    panels = memory_panels(records, batch_size, rows)
    write_plot(folder, f"ranks{suffix}", panels, x="W", y="MiB of a rank beyond inputs and gradients")


if __name__ == "__main__":
    main()
