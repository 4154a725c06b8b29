"""How fast is every loss, beside its baselines? Forward and backward, embeddings in.

``python -m benchmarks.losses`` writes losses.csv, .md and .png, and summary.csv and .md: the fastest baseline at every
size. Normalisation is counted on both sides. The baselines are those of baselines.py. Errors are those of the gradient
against float64, relative to its largest entry.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import options
from benchmarks.baselines import COMPILED, NAMES, baselines_at, compile_at_one_size, missing
from benchmarks.batch import OURS, Conditions, Loss, gradients
from benchmarks.measure import Timing, deviation, time_losses
from benchmarks.results import Record, panels_of, write_plot, write_table
from crossmodal_losses import LOSSES

# Ours under torch.compile; beyond this B that is the operator which does the same without.
OURS_COMPILED = f"{OURS}, compiled"
LARGEST_OURS_COMPILED = 128


def working(baselines: Mapping[str, Loss], x: Tensor, y: Tensor) -> Iterator[tuple[str, Loss]]:
    """Yield the baselines that work here; print why the others do not: no compiler, or out of a GPU's memory."""
    for name, loss in baselines.items():
        try:
            gradients(loss, x, y)
        except Exception as error:  # other people's code may raise anything
            tqdm.write(f"{name} is left out at B = {len(x)}: {type(error).__name__}: {str(error)[:200]}")
            if x.is_cuda:
                torch.cuda.empty_cache()
            continue
        yield name, loss


def errors(losses: Mapping[str, Loss], ours: Loss, x: Tensor, y: Tensor) -> dict[str, str]:
    """Return the distance of every loss's gradient from that of ours in float64."""
    exact = gradients(ours, x.detach().double().requires_grad_(), y.detach().double().requires_grad_())
    return {name: f"{deviation(gradients(loss, x, y), exact):.0e}" for name, loss in losses.items()}


def measure(
    conditions: Conditions,
    batch_sizes: Sequence[int],
    *,
    only: Collection[str] = (),
    compiled: bool = True,
    check_up_to: int = 8192,
) -> list[Record]:
    """Return a record for every loss, size and implementation.

    Args:
        conditions: the losses and how they are measured.
        batch_sizes: sizes B.
        only: names of the measured baselines; empty: all that are installed.
        compiled: whether baselines include one made by torch.compile.
        check_up_to: largest B at which errors are computed.
    """
    records: list[Record] = []
    for B, name in tqdm([(B, name) for B in batch_sizes for name in conditions.losses], "losses and sizes"):
        x, y = conditions.embeddings(B)
        ours = LOSSES[name]()
        baselines = baselines_at(name, B, conditions.device, compiled=compiled and (not only or COMPILED in only))
        chosen = {baseline: loss for baseline, loss in baselines.items() if not only or baseline in only}
        if COMPILED in chosen and B <= LARGEST_OURS_COMPILED:
            chosen[OURS_COMPILED] = compile_at_one_size(ours)
        losses: dict[str, Loss] = {OURS: ours, **dict(working(chosen, x, y))}
        timings = time_losses(losses, x, y, conditions)
        found = errors(losses, ours, x, y) if check_up_to >= B else {}
        for implementation, timing in timings.items():
            record = {"loss": name, "B": B, "D": conditions.D, "implementation": implementation, **timing.columns()}
            record["times ours"] = round(timing.median / timings[OURS].median, 2)
            record["error"] = found.get(implementation, "")
            records.append(record)
    return records


def summary(records: Sequence[Record]) -> list[Record]:
    """Compare ours, at every loss and size, with the fastest baseline, the one under torch.compile among them.

    The fastest that is not compiled, and ours under torch.compile, are columns of their own.
    """
    timings: dict[tuple[str, int, int], dict[str, Timing]] = {}
    for record in records:
        case = timings.setdefault((record["loss"], record["B"], record["D"]), {})
        case[record["implementation"]] = Timing.of_columns(record)
    compared: list[Record] = []
    for (name, B, D), case in timings.items():
        ours, ours_compiled = case.pop(OURS), case.pop(OURS_COMPILED, None)
        if not case:
            continue
        fastest, its = min(case.items(), key=lambda baseline: baseline[1].median)
        as_they_are = [timing.median for baseline, timing in case.items() if baseline != COMPILED]
        compared.append(
            {
                "loss": name,
                "B": B,
                "D": D,
                "ms": ours.median,
                "fastest rival": fastest,
                "its ms": its.median,
                "times faster": f"{its.median / ours.median:.2f}",
                "range": f"{its.lower / ours.upper:.2f} to {its.upper / ours.lower:.2f}",
                "not compiled, ms": min(as_they_are, default=""),
                "ours compiled, ms": ours_compiled.median if ours_compiled else "",
            }
        )
    return compared


@click.command()
@options.conditions(options.device, options.seconds(0.3), options.rounds(5), dimension=1024)
@options.batch_sizes(32, 128, 1024, 4096)
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Measure these baselines alone.")
@options.option("--compile/--no-compile", "compiled", default=True, help="Measure baselines made by torch.compile.")
@options.option("--check-up-to", type=int, default=8192, help="The largest B at which errors are computed.")
@options.suffix
@options.out
def main(
    conditions: Conditions,
    batch_sizes: tuple[int, ...],
    only: tuple[str, ...],
    compiled: bool,
    check_up_to: int,
    suffix: str,
    folder: Path,
) -> None:
    """Time every loss and its baselines over B.

    --batch-sizes goes up to 65536 and beyond; a baseline stops where it does not fit into memory.
    """
    if missing(conditions.losses):
        click.echo(f"not here, hence left out: {', '.join(missing(conditions.losses))}")
    records = measure(conditions, batch_sizes, only=only, compiled=compiled, check_up_to=check_up_to)
    about = f"forward and backward, {conditions}"
    write_table(folder, f"losses{suffix}", records, about)
    compared = summary(records)
    if compared:
        header = "times faster: the median of the fastest rival, in ours; range: its quartiles, in ours; "
        write_table(folder, f"summary{suffix}", compared, header + about)
    panels = panels_of(records, line="implementation", x="B", y="ms")
    write_plot(folder, f"losses{suffix}", panels, x="B", y="ms, forward and backward")


if __name__ == "__main__":
    main()
