"""Files of results: a table as CSV and Markdown, and a log-log plot."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from reference_model.runtime.environment import describe_environment
from reference_model.runtime.files import atomic_write, write_text

RESULTS = Path(__file__).parent / "results"

Row = Mapping[str, object]
Points = Sequence[tuple[float, float]]

# Okabe and Ito's colours, which colour-blind readers can tell apart; each goes with a marker of its own.
FIRST = "#000000"
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#8C8C8C", "#A0522D", "#F0E442")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "*")


def markdown(rows: Sequence[Row]) -> str:
    header = list(rows[0])
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(str(value) for value in row.values())} |" for row in rows]
    return "\n".join(lines) + "\n"


def write_table(folder: Path, name: str, rows: Sequence[Row], about: str) -> None:
    """NAME.csv and NAME.md, the latter under a line that says on what machine ``about`` was measured; and print it."""
    if not rows:
        raise click.ClickException("expected something to measure, got nothing: see the options with --help")
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / f"{name}.csv", text.getvalue())
    page = f"{describe_environment()}; {about}\n\n{markdown(rows)}"
    write_text(folder / f"{name}.md", page)
    click.echo(page)
    click.echo(f"{folder / name}.csv, .md\n")


def write_plot(
    folder: Path,
    name: str,
    panels: Mapping[str, Mapping[str, Points]],
    *,
    x: str,
    y: str,
    dashed: Mapping[str, str] | None = None,
) -> None:
    """NAME.png: panels side by side, title -> label -> points (x, y), both axes logarithmic, one legend for all.

    The first label stands out. ``dashed`` names lines without markers, and whose colour each shares.
    Without matplotlib there is no plot, and a line says so.
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
            handles[label] = axes.plot(
                *zip(*sorted(points), strict=True),
                label=label, color=COLOURS[at % len(COLOURS)] if at else FIRST,
                linewidth=1.3 if at else 2, markersize=5, linestyle="--" if label in dashed else "-",
                marker=None if label in dashed else MARKERS[at % len(MARKERS)],
            )[0]  # fmt: skip
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
    atomic_write(folder / f"{name}.png", lambda path: figure.savefig(path, dpi=150))
    click.echo(f"{folder / name}.png\n")
