"""Grids of runs for tests: of real settings, and of made-up results whose tables can be written by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference_model.config import ADDED_SETTINGS, Config
from reference_model.paper import PROTOCOLS, ROW_SETTINGS, Experiment, select_rows
from reference_model.reproduction.grid import Grid, Run
from reference_model.reproduction.tables import RECALL_COLUMNS, Table, make_table
from reference_model.runtime.files import write_json


def settings(config: Config) -> dict[str, Any]:
    """Return the settings that all runs of a grid share, from the configuration of one of them."""
    return {name: value for name, value in config.as_dict().items() if name not in (*ROW_SETTINGS, "seed")}


def small_grid(rows: dict[str, list[Experiment]], seeds: Sequence[int]) -> Grid:
    """Return a grid of rows as ``select_rows`` returns them, with the smallest settings."""
    shared = {
        "data": "data", "clip_seconds": 1.0, "model": "tiny",
        "audio_checkpoint": None, "text_encoder": None, **ADDED_SETTINGS, "epochs": 1, "decay_every": 20,
        "gradient_cache_micro_batch": None, "precision": "no", "workers": 0, **PROTOCOLS["paper"],
    }  # fmt: skip
    return Grid.from_rows(rows, seeds, shared)


def runs_by_name(grid: Grid, out: Path) -> dict[str, Run]:
    """Return the runs of a grid by name."""
    return {run.name: run for run in grid.runs(out)}


def in_cells(numbers: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return six values, in the order of the table's columns, by direction and metric."""
    cells: dict[str, dict[str, Any]] = {"text_to_audio": {}, "audio_to_text": {}}
    for (direction, metric), number in zip(RECALL_COLUMNS, numbers, strict=True):
        cells[direction][metric] = number
    return cells


def finish(run: Run, *recalls: float, clips: int = 20, collapsed: bool = False) -> None:
    """Write what the tables read of a finished run, with five captions for each clip."""
    test = in_cells(recalls)
    test["text_to_audio"]["pool"], test["audio_to_text"]["pool"] = clips, 5 * clips
    chance = in_cells([100 * k / clips for k in (1, 5, 10, 1, 5, 10)])
    run.folder.mkdir(parents=True)
    write_json(run.folder / "metrics.json", {"test": test, "chance": chance, "collapsed": collapsed})


def diverge(run: Run) -> None:
    """Write what a diverged run leaves."""
    run.folder.mkdir(parents=True)
    write_json(run.folder / "diverged.json", {"reason": "the loss is nan"})


def clotho_table(out: Path) -> Table:
    """Return table 1 with two fine-tuned rows and three seeds; the test set lacks some clips of the paper's."""
    recalls = {
        "triplet_max": [(13, 33, 45, 15, 36, 49), (14, 36, 48, 17, 38, 49), (15, 39, 51, 19, 40, 49)],
        "nt_xent": [(14, 36, 49, 16, 37, 50), (15, 37, 50, 17, 38, 51), (16, 38, 51, 18, 39, 52)],
    }
    rows = select_rows(["1"], datasets=["Clotho"], encoders=["fine-tuned"], losses=list(recalls))
    grid = small_grid(rows, (0, 1, 2))
    for run in grid.runs(out):
        finish(run, *recalls[run.config.loss][run.config.seed], clips=1000)
    return make_table(grid, "1", out)


def synthetic_table(out: Path, dataset: str = "Synthetic") -> Table:
    """Return table 2 of a data set that the paper does not have, with one seed."""
    grid = small_grid(select_rows(["2"], datasets=[dataset], losses=["triplet_sum", "nt_xent"]), (7,))
    runs = runs_by_name(grid, out)
    name = f"{dataset.lower()}-frozen"
    finish(runs[f"{name}-triplet_sum-seed-7"], 10, 20, 30, 11, 21, 31)
    finish(runs[f"{name}-nt_xent-seed-7"], 12, 20.04, 29, 11, 21, 31)
    finish(runs[f"{name}-triplet_sum-batch-128-seed-7"], 5, 25, 35, 5, 25, 35)
    finish(runs[f"{name}-nt_xent-batch-128-seed-7"], 6, 24, 36, 4, 26, 34)
    return make_table(grid, "2", out)
