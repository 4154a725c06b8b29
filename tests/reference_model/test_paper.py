"""The rows of the paper's tables: named, complete, with the published numbers; and the row that a run takes."""

import json
from typing import Any

import pytest

from crossmodal_losses import LOSSES
from reference_model import InputError
from reference_model.paper import LOSS_NAMES, PAPER_TABLES, experiments, row_for, select_rows

TABLES = json.loads(PAPER_TABLES.read_text())


def test_every_row_of_the_tables_is_an_experiment() -> None:
    assert TABLES["table_2"][:4] == TABLES["table_1"][:4]
    named = experiments()
    assert len(named) == 16 + 4  # half of table 2 repeats table 1
    for row in (*TABLES["table_1"], *TABLES["table_2"]):
        name = f"{row['dataset'].lower()}-{row['encoders']}-{row['loss']}"
        name += "-batch-128" if row["batch_size"] == 128 else ""
        assert named[name] == {key: row[key] for key in named[name]}
    assert {name for name, settings in named.items() if settings["learning_rate"] == 5e-5} == {
        "clotho-frozen-triplet_weighted", "clotho-fine-tuned-triplet_max", "clotho-fine-tuned-triplet_weighted",
    }  # fmt: skip
    assert {settings["learning_rate"] for settings in named.values()} == {1e-4, 5e-5}


# Sums over the six recalls of each row, means and standard deviations, added up from the published tables.
SUMS: dict[tuple[str, str, int], list[tuple[float, float]]] = {
    ("AudioCaps", "frozen", 32): [(267.0, 3.8), (285.2, 4.1), (289.3, 3.0), (281.6, 2.5)],
    ("AudioCaps", "fine-tuned", 32): [(368.7, 5.6), (374.1, 4.1), (375.1, 6.8), (381.5, 3.5)],
    ("Clotho", "frozen", 24): [(135.2, 2.6), (136.5, 3.9), (126.3, 1.6), (146.3, 2.5)],
    ("Clotho", "fine-tuned", 24): [(204.4, 4.6), (201.5, 6.5), (206.9, 2.0), (204.8, 3.1)],
    ("AudioCaps", "frozen", 128): [(263.5, 4.8), (221.6, 3.5), (181.1, 7.6), (280.9, 4.3)],
}

# And over the rows of a table, column by column.
COLUMNS: dict[str, list[tuple[float, float]]] = {
    "table_1": [(294.7, 5.9), (716.6, 7.2), (929.5, 6.5), (336.3, 12.6), (751.7, 14.7), (955.6, 13.3)],
    "table_2": [(134.6, 3.0), (369.8, 3.7), (494.4, 3.6), (151.6, 7.0), (396.6, 9.0), (523.2, 7.3)],
}


def recalls(row: dict[str, Any]) -> list[tuple[float, float]]:
    """Means and standard deviations, in the order of the columns."""
    cells = [row[way][f"R@{k}"] for way in ("text_to_audio", "audio_to_text") for k in (1, 5, 10)]
    return [(cell["mean"], cell["std"]) for cell in cells]


def added(cells: list[tuple[float, float]]) -> tuple[float, float]:
    return round(sum(mean for mean, _ in cells), 1), round(sum(std for _, std in cells), 1)


def test_the_published_numbers_add_up() -> None:
    losses, (first, *others, last) = ("triplet_sum", "triplet_max", "triplet_weighted", "nt_xent"), SUMS
    for table, blocks in (("table_1", [first, *others]), ("table_2", [first, last])):
        rows = TABLES[table]
        expected = [(*block, loss) for block in blocks for loss in losses]
        assert [(row["dataset"], row["encoders"], row["batch_size"], row["loss"]) for row in rows] == expected
        assert [added(recalls(row)) for row in rows] == [sums for block in blocks for sums in SUMS[block]]
        assert [added(list(column)) for column in zip(*map(recalls, rows), strict=True)] == COLUMNS[table]


@pytest.mark.parametrize("encoders", ["frozen", "fine-tuned"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_a_row_to_take_settings_from(loss: str, encoders: str) -> None:
    for dataset in ("AudioCaps", "Clotho", "Mine"):
        row, words = row_for(dataset, encoders, loss)
        assert row["encoders"] == encoders
        assert row["dataset"] == ("AudioCaps" if dataset == "Mine" else dataset)
        similar = {"triplet_weighted_mined": "triplet_weighted", "sup_con": "nt_xent", "sigmoid": "nt_xent"}
        assert row["loss"] == similar.get(loss, loss)
        assert row["batch_size"] == (24 if dataset == "Clotho" else 32)
        assert ("no row of Mine" in words) == (dataset == "Mine")
        assert (loss in words) == (loss in similar)
    row, words = row_for("Clotho", encoders, "arcface")  # a new loss takes the row of NT-Xent
    assert row == experiments()[f"clotho-{encoders}-nt_xent"]
    assert words == f"table 1, Clotho, {encoders}, NT-Xent, for it has no row of arcface"


def test_rows_of_one_batch_size_can_be_chosen() -> None:
    rows = select_rows(("2",), datasets=("Mine",), batch_sizes=(128,))["2"]
    assert [(row["loss"], row["batch_size"]) for row in rows] == [(loss, 128) for loss in LOSS_NAMES]
    with pytest.raises(InputError, match="expected rows of table 1, got none of these"):
        select_rows(("1",), batch_sizes=(128,))


def test_another_learning_rate_replaces_that_of_every_row() -> None:
    rows = select_rows(("1", "2"), learning_rate=0.5)
    assert {row["learning_rate"] for of_table in rows.values() for row in of_table} == {0.5}
    assert {row["learning_rate"] for row in select_rows(("1",))["1"]} == {1e-4, 5e-5}
