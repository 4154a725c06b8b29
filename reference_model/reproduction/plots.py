"""Pictures: the curves of runs, the bars of a table, the similarities of pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reference_model.evaluation.metrics import DIRECTIONS, TITLES
from reference_model.paper import LOSS_NAMES
from reference_model.reproduction.tables import Row, Table, blocks, head
from reference_model.training.curves import show_whole_epochs, write_figure

# Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = {"triplet_sum": "#0072B2", "triplet_max": "#E69F00", "triplet_weighted": "#CC79A7", "nt_xent": "#009E73"}
RANKS = (1, 5, 10)


def plot_all_curves(path: Path, histories: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> None:
    """Loss to seed to history, of runs that differ in nothing else: each loss a column, each seed a line."""
    figure = Figure(figsize=(3.2 * len(histories), 4.6), layout="constrained")
    grid = figure.subplots(2, len(histories), squeeze=False, sharex="col", sharey="row")
    for column, (loss, of_seeds) in enumerate(histories.items()):
        above, below = grid[:, column]
        for (seed, history), style in zip(of_seeds.items(), _styles(len(of_seeds)), strict=True):
            relative = [record["loss"] / history[0]["loss"] for record in history]
            recalls = [
                np.mean([record["val"][way][f"R@{k}"] for way in DIRECTIONS for k in RANKS]) for record in history
            ]
            above.plot(_epochs(history), relative, style, color=COLOURS.get(loss), label=f"seed {seed}")
            below.plot(_epochs(history), recalls, style, color=COLOURS.get(loss), label=f"seed {seed}")
        above.set_title(LOSS_NAMES.get(loss, loss), fontsize=10)
        below.set_xlabel("epoch")
        below.legend(fontsize=7)
        for axes in (above, below):
            show_whole_epochs(axes)
    grid[0, 0].set_ylabel("training loss\n(first epoch = 1)", fontsize=9)
    grid[1, 0].set_ylabel("mean validation\nrecall, %", fontsize=9)
    write_figure(path, figure)


def plot_table(path: Path, table: Table) -> None:
    """Bars of the recalls: ours full with the standard deviation, beside each the paper's in outline."""
    of_blocks = blocks(table)
    figure = Figure(figsize=(11, 0.8 + 2.5 * len(of_blocks)), layout="constrained")
    grid = figure.subplots(len(of_blocks), 2, squeeze=False, sharey="row")
    for line, block in zip(grid, of_blocks, strict=True):
        for axes, direction in zip(line, DIRECTIONS, strict=True):
            _bars(axes, block, direction)
            axes.set_title(f"{head(table, block[0])}: {TITLES[direction]}", fontsize=9)
        line[0].set_ylabel("recall, %")
        line[0].set_ylim(bottom=0)  # of both, once the bars of both are there
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    write_figure(path, figure)


def _bars(axes: Axes, block: Sequence[Row], direction: str) -> None:
    beside = any(row["paper"] is not None for row in block)
    slots = len(block) * (2 if beside else 1)
    width = 0.8 / slots
    for place, row in enumerate(block):
        for whose, shift in (("ours", 0), ("paper", 1)):
            cells = row[whose]
            if cells is None:
                continue
            values = [cells[direction][f"R@{k}"] for k in RANKS]
            left = -0.4 + width * (place * slots / len(block) + shift + 0.5)
            ours = whose == "ours"
            axes.bar(
                [group + left for group in range(len(RANKS))],
                [value["mean"] or 0 for value in values],
                width * 0.92,
                yerr=[value["std"] or 0 for value in values],
                capsize=2,
                color=COLOURS[row["loss"]] if ours else "white",
                edgecolor=COLOURS[row["loss"]],
                error_kw={"linewidth": 0.8},
                label=LOSS_NAMES[row["loss"]] if ours else f"{LOSS_NAMES[row['loss']]}, paper",
            )
    axes.set_xticks(range(len(RANKS)), [f"R@{k}" for k in RANKS])
    axes.grid(axis="y", alpha=0.3)


def plot_similarities(path: Path, pairs: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> None:
    """Loss to the similarities of the positives and of the hardest negatives: a panel each, with both histograms."""
    figure = Figure(figsize=(3.2 * len(pairs), 2.8), layout="constrained")
    edges = np.linspace(-1, 1, 81)
    for axes, (loss, (positive, hardest)) in zip(
        figure.subplots(1, len(pairs), squeeze=False)[0], pairs.items(), strict=True
    ):
        axes.hist(hardest, edges, density=True, color="#999999", alpha=0.8, label="hardest negatives")
        axes.hist(positive, edges, density=True, color=COLOURS.get(loss), alpha=0.6, label="positives")
        axes.set_title(LOSS_NAMES.get(loss, loss), fontsize=10)
        axes.set(xlabel="cosine similarity", yticks=[])
        low = min(float(positive.min()), float(hardest.min()))
        axes.set_xlim(max(-1.0, low - 0.05), 1.02)
        axes.legend(fontsize=7)
    write_figure(path, figure)


def _styles(number: int) -> list[str]:
    return [("-", "--", ":", "-.")[k % 4] for k in range(number)]


def _epochs(history: Sequence[dict[str, Any]]) -> list[int]:
    return [record["epoch"] for record in history]
