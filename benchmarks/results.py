"""Write the results of a benchmark: a table as CSV and Markdown, and a log-log plot."""

import csv
import functools
import io
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.commit import commit

RESULTS = Path(__file__).parent / "results"

# One line of a table: column -> value.
Record = Mapping[str, Any]
# The panels of a plot: title -> label of a line -> its points (x, y).
Panels = dict[str, dict[str, list[tuple[float, float]]]]

# Okabe and Ito's colours, which colour-blind readers can tell apart; each goes with a marker of its own.
FIRST = "#000000"
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#8C8C8C", "#A0522D", "#F0E442")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "*")


def describe_environment() -> str:
    """Return one line with the processor, the GPU, the versions and the commit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{processor}, {torch.get_num_threads()} threads, {gpu}; torch {torch.__version__}, "
        f"Python {platform.python_version()}; commit {commit()}"
    )


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then move it there: a stopped process leaves the old file whole."""
    beside = path.with_name(f".{path.name}")
    write(beside)
    os.replace(beside, path)


def markdown(records: Sequence[Record]) -> str:
    """Return a Markdown table, whose header has the columns of the first record."""
    header = list(records[0])
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(map(str, record.values()))} |" for record in records]
    return "\n".join(lines) + "\n"


def write_table(folder: Path, name: str, records: Sequence[Record], about: str) -> None:
    """Write NAME.csv, and NAME.md under a line with the environment and ``about``; print the latter.

    Raises:
        click.ClickException: there are no records.
    """
    if not records:
        raise click.ClickException("expected something to measure, got nothing: see the options with --help")
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, records[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    page = f"{describe_environment()}; {about}\n\n{markdown(records)}"
    for suffix, content in (("csv", text.getvalue()), ("md", page)):
        _write(folder / f"{name}.{suffix}", functools.partial(Path.write_text, data=content, encoding="utf-8"))
    click.echo(page)
    click.echo(f"{folder / name}.csv, .md\n")


def panels_of(records: Sequence[Record], *, line: str, x: str, y: str, at_least: float = 0.0) -> Panels:
    """Return one panel for every loss: the column y over the column x, a line for every value of the column ``line``.

    Values of y below ``at_least`` are raised to it, because the axes are logarithmic.
    """
    panels: Panels = {}
    for record in records:
        points = panels.setdefault(record["loss"], {}).setdefault(record[line], [])
        points.append((float(record[x]), max(float(record[y]), at_least)))
    return panels


def write_plot(
    folder: Path, name: str, panels: Panels, *, x: str, y: str, dashed: Mapping[str, str] | None = None
) -> None:
    """Write NAME.png: panels side by side, both axes logarithmic, one legend for all.

    The first label stands out. ``dashed`` maps the label of a dashed line without markers to the label of the line
    whose colour it shares. Without matplotlib there is no plot, and a printed line says so.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
    except ImportError:
        click.echo(f"no {name}.png: matplotlib is not installed")
        return
    dashed = dashed or {}
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1 + 4.2 * columns, 1.2 + 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    handles = {}
    for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
        for label, points in panel.items():
            at = labels.index(dashed.get(label, label))
            style = {
                "color": COLOURS[at % len(COLOURS)] if at else FIRST,
                "linewidth": 1.3 if at else 2,
                "linestyle": "--" if label in dashed else "-",
                "marker": None if label in dashed else MARKERS[at % len(MARKERS)],
            }
            handles[label] = axes.plot(*zip(*sorted(points), strict=True), label=label, markersize=5, **style)[0]
        axes.set(xscale="log", yscale="log", title=title, xlabel=x, ylabel=y)
        measured = sorted({at for points in panel.values() for at, _ in points})
        axes.set_xticks(measured, [f"{at:g}" for at in measured], rotation=45)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(which="major", alpha=0.3)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns + 1)
    _write(folder / f"{name}.png", lambda path: figure.savefig(path, dpi=150))
    click.echo(f"{folder / name}.png\n")
