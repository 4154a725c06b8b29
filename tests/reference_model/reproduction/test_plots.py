"""The figures of the report: their bars, lines and histograms are the numbers that they are given."""

import base64
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grids import clotho_table, finish, in_cells, runs_by_name, small_grid
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from PIL import Image

from reference_model.paper import select_rows
from reference_model.reproduction.plots import COLOURS, data_url, plot_learning_curves, plot_similarities, plot_table
from reference_model.reproduction.tables import make_table
from reference_model.training.curves import write_figure


def bars(axes: Axes) -> dict[str, BarContainer]:
    return {c.get_label(): c for c in axes.containers if isinstance(c, BarContainer)}  # type: ignore[misc]


def heights(container: BarContainer) -> list[float]:
    return [bar.get_height() for bar in container.patches]


def errors(container: BarContainer) -> list[tuple[float, float]]:
    """Return the ends of the error bars."""
    assert container.errorbar is not None
    (segments,) = container.errorbar.lines[2]
    return [(low, high) for (_, low), (_, high) in segments.get_segments()]


def test_bars_are_the_numbers_of_the_table(tmp_path: Path) -> None:
    figure = plot_table(clotho_table(tmp_path))
    left, right = figure.axes
    assert left.get_title() == "Clotho, fine-tuned: Text-to-Audio"
    assert right.get_title() == "Clotho, fine-tuned: Audio-to-Text"
    labels = ["Triplet-max", "Triplet-max, paper", "NT-Xent", "NT-Xent, paper"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
    assert list(bars(left)) == list(bars(right)) == labels
    assert [label.get_text() for label in left.get_xticklabels()] == ["R@1", "R@5", "R@10"]
    for label, axes, means, stds in (
        ("Triplet-max", left, [14, 36, 48], [1, 3, 3]),
        ("Triplet-max", right, [17, 38, 49], [2, 2, 0]),
        ("Triplet-max, paper", left, [14.2, 36.5, 49.0], [0.9, 1.2, 0.4]),
        ("Triplet-max, paper", right, [15.8, 36.4, 49.6], [0.4, 1.6, 2.0]),
        ("NT-Xent", left, [15, 37, 50], [1, 1, 1]),
        ("NT-Xent", right, [17, 38, 51], [1, 1, 1]),
        ("NT-Xent, paper", left, [14.4, 36.6, 49.9], [0.4, 0.2, 0.2]),
        ("NT-Xent, paper", right, [16.2, 37.5, 50.2], [0.7, 0.9, 0.7]),
    ):
        container = bars(axes)[label]
        assert heights(container) == pytest.approx(means)
        ends = np.array([np.subtract(means, stds), np.add(means, stds)]).T
        assert np.array(errors(container)) == pytest.approx(ends)
        colour = COLOURS["nt_xent" if "NT" in label else "triplet_max"]
        assert {to_hex(bar.get_edgecolor()).upper() for bar in container.patches} == {colour}
        filled = "#FFFFFF" if "paper" in label else colour
        assert {to_hex(bar.get_facecolor()).upper() for bar in container.patches} == {filled}
    assert bars_stand_apart(left)
    assert bars_stand_apart(right)


def bars_stand_apart(axes: Axes) -> bool:
    """Return whether the bars are in three groups, around 0, 1 and 2, and none overlaps another."""
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for c in bars(axes).values() for bar in c.patches)
    per_group = len(spans) // 3
    within = all(k // per_group - 0.5 < start and end < k // per_group + 0.5 for k, (start, end) in enumerate(spans))
    return within and all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_every_block_has_a_row_of_panels_and_missing_recalls_have_no_bar(tmp_path: Path) -> None:
    grid = small_grid(select_rows(["2"], datasets=["Synthetic"], losses=["triplet_sum", "nt_xent"]), (0,))
    finish(runs_by_name(grid, tmp_path)["synthetic-frozen-nt_xent-batch-128-seed-0"], 6, 24, 36, 4, 26, 34)
    figure = plot_table(make_table(grid, "2", tmp_path))
    assert [axes.get_title() for axes in figure.axes] == [
        f"Synthetic, batch size {size}: {way}" for size in (32, 128) for way in ("Text-to-Audio", "Audio-to-Text")
    ]
    of_128 = bars(figure.axes[2])
    assert list(of_128) == ["Triplet-sum", "NT-Xent"]
    assert heights(of_128["NT-Xent"]) == [6, 24, 36]
    assert errors(of_128["NT-Xent"]) == [(6, 6), (24, 24), (36, 36)]  # a single seed
    assert heights(of_128["Triplet-sum"]) == [0, 0, 0]
    assert all(bars_stand_apart(axes) for axes in figure.axes)


def levels(axes: Axes) -> list[tuple[list[float], str]]:
    """Return the heights of each line across the groups of bars, with its colour and dashes."""
    found = []
    for lines in (c for c in axes.collections if isinstance(c, LineCollection) and c.get_zorder() == 3):
        ends = np.array(lines.get_segments())
        assert np.array_equal(ends[:, 0, 1], ends[:, 1, 1])
        assert ends[:, :, 0] == pytest.approx(np.arange(3)[:, None] + [-0.45, 0.45])
        found.append((ends[:, 0, 1].tolist(), f"{lines.get_color()} {lines.get_linestyle()}"))
    return found


def test_other_models_are_lines_across_the_bars_of_their_data_set(tmp_path: Path) -> None:
    table = clotho_table(tmp_path)
    names = ["CLAP", "_mine $x_1$ $", *(f"{'long ' * 20}{k}" for k in range(7))]
    table["others"] = [
        {"model": name, "dataset": "AudioCaps" if k == 8 else "Clotho", "relevance": "more.csv" if k == 1 else None,
         "clips": 1000, "captions": 5000, "recalls": in_cells([k, 10 + k, 20 + k, 5 + k, 15 + k, 25 + k])}
        for k, name in enumerate(names)
    ]  # fmt: skip
    figure = plot_table(table)
    left, right = figure.axes
    for axes, lowest in ((left, 0), (right, 5)):
        drawn = levels(axes)
        assert [recalls for recalls, _ in drawn] == [[lowest + k, lowest + 10 + k, lowest + 20 + k] for k in range(8)]
        assert len({look for _, look in drawn}) == 8
        assert bars_stand_apart(axes)
    of_losses, of_others = figure.legends
    assert len(of_losses.get_texts()) == 4
    titles = [text.get_text() for text in of_others.get_texts()]
    assert titles[:2] == ["CLAP†, Clotho", "_mine $x_1$ $†, Clotho (relevance of more.csv)"]
    assert len(titles) == 8
    figure.draw_without_rendering()
    boxes = [legend.get_window_extent() for legend in figure.legends]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    panels = [box for axes in figure.axes if (box := axes.get_tightbbox()) is not None]
    assert len(panels) == 2
    assert not any(box.overlaps(panel) for box in boxes for panel in panels)


def history(*epochs: tuple[float, float]) -> list[dict[str, Any]]:
    """Return the history of a run from its training loss and validation recall in every epoch."""
    return [{"epoch": k, "loss": loss, "val": in_cells([recall] * 6)} for k, (loss, recall) in enumerate(epochs, 1)]


def values(data: Any) -> Any:
    return np.asarray(data).tolist()


def test_learning_curves_have_a_column_for_each_loss_and_a_line_for_each_seed() -> None:
    first = {0: history((4, 10), (2, 20), (1, 25)), 3: history((5, 11), (4, 12), (1, 13))}
    figure = plot_learning_curves({"triplet_max": first, "nt_xent": {0: history((2, 30), (1, 40))}})
    losses, other_losses, recalls, other_recalls = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["Triplet-max", "NT-Xent", "", ""]
    assert [line.get_label() for line in losses.lines] == ["seed 0", "seed 3"]
    assert [values(line.get_ydata()) for line in losses.lines] == [[1, 0.5, 0.25], [1, 0.8, 0.2]]
    assert [values(line.get_ydata()) for line in recalls.lines] == [[10, 20, 25], [11, 12, 13]]
    assert [values(axes.lines[0].get_ydata()) for axes in (other_losses, other_recalls)] == [[1, 0.5], [30, 40]]
    assert values(recalls.lines[1].get_xdata()) == [1, 2, 3]


def test_similarities_have_two_histograms_for_each_loss() -> None:
    positives, hardest_negatives = np.array([0.9, 0.9, 0.1]), np.array([0.1, -0.5])
    figure = plot_similarities({"nt_xent": (positives, hardest_negatives), "triplet_sum": (positives, positives)})
    assert [axes.get_title() for axes in figure.axes] == ["NT-Xent", "Triplet-sum"]
    grey, coloured = (c.patches for c in figure.axes[0].containers)  # type: ignore[attr-defined]
    width = 1 / 40
    assert sum(bar.get_height() for bar in grey) * width == pytest.approx(1)
    peak = max(coloured, key=lambda bar: bar.get_height())
    assert peak.get_x() <= 0.9 <= peak.get_x() + width
    assert peak.get_height() * width == pytest.approx(2 / 3)
    assert figure.axes[0].get_xlim() == pytest.approx((-0.55, 1.02))


def test_pictures_on_the_page_have_the_pixels_of_the_files(tmp_path: Path) -> None:
    figure = plot_table(clotho_table(tmp_path))
    write_figure(tmp_path / "table.png", figure)
    kind, _, content = data_url(figure).partition(",")
    assert kind == "data:image/webp;base64"
    webp, png = base64.b64decode(content), (tmp_path / "table.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(webp) < len(png) / 2
    of_webp, of_png = (np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in (webp, png))
    assert np.array_equal(of_webp, of_png)
