"""The numbers of the tables: means, deviations, differences and the best of each column."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grids import clotho_table, in_cells
from hypothesis import given
from hypothesis import strategies as st

from reference_model.reproduction.tables import RECALL_COLUMNS, TableRow, aggregate, best_cells, difference


def test_the_json_has_what_the_table_shows(tmp_path: Path) -> None:
    table = clotho_table(tmp_path)
    assert json.loads(json.dumps(table)) == table
    assert (table["table"], table["seeds"]) == ("1", [0, 1, 2])
    assert table["pools"] == {"Clotho": {"clips": 1000, "captions": 5000, "clips in the paper": 1045}}
    assert table["chance"] == {"Clotho": in_cells([0.1, 0.5, 1.0, 0.1, 0.5, 1.0])}
    row = table["rows"][0]
    said = ("experiment", "dataset", "encoders", "loss", "batch_size", "learning_rate")
    assert {name: row[name] for name in said} == {
        "experiment": "clotho-fine-tuned-triplet_max", "dataset": "Clotho", "encoders": "fine-tuned",
        "loss": "triplet_max", "batch_size": 24, "learning_rate": 5e-5,
    }  # fmt: skip
    assert row["ours"]["audio_to_text"]["R@1"] == {"mean": 17, "std": 2}
    assert row["paper"]["audio_to_text"]["R@1"] == {"mean": 15.8, "std": 0.4}
    assert row["difference"]["audio_to_text"]["R@1"] == pytest.approx(3)


def test_mean_and_standard_deviation_over_seeds_worked_by_hand() -> None:
    # Of 10, 11, 15: the mean is 12, the squares 4 + 1 + 9 = 14 are divided by 3 - 1.
    three = aggregate([in_cells([value] * 6) for value in (10, 11, 15)])
    assert three == in_cells_of({"mean": 12, "std": pytest.approx(7**0.5)})
    two = aggregate([in_cells([value] * 6) for value in (10, 13)])
    assert two == in_cells_of({"mean": 11.5, "std": pytest.approx(1.5 * 2**0.5)})
    assert aggregate([in_cells([10] * 6)]) == in_cells_of({"mean": 10, "std": None})
    assert aggregate([]) == in_cells_of({"mean": None, "std": None})


def in_cells_of(value: Any) -> dict[str, dict[str, Any]]:
    return in_cells([value] * 6)


@given(st.lists(st.lists(st.floats(0, 100), min_size=6, max_size=6), min_size=2, max_size=5))
def test_mean_and_standard_deviation_are_numpys(recalls: list[list[float]]) -> None:
    cells = aggregate([in_cells(of_seed) for of_seed in recalls])
    found = [(cells[way][metric]["mean"], cells[way][metric]["std"]) for way, metric in RECALL_COLUMNS]
    expected = list(zip(np.mean(recalls, 0), np.std(recalls, 0, ddof=1), strict=True))
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-9)


def test_differences_are_in_units_of_the_papers_standard_deviation() -> None:
    paper = in_cells_of({"mean": 20.0, "std": 0.5})
    assert difference(in_cells_of({"mean": 21.0, "std": 9.0}), paper) == in_cells_of(2)
    assert difference(in_cells_of({"mean": 18.5, "std": 9.0}), paper) == in_cells_of(-3)
    assert difference(in_cells_of({"mean": None, "std": None}), paper) == in_cells_of(None)


def row_of(name: str, ours: Sequence[float | None], paper: Sequence[float] | None = None) -> TableRow:
    of_paper = None if paper is None else in_cells([{"mean": mean, "std": 1.0} for mean in paper])
    return {"experiment": name, "ours": in_cells([{"mean": m} for m in ours]), "paper": of_paper}


def test_the_best_of_each_column_as_it_is_printed() -> None:
    a = row_of("a", [10.04, 10.04, 10.06, 5, None, None], [1, 2, 3, 4, 5, 6])
    b = row_of("b", [10.01, 9.94, 10.04, 7, 3, None], [6, 5, 4, 3, 2, 6])
    c = row_of("c", [9, 9, 9, 7, None, None])
    t, a2t = "text_to_audio", "audio_to_text"
    assert best_cells([a, b, c], "ours") == {
        ("a", t, "R@1"), ("b", t, "R@1"),  # both 10.0
        ("a", t, "R@5"),  # 10.0 above 9.9
        ("a", t, "R@10"),  # 10.1 above 10.0
        ("b", a2t, "R@1"), ("c", a2t, "R@1"),
    }  # fmt: skip  # and of a single number none
    assert best_cells([a, b, c], "paper") == {
        ("b", t, "R@1"), ("b", t, "R@5"), ("b", t, "R@10"), ("a", a2t, "R@1"), ("a", a2t, "R@5"),
        ("a", a2t, "R@10"), ("b", a2t, "R@10"),
    }  # fmt: skip
    assert best_cells([a], "ours") == best_cells([a], "paper") == set()


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_bold_is_what_reads_highest(means: list[float]) -> None:
    rows = [row_of(str(k), [mean] * 6) for k, mean in enumerate(means)]
    highest = max(float(f"{mean:.1f}") for mean in means)
    expected = {str(k) for k, mean in enumerate(means) if float(f"{mean:.1f}") == highest}
    assert {name for name, *_ in best_cells(rows, "ours")} == expected
