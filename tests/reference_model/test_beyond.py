"""Rows that the paper does not have: their settings, names and table."""

from dataclasses import replace
from pathlib import Path

import pytest
from grids import finish, runs_by_name, small_grid

from reference_model import InputError
from reference_model.beyond import BASE, QUEUE, TABLE, VARIANTS, row_loss, rows_of_tables, settings_of
from reference_model.config import Config
from reference_model.reproduction import plots
from reference_model.reproduction.claims import check
from reference_model.reproduction.grid import Grid
from reference_model.reproduction.report import write_tables
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


@pytest.mark.parametrize("name", [BASE, "triplet_max", *VARIANTS])
def test_a_run_belongs_to_the_row_of_its_settings(config: Config, name: str) -> None:
    run = replace(config, **settings_of(name))
    assert row_loss(run) == name
    assert row_loss(replace(run, queue=QUEUE + 1)) != "nt_xent_queue"


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
    assert check(tables[:1]) == check([make_table(grid, "1", tmp_path)])
