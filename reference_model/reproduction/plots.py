"""Figures of the report: bars of a table's recalls, learning curves, histograms of similarities.

The functions named ``plot_...`` return a matplotlib figure; :func:`data_url` turns it into a picture on a page,
:func:`reference_model.training.curves.write_figure` into a file.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from reference_model.beyond import TITLES as LOSS_TITLES
from reference_model.evaluation.metrics import DIRECTIONS, TITLES
from reference_model.reproduction.table_formats import block_title, other_title
from reference_model.reproduction.tables import Table, TableRow, row_blocks
from reference_model.training.curves import DPI, show_whole_epochs

# The palette of Okabe and Ito: colour-blind readers can tell its colours apart.
COLOURS = {"triplet_sum": "#0072B2", "triplet_max": "#E69F00", "triplet_weighted": "#CC79A7", "nt_xent": "#009E73"}
COLOURS |= {"sup_con": "#56B4E9", "sup_con_together": "#999999", "sigmoid": "#D55E00"}
COLOURS |= {"nt_xent_learned": "#F0E442", "nt_xent_queue": "#000000"}
RANKS = (1, 5, 10)  # the k of R@k
LINE_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
OTHER_COLOURS = ("#333333", "#882255", "#117733")  # of models that were not trained here, each with all line styles
LONGEST_TITLE = 85  # characters of another model in the legend


def colour_of(loss: str) -> str:
    """Return the colour of the loss of a row."""
    return COLOURS.get(loss, "#999999")


def plot_learning_curves(histories: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> Figure:
    """Plot training loss and mean validation recall over the epochs: a column for each loss, a line for each seed."""
    figure = Figure(figsize=(3.2 * len(histories), 4.6), layout="constrained")
    axes_grid = figure.subplots(2, len(histories), squeeze=False, sharex="col", sharey="row")
    for column, (loss, history_of_seed) in enumerate(histories.items()):
        above, below = axes_grid[:, column]
        for number, (seed, history) in enumerate(history_of_seed.items()):
            style = LINE_STYLES[number % len(LINE_STYLES)]
            epochs = [record["epoch"] for record in history]
            losses = [record["loss"] / (history[0]["loss"] or 1.0) for record in history]
            recalls = [
                np.mean([record["val"][way][f"R@{k}"] for way in DIRECTIONS for k in RANKS]) for record in history
            ]
            for axes, values in ((above, losses), (below, recalls)):
                axes.plot(epochs, values, style, color=colour_of(loss), label=f"seed {seed}")
        above.set_title(LOSS_TITLES.get(loss, loss), fontsize=10)
        below.set_xlabel("epoch")
        below.legend(loc="lower right", fontsize=7)
        for axes in (above, below):
            show_whole_epochs(axes)
    axes_grid[0, 0].set_ylabel("training loss\n(first epoch = 1)", fontsize=9)
    axes_grid[1, 0].set_ylabel("mean validation\nrecall, %", fontsize=9)
    return figure


def plot_table(table: Table) -> Figure:
    """Plot the recalls as bars with standard deviations: ours filled, beside each the paper's in outline.

    Other models are lines across the bars of their data set.
    """
    blocks = row_blocks(table)
    others = table["others"]
    figure = Figure(figsize=(11, 0.8 + 2.5 * len(blocks) + 0.1 * len(others)), layout="constrained")
    axes_grid = figure.subplots(len(blocks), 2, squeeze=False, sharey="row")
    lines: dict[int, LineCollection] = {}  # of other models, by their places in the table
    for axes_row, block in zip(axes_grid, blocks, strict=True):
        for axes, direction in zip(axes_row, DIRECTIONS, strict=True):
            _draw_bars(axes, block, direction)
            for place, other in enumerate(others):
                if other["dataset"] == block[0]["dataset"]:
                    lines[place] = _draw_line(axes, other["recalls"][direction], place)
            axes.set_title(f"{block_title(table, block[0])}: {TITLES[direction]}", fontsize=9, parse_math=False)
        axes_row[0].set_ylabel("recall, %")
        axes_row[0].set_ylim(bottom=0)  # after all bars are drawn: both directions share the axis
    handles, labels = axes_grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    if lines:
        titles = [_short(other_title(table, others[place])) for place in lines]
        legend = figure.legend(
            list(lines.values()), titles, loc="outside upper center", ncols=min(len(lines), 2), fontsize=8
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _short(title: str) -> str:
    """Return the title of another model so short that two of them fit beside each other."""
    return title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…"


def _draw_line(axes: Axes, recalls: Mapping[str, float], place: int) -> LineCollection:
    """Draw the recalls of another model, the one at this place in the table, as a level across each group of bars."""
    groups = range(len(RANKS))
    return axes.hlines(
        [recalls[f"R@{k}"] for k in RANKS],
        [group - 0.45 for group in groups],
        [group + 0.45 for group in groups],
        colors=OTHER_COLOURS[place // len(LINE_STYLES) % len(OTHER_COLOURS)],
        linestyles=LINE_STYLES[place % len(LINE_STYLES)],
        linewidth=1.3,
        path_effects=[withStroke(linewidth=2.3, foreground="white")],  # it stands out from bars of any colour
        zorder=3,
    )


def _draw_bars(axes: Axes, block: Sequence[TableRow], direction: str) -> None:
    bars_per_row = 2 if any(row["paper"] is not None for row in block) else 1
    width = 0.8 / (len(block) * bars_per_row)
    for place, row in enumerate(block):
        colour, name = colour_of(row["loss"]), LOSS_TITLES[row["loss"]]
        for source, shift in (("ours", 0), ("paper", 1)):
            if row[source] is None:
                continue
            cells = [row[source][direction][f"R@{k}"] for k in RANKS]
            offset = -0.4 + width * (place * bars_per_row + shift + 0.5)
            axes.bar(
                [group + offset for group in range(len(RANKS))],
                [cell["mean"] or 0 for cell in cells],
                width * 0.92,
                yerr=[cell["std"] or 0 for cell in cells],
                capsize=2,
                color=colour if source == "ours" else "white",
                edgecolor=colour,
                error_kw={"linewidth": 0.8},
                label=name if source == "ours" else f"{name}, paper",
            )
    axes.set_xticks(range(len(RANKS)), [f"R@{k}" for k in RANKS])
    axes.grid(axis="y", alpha=0.3)


def plot_similarities(pairs: Mapping[str, Sequence[NDArray[Any]]]) -> Figure:
    """Plot a histogram of the positives and one of the hardest negatives, a panel for each loss."""
    figure = Figure(figsize=(3.2 * len(pairs), 2.8), layout="constrained")
    edges = np.linspace(-1, 1, 81)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (loss, (positives, hardest_negatives)) in zip(panels, pairs.items(), strict=True):
        axes.hist(hardest_negatives, edges, density=True, color="#999999", alpha=0.8, label="hardest negatives")
        axes.hist(positives, edges, density=True, color=colour_of(loss), alpha=0.6, label="positives")
        axes.set_title(LOSS_TITLES.get(loss, loss), fontsize=10)
        axes.set(xlabel="cosine similarity", yticks=[])
        lowest = min(float(positives.min()), float(hardest_negatives.min()))
        axes.set_xlim(max(-1.0, lowest - 0.05), 1.02)
        axes.legend(loc="upper left", fontsize=7)
    return figure


def data_url(figure: Figure) -> str:
    """Return the figure as a ``data:`` URL of lossless WebP, which takes less than half the bytes of PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="webp", dpi=DPI, pil_kwargs={"lossless": True, "quality": 100, "method": 6})
    return "data:image/webp;base64," + base64.b64encode(picture.getvalue()).decode()
