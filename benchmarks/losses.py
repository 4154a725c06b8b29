"""How fast is every loss, beside what one would use instead? Forward and backward, embeddings in.

``python -m benchmarks.losses`` writes losses.csv, .md and .png, and summary.md: the fastest rival at every size.
Normalisation is counted on both sides. The rivals are those of peers.py. Errors are of the gradient against float64,
relative to its largest entry.
"""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import options
from benchmarks.baselines import COMPILED, NAMES, absent, rivals
from benchmarks.batch import OURS, Loss, embeddings, gradients
from benchmarks.measure import Timing, deviation, interleaved
from benchmarks.results import Row, write_plot, write_table
from crossmodal_losses import LOSSES

# Ours under torch.compile; beyond this B that is the operator which does the same without.
OURS_COMPILED = f"{OURS}, compiled"
LARGEST_OURS_COMPILED = 128


def working(candidates: Mapping[str, Loss], x: Tensor, y: Tensor) -> Iterator[tuple[str, Loss]]:
    """Without those that do not work here, of which a line says why: no compiler, or out of a GPU's memory."""
    for name, loss in candidates.items():
        try:
            gradients(loss, x, y)
        except Exception as error:  # whatever is wrong with others' code
            tqdm.write(f"{name} is left out at B = {len(x)}: {type(error).__name__}: {str(error)[:200]}")
            if x.is_cuda:
                torch.cuda.empty_cache()
            continue
        yield name, loss


def errors(losses: Mapping[str, Loss], ours: Loss, x: Tensor, y: Tensor) -> dict[str, str]:
    """How far every loss's gradient is from ours in float64."""
    exact = gradients(ours, x.detach().double().requires_grad_(), y.detach().double().requires_grad_())
    return {name: f"{deviation(gradients(loss, x, y), exact):.0e}" for name, loss in losses.items()}


def measure(
    names: Sequence[str],
    batch_sizes: Sequence[int],
    D: int,
    *,
    dtype: torch.dtype,
    device: str,
    seconds: float,
    rounds: int,
    only: Collection[str] = (),
    compiled: bool = True,
    check_up_to: int = 8192,
) -> list[Row]:
    """A row for every loss, size and implementation; of the rivals only those named, if any are."""
    rows: list[Row] = []
    for B, name in tqdm([(B, name) for B in batch_sizes for name in names], "losses and sizes"):
        x, y = embeddings(B, D, dtype=dtype, device=device)
        ours = LOSSES[name]()
        others = rivals(name, B, device, compiled=compiled and (not only or COMPILED in only))
        chosen = {rival: loss for rival, loss in others.items() if not only or rival in only}
        if COMPILED in chosen and B <= LARGEST_OURS_COMPILED:
            chosen[OURS_COMPILED] = torch.compile(ours, dynamic=False)
        losses: dict[str, Loss] = {OURS: ours, **dict(working(chosen, x, y))}
        calls = {rival: functools.partial(gradients, loss, x, y) for rival, loss in losses.items()}
        timings = interleaved(calls, seconds=seconds, rounds=rounds)
        found = errors(losses, ours, x, y) if check_up_to >= B else {}
        for rival, timing in timings.items():
            rows.append(
                {"loss": name, "B": B, "D": D, "implementation": rival, **timing.columns(),
                 "times ours": round(timing.median / timings[OURS].median, 2), "error": found.get(rival, "")}
            )  # fmt: skip
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """Of every loss and size: the fastest rival that is run as it stands, what torch.compile makes of one, and ours."""
    timings: dict[tuple[object, object, object], dict[object, Timing]] = {}
    for row in rows:
        timing = Timing(*(float(str(row[column])) for column in ("ms", "lower quartile", "upper quartile")))
        timings.setdefault((row["loss"], row["B"], row["D"]), {})[row["implementation"]] = timing
    table: list[Row] = []
    for (name, B, D), of in timings.items():
        ours, ours_compiled, compiled = of.pop(OURS), of.pop(OURS_COMPILED, None), of.pop(COMPILED, None)
        if not of:
            continue
        rival, its = min(of.items(), key=lambda item: item[1].median)
        table.append(
            {"loss": name, "B": B, "D": D, "ms": ours.median, "fastest rival": rival, "its ms": its.median,
             "times faster": f"{its.median / ours.median:.2f}",
             "range": f"{its.lower / ours.upper:.2f} to {its.upper / ours.lower:.2f}",
             "autograd compiled, ms": compiled.median if compiled else "",
             "ours compiled, ms": ours_compiled.median if ours_compiled else ""}
        )  # fmt: skip
    return table


def write(folder: Path, rows: Sequence[Row], about: str, suffix: str = "") -> None:
    """losses.csv, .md, .png and summary.csv, .md."""
    write_table(folder, f"losses{suffix}", rows, about)
    compared = summary(rows)
    if compared:
        what = "times faster: the median of the fastest rival, in ours; range: its quartiles, in ours; " + about
        write_table(folder, f"summary{suffix}", compared, what)
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        points = panels.setdefault(str(row["loss"]), {}).setdefault(str(row["implementation"]), [])
        points.append((float(str(row["B"])), float(str(row["ms"]))))
    write_plot(folder, f"losses{suffix}", panels, x="B", y="ms, forward and backward")


@click.command()
@options.losses
@options.batch_sizes(32, 128, 1024, 4096)
@options.dimension(1024)
@options.dtype()
@options.device
@options.repetitions(seconds=0.3, rounds=5)
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Measure these rivals alone.")
@click.option(
    "--compile/--no-compile", "compiled", default=True, show_default=True, help="Rivals made by torch.compile."
)
@click.option(
    "--check-up-to", type=int, default=8192, show_default=True, help="The largest B at which errors are computed."
)
@click.option(
    "--suffix",
    default="",
    help="Of the files' names, as in losses-newest-torch.md, so that runs do not replace others'.",
)
@options.out
def main(
    names: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    dimension: int,
    dtype: torch.dtype,
    device: str,
    seconds: float,
    rounds: int,
    only: tuple[str, ...],
    compiled: bool,
    check_up_to: int,
    suffix: str,
    folder: Path,
) -> None:
    """Time every loss and its rivals over B.

    --batch-sizes goes up to 65536 and beyond; a rival stops where it does not fit into memory.
    """
    if absent(names):
        click.echo(f"not installed here, hence left out: {', '.join(absent(names))}")
    rows = measure(
        names, batch_sizes, dimension, dtype=dtype, device=device, seconds=seconds, rounds=rounds, only=only,
        compiled=compiled, check_up_to=check_up_to,
    )  # fmt: skip
    write(folder, rows, f"forward and backward, {dtype}, {device}", suffix and f"-{suffix}")


if __name__ == "__main__":
    main()
