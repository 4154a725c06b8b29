"""Rows that the paper does not have: their settings, names and table."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from grids import finish, runs_by_name, settings, small_grid
from matplotlib.figure import Figure

from reference_model import InputError
from reference_model.beyond import BASE, QUEUE, TABLE, VARIANTS, rows_of_tables
from reference_model.config import Config
from reference_model.reproduction import plots
from reference_model.reproduction.claims import check
from reference_model.reproduction.grid import Grid
from reference_model.reproduction.report import write_report, write_tables
from reference_model.reproduction.table_formats import markdown
from reference_model.reproduction.tables import make_table


def test_every_row_of_nt_xent_has_a_row_of_each_variant() -> None:
    """Table 2 repeats rows of table 1: they are there once."""
    rows = rows_of_tables([TABLE], datasets=["Synthetic"])[TABLE]
    conditions = [(row["encoders"], row["batch_size"]) for row in rows if row["loss"] == BASE]
    assert conditions == [("frozen", 32), ("fine-tuned", 32), ("frozen", 128)]
    assert [row["loss"] for row in rows] == [BASE, *VARIANTS] * 3
    assert {row["learning_rate"] for row in rows} == {1e-4}
    some = rows_of_tables(["1", TABLE], datasets=["Clotho"], losses=["nt_xent", "sup_con"], encoders=["frozen"])
    assert [row["loss"] for row in some["1"]] == ["nt_xent"]
    assert [row["loss"] for row in some[TABLE]] == ["nt_xent", "sup_con"]
    with pytest.raises(InputError, match="expected rows of table 1, got none of these data sets"):
        rows_of_tables(["1", TABLE], losses=["sup_con"])


def test_the_pictures_of_the_report_show_each_row(
    config: Config, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all runs have a setting that tells some rows apart."""
    losses = [BASE, "nt_xent_queue"]
    row = {"dataset": "Synthetic", "encoders": "fine-tuned", "batch_size": 16, "learning_rate": 1e-3}
    all_learn = settings(replace(config, learn_temperature=True))
    grid = Grid.from_rows({TABLE: [{**row, "loss": loss} for loss in losses]}, (0,), all_learn)
    for run in grid.runs(tmp_path):
        shutil.copytree(trained, run.folder)
    shown: list[list[str]] = []

    def show(by_loss: Mapping[str, object]) -> Figure:
        shown.append([*by_loss])
        return Figure()

    for name in ("plot_learning_curves", "plot_similarities"):
        monkeypatch.setattr(plots, name, show)
    page = write_report(grid, tmp_path, sounds=False).read_text()
    assert shown == [losses, losses]
    assert "#claims" not in page  # the paper says nothing of these rows
    assert "What the paper reports" not in page
    write_tables(grid, tmp_path)
    assert not list(tmp_path.glob("claims.*"))


def test_captions_of_a_clip_are_together_in_one_row() -> None:
    rows = rows_of_tables([TABLE], datasets=["Synthetic"], encoders=["frozen"], losses=["sup_con", "sup_con_together"])
    configs = [run.config for run in small_grid(rows, (0,)).runs(Path("out"))]
    assert [(config.loss, config.captions_together) for config in configs] == [
        ("sup_con", False),
        ("sup_con", True),
    ] * 2


def test_the_table(tmp_path: Path) -> None:
    chosen = {"datasets": ["Synthetic"], "encoders": ["frozen"], "losses": [BASE, "nt_xent_queue"]}
    grid = small_grid(rows_of_tables(["1", TABLE], **chosen), (0,))
    grid.write(tmp_path)
    assert Grid.read(tmp_path) == grid
    runs = runs_by_name(grid, tmp_path)
    name = "synthetic-frozen-nt_xent"
    assert runs[f"{name}_queue-seed-0"].config.queue == QUEUE
    assert runs[f"{name}-seed-0"].config.queue == 0
    finish(runs[f"{name}-seed-0"], 10, 20, 30, 11, 21, 31)
    finish(runs[f"{name}_queue-seed-0"], 12, 20, 29, 11, 21, 31)
    table = make_table(grid, TABLE, tmp_path)
    lines = markdown(table).splitlines()
    assert lines[0].startswith("Beyond the paper. Recalls in %, seed 0. Synthetic: 20 test clips, 100 captions; ")
    assert lines[2].startswith("| Dataset | Fine-tune | Batch size | Objective |")
    assert lines[4].startswith("| Synthetic | No | 32 | NT-Xent | 10.0 | **20.0** | **30.0** |")
    assert lines[5].startswith("|  |  |  | NT-Xent, queue of 4096 | **12.0** | **20.0** | 29.0 |")
    assert lines[6].startswith("| Synthetic | No | 128 | NT-Xent (to come) | - |")
    plots.plot_table(table)
    tables = write_tables(grid, tmp_path)
    assert (tmp_path / "table_beyond.md").read_text() == markdown(tables[1])
    assert json.loads((tmp_path / "claims.json").read_text()) == check(tables[:1])
