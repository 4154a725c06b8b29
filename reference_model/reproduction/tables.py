"""The numbers of the paper's tables: our means and standard deviations over seeds beside the published ones.

A standard deviation is that of a sample (n - 1). A difference to the paper is in units of the paper's standard
deviation of the same number. :mod:`reference_model.reproduction.table_formats` prints the tables.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference_model.evaluation.metrics import DIRECTIONS
from reference_model.evaluation.others import OtherModel, read_others
from reference_model.paper import DATASET_SIZES, published
from reference_model.reproduction.grid import FINISHED, Grid, Run
from reference_model.run_folder import METRICS, TableMetrics, stored_metrics

RECALL_COLUMNS = [(direction, f"R@{k}") for direction in DIRECTIONS for k in (1, 5, 10)]

Table = dict[str, Any]  # the content of table_1.json
TableRow = dict[str, Any]  # one of its "rows"
Cells = dict[str, dict[str, Any]]  # direction to metric to a value


def make_table(grid: Grid, number: str, out: Path) -> Table:
    """Return the content of ``table_NUMBER.json``, from the runs in ``out`` that are done, and from other models."""
    runs = [run for run in grid.runs(out) if run.experiment in grid.tables[number]]
    rows = [make_row(name, grid, [run for run in runs if run.experiment == name]) for name in grid.tables[number]]
    datasets = {run.config.dataset for run in runs}
    others = [record for record in read_others(out) if record["dataset"] in datasets and record["split"] == "test"]
    pools, chance = {}, {}
    for run in runs:
        dataset = run.config.dataset
        if dataset not in pools and (run.folder / METRICS).exists():
            metrics = stored_metrics(run.folder, TableMetrics)
            pools[dataset] = {
                "clips": metrics["test"]["text_to_audio"]["pool"],
                "captions": metrics["test"]["audio_to_text"]["pool"],
                "clips in the paper": DATASET_SIZES.get(dataset, {}).get("test"),
            }
            chance[dataset] = {
                direction: {metric: metrics["chance"][direction][metric] for metric in ("R@1", "R@5", "R@10")}
                for direction in DIRECTIONS
            }
    return {
        "table": number,
        "seeds": grid.seeds,
        "pools": pools,
        "rows": rows,
        "others": [other_row(record) for record in others],
        "chance": chance,
    }


def other_row(record: OtherModel) -> TableRow:
    """Return the row of a model that was not trained here, from its record."""
    metrics: dict[str, Any] = dict(record["metrics"])
    cells: Cells = {}
    for direction, metric in RECALL_COLUMNS:
        cells.setdefault(direction, {})[metric] = metrics[direction][metric]
    return {
        **{name: record[name] for name in ("model", "source", "dataset", "relevance")},
        "clips": metrics["text_to_audio"]["pool"],
        "captions": metrics["audio_to_text"]["pool"],
        "recalls": cells,
    }


def make_row(name: str, grid: Grid, runs: Sequence[Run]) -> TableRow:
    """Return the row of one experiment from its runs, one for each seed."""
    states = [run.state() for run in runs]
    finished = [run for run, state in zip(runs, states, strict=True) if state == "done"]
    done = [stored_metrics(run.folder, TableMetrics) for run in finished]
    ours = aggregate([metrics["test"] for metrics in done])
    paper = published().get(name)
    return {
        "experiment": name,
        **grid.experiments[name],
        "runs": {state: states.count(state) for state in FINISHED} | {"planned": len(runs)},
        "collapsed": sum(metrics["collapsed"] for metrics in done),
        "ours": ours,
        "paper": paper,
        "difference": None if paper is None else difference(ours, paper),
    }


def aggregate(results: Sequence[dict[str, dict[str, float]]]) -> Cells:
    """Return mean and sample standard deviation over seeds; None where there are too few seeds."""
    cells: Cells = {}
    for direction, metric in RECALL_COLUMNS:
        values = [result[direction][metric] for result in results]
        mean, std = (
            (statistics.mean(values) if values else None),
            (statistics.stdev(values) if len(values) > 1 else None),
        )
        cells.setdefault(direction, {})[metric] = {"mean": mean, "std": std}
    return cells


def difference(ours: Cells, paper: Cells) -> Cells:
    """Return our means minus the paper's, in units of the paper's standard deviation."""
    cells: Cells = {}
    for direction, metric in RECALL_COLUMNS:
        mean, their = ours[direction][metric]["mean"], paper[direction][metric]
        cells.setdefault(direction, {})[metric] = None if mean is None else (mean - their["mean"]) / their["std"]
    return cells


def row_blocks(table: Table) -> list[list[TableRow]]:
    """Group the rows that are compared: same data set and encoders, in table 2 also the same batch size."""
    blocks: dict[Any, list[TableRow]] = {}
    for row in table["rows"]:
        key = (row["dataset"], row["encoders"], row["batch_size"] if table["table"] != "1" else None)
        blocks.setdefault(key, []).append(row)
    return list(blocks.values())


def best_cells(block: Sequence[TableRow], source: str) -> set[tuple[str, str, str]]:
    """Return (experiment, direction, metric) of the highest mean of each column, compared as printed.

    A column with a mean in one row alone has no best. The source is "ours" or "paper".
    """
    best = set()
    for direction, metric in RECALL_COLUMNS:
        found = {row["experiment"]: row[source][direction][metric]["mean"] for row in block if row[source] is not None}
        means = {name: round(mean, 1) for name, mean in found.items() if mean is not None}
        if len(means) > 1:
            best |= {(name, direction, metric) for name, mean in means.items() if mean == max(means.values())}
    return best
