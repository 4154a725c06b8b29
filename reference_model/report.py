"""Results for people: the curves of a run, and the paper's table as Markdown, JSON and a picture."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from reference_model.files import write_json, write_text, write_whole
from reference_model.retrieval import DIRECTIONS

matplotlib.use("Agg")

COLUMNS = [(direction, f"R@{k}") for direction in DIRECTIONS for k in (1, 5, 10)]
TITLES = {"text_to_audio": "Text-to-Audio", "audio_to_text": "Audio-to-Text"}
NAMES = {
    "triplet_sum": "Triplet-sum",
    "triplet_max": "Triplet-max",
    "triplet_weighted": "Triplet-weighted",
    "triplet_weighted_mined": "Triplet-weighted, mined",
    "nt_xent": "NT-Xent",
}


def plot_curves(path: Path, history: Sequence[dict[str, Any]], *, title: str) -> None:
    """Training loss and validation recalls over the epochs."""
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, recall = figure.subplots(1, 2)
    figure.suptitle(title)
    loss.plot(epochs, [record["loss"] for record in history], marker=".")
    loss.set(xlabel="epoch", ylabel="training loss")
    for direction, style in zip(DIRECTIONS, ("-", "--"), strict=True):
        for k, colour in zip((1, 5, 10), ("C0", "C1", "C2"), strict=True):
            values = [record["val"][direction][f"R@{k}"] for record in history]
            recall.plot(epochs, values, style, color=colour, marker=".", label=f"{TITLES[direction]} R@{k}")
    recall.set(xlabel="epoch", ylabel="validation recall, %", ylim=(0, 100))
    recall.legend(fontsize=7)
    for axes in (loss, recall):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    write_whole(path, lambda beside: figure.savefig(beside, dpi=120))


def table_row(name: str, runs: Iterable[dict[str, Any]], *, diverged: int = 0) -> dict[str, Any]:
    """Mean and sample standard deviation over the runs (metrics of each) of one loss; None for what no run gives."""
    runs = list(runs)
    row: dict[str, Any] = {
        "objective": NAMES.get(name, name),
        "runs": len(runs),
        "collapsed": sum(run["collapsed"] for run in runs),
        "diverged": diverged,
    }
    for direction, metric in COLUMNS:
        values = [run["test"][direction][metric] for run in runs]
        row.setdefault(direction, {})[metric] = {
            "mean": statistics.mean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
    return row


def chance_row(metrics: dict[str, Any]) -> dict[str, Any]:
    """What random rankings of the same pool would give."""
    row: dict[str, Any] = {"objective": "Chance", "runs": 0, "collapsed": 0, "diverged": 0}
    for direction, metric in COLUMNS:
        row.setdefault(direction, {})[metric] = {"mean": metrics["chance"][direction][metric], "std": None}
    return row


def _label(row: dict[str, Any]) -> str:
    marks = [
        f"{mark} {row[mark]} of {row['runs'] + row['diverged']}" if row["runs"] + row["diverged"] > 1 else mark
        for mark in ("collapsed", "diverged")
        if row[mark]
    ]
    objective: str = row["objective"]
    return objective + (f" ({', '.join(marks)})" if marks else "")


def _cell(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "-"
    return f"{value['mean']:.1f}" + (f" ± {value['std']:.1f}" if value["std"] is not None else "")


def markdown(rows: Sequence[dict[str, Any]], *, caption: str) -> str:
    """The table in the paper's form."""
    header = ["Objective", *(f"{TITLES[direction]} {metric}" for direction, metric in COLUMNS)]
    lines = [
        f"| {' | '.join(header)} |",
        f"|---|{'---:|' * len(COLUMNS)}",
        *(f"| {' | '.join([_label(row), *(_cell(row[d][m]) for d, m in COLUMNS)])} |" for row in rows),
    ]
    return f"{caption}\n\n" + "\n".join(lines) + "\n"


def plot_table(path: Path, rows: Sequence[dict[str, Any]], *, caption: str) -> None:
    """Bars for the recalls of every loss, and the table under them."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(2.2, 1))
    for column, direction in enumerate(DIRECTIONS):
        axes = figure.add_subplot(grid[0, column])
        for shift, k in zip((-0.27, 0, 0.27), (1, 5, 10), strict=True):
            values = [row[direction][f"R@{k}"] for row in rows]
            axes.bar(
                [position + shift for position in range(len(rows))],
                [value["mean"] or 0 for value in values],
                0.25,
                yerr=[value["std"] or 0 for value in values] if any(value["std"] for value in values) else None,
                label=f"R@{k}",
                capsize=2,
            )
        axes.set_xticks(
            range(len(rows)), [_label(row).replace(" (", "\n(").replace(", ", ",\n") for row in rows], fontsize=7
        )
        axes.set(title=TITLES[direction], ylabel="recall, %", ylim=(0, 100))
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8)
    below = figure.add_subplot(grid[1, :])
    below.axis("off")
    table = below.table(
        cellText=[[_cell(row[d][m]) for d, m in COLUMNS] for row in rows],
        rowLabels=[_label(row) for row in rows],
        colLabels=[f"{TITLES[d]} {m}" for d, m in COLUMNS],
        loc="center",
        cellLoc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    figure.suptitle(caption, fontsize=10)
    write_whole(path, lambda beside: figure.savefig(beside, dpi=120))


def write_table(folder: Path, rows: Sequence[dict[str, Any]], *, caption: str) -> str:
    """``table.md``, ``table.json`` and ``table.png`` in the folder; returns the Markdown."""
    text = markdown(rows, caption=caption)
    write_text(folder / "table.md", text)
    write_json(folder / "table.json", {"caption": caption, "rows": rows})
    plot_table(folder / "table.png", rows, caption=caption)
    return text
