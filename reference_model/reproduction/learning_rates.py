"""How sensitive is each loss to the learning rate? The same grid at several rates, and one picture of all of them.

The folder of the results holds a grid for each rate, ``rate-0.001``, and ``learning_rates.{md,json,png}``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reference_model import InputError
from reference_model.beyond import TITLES as LOSS_TITLES
from reference_model.evaluation.metrics import DIRECTIONS, TITLES
from reference_model.reproduction.grid import GRID, Grid
from reference_model.reproduction.launchers import JOBS
from reference_model.reproduction.plots import colour_of
from reference_model.reproduction.report import LOCK
from reference_model.reproduction.tables import make_row
from reference_model.runtime.files import write_json, write_text
from reference_model.runtime.markdown import escape
from reference_model.training.curves import write_figure

NAME = "learning_rates"
METRIC = "R@10"

Point = dict[str, Any]  # one row of the grid of one rate


def rate_folder(out: Path, rate: float) -> Path:
    """Return the folder of the grid of a learning rate."""
    return out / f"rate-{rate}"


def rate_folders(out: Path) -> list[Path]:
    """Return the folders of grids of learning rates in a folder of results."""
    return sorted(path.parent for path in out.glob(f"rate-*/{GRID}"))


def is_foreign(path: Path) -> bool:
    """Return whether a folder of grids of learning rates does not hold this."""
    known = path.name.startswith((".", "rate-", f"{NAME}.")) or path.name == JOBS
    return not known


def refuse_other_folder(out: Path) -> None:
    """Refuse a folder that holds something else than grids of learning rates."""
    if out.exists() and (not out.is_dir() or any(is_foreign(path) for path in out.iterdir())):
        raise InputError(f"expected {out} to be new or the folder of grids of learning rates; choose another --out")


def points(out: Path) -> list[Point]:
    """Return the rows of all rates: means and standard deviations of R@10 over seeds, and how many runs collapsed."""
    found = []
    for folder in rate_folders(out):
        grid = Grid.read(folder)
        for name, experiment in grid.experiments.items():
            row = make_row(name, grid, [run for run in grid.runs(folder) if run.experiment == name])
            block = f"{row['dataset']}, {row['encoders']}, batch size {row['batch_size']}"
            point: Point = {"block": block, "loss": row["loss"], "learning_rate": experiment["learning_rate"]}
            point |= {direction: row["ours"][direction][METRIC] for direction in DIRECTIONS}
            found.append(point | {"collapsed": row["collapsed"], **row["runs"]})
    return sorted(found, key=lambda point: point["learning_rate"])


def write_learning_rates(results: Path, out: Path | None = None) -> str:
    """Write ``learning_rates.{md,json,png}`` of the runs that are done so far, and return the Markdown.

    They go to ``out``, or else to the folder of the results.
    """
    found, out = points(results), out or results
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / LOCK):
        write_json(out / f"{NAME}.json", found)
        write_text(out / f"{NAME}.md", text := markdown(found))
        write_figure(out / f"{NAME}.png", plot(found))
    return text


def markdown(found: Sequence[Point]) -> str:
    """Return a table with a line for each loss and a column for each rate: text to audio / audio to text."""
    rates = sorted({point["learning_rate"] for point in found})
    cells = {(point["block"], point["loss"], point["learning_rate"]): _cell(point) for point in found}
    lines = [f"| Runs | Objective | {' | '.join(f'{rate:g}' for rate in rates)} |", "|---|---|" + "---:|" * len(rates)]
    for block, loss in dict.fromkeys((point["block"], point["loss"]) for point in found):
        of_rates = [cells.get((block, loss, rate), "-") for rate in rates]
        lines.append(f"| {escape(block)} | {LOSS_TITLES[loss]} | {' | '.join(of_rates)} |")
    about = f"{METRIC} in %, text to audio / audio to text, by learning rate; the mean over seeds."
    return "\n".join([about, "", *lines]) + "\n"


def _cell(point: Point) -> str:
    means = [point[direction]["mean"] for direction in DIRECTIONS]
    counts = {"collapsed": point["collapsed"], "diverged": point["diverged"], "failed": point["failed"]}
    counts["to come"] = point["planned"] - sum(point[state] for state in ("done", "diverged", "failed"))
    marks = [f"{count} of {point['planned']} {mark}" for mark, count in counts.items() if count]
    shown = "-" if None in means else " / ".join(f"{mean:.1f}" for mean in means)
    return shown + (f" ({', '.join(marks)})" if marks else "")


def plot(found: Sequence[Point]) -> Figure:
    """Plot R@10 over the learning rate: a column for each block, a line for each loss; a cross: a run collapsed."""
    blocks = list(dict.fromkeys(point["block"] for point in found))
    figure = Figure(figsize=(3.6 * len(blocks), 5.4), layout="constrained")
    panels = figure.subplots(2, len(blocks), squeeze=False, sharex=True, sharey="row")
    for column, block in enumerate(blocks):
        of_block = [point for point in found if point["block"] == block]
        for axes, direction in zip(panels[:, column], DIRECTIONS, strict=True):
            for loss in dict.fromkeys(point["loss"] for point in of_block):
                _draw_line(axes, [point for point in of_block if point["loss"] == loss], direction)
            axes.set(xscale="log", xlabel="learning rate", ylabel=f"{TITLES[direction]} {METRIC}, %")
            axes.grid(alpha=0.3)
        panels[0, column].set_title(block, fontsize=9, parse_math=False)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _draw_line(axes: Axes, of_loss: Sequence[Point], direction: str) -> None:
    done = [point for point in of_loss if point[direction]["mean"] is not None]
    loss, rates = of_loss[0]["loss"], [point["learning_rate"] for point in done]
    means = [point[direction]["mean"] for point in done]
    spread = [point[direction]["std"] or 0 for point in done]
    axes.errorbar(rates, means, spread, marker="o", capsize=2, color=colour_of(loss), label=LOSS_TITLES[loss])
    crossed = [(rate, mean) for rate, mean, point in zip(rates, means, done, strict=True) if point["collapsed"]]
    if crossed:
        axes.plot(*zip(*crossed, strict=True), "x", color="black", markersize=9)
