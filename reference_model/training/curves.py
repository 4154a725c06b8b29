"""The curves of one run: training loss and validation recalls over the epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reference_model.evaluation.metrics import TITLES
from reference_model.runtime.files import atomic_write

matplotlib.use("Agg")

DPI = 120


def plot_curves(path: Path, history: Sequence[dict[str, Any]], *, title: str) -> None:
    """Plot the training loss, and R@1, R@5 and R@10 of both directions on the validation set, over the epochs."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, recall = figure.subplots(1, 2)
    figure.suptitle(title, parse_math=False)
    epochs = [record["epoch"] for record in history]
    loss.plot(epochs, [record["loss"] for record in history], marker=".")
    loss.set(xlabel="epoch", ylabel="training loss")
    for (direction, name), style in zip(TITLES.items(), ("-", "--"), strict=True):
        for k, colour in zip((1, 5, 10), ("C0", "C1", "C2"), strict=True):
            values = [record["val"][direction][f"R@{k}"] for record in history]
            recall.plot(epochs, values, style, color=colour, marker=".", label=f"{name} R@{k}")
    recall.set(xlabel="epoch", ylabel="validation recall, %", ylim=(0, 100))
    recall.legend(loc="upper left", fontsize=7)
    for axes in (loss, recall):
        show_whole_epochs(axes)
    write_figure(path, figure)


def show_whole_epochs(axes: Axes) -> None:
    """Label integer epochs only, and show a grid."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all."""
    atomic_write(path, lambda beside: figure.savefig(beside, dpi=DPI))
