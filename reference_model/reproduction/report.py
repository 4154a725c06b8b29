"""The files that show the results of a grid: the tables, the claims, and one HTML page with everything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reference_model.evaluation.metrics import TITLES, sum_of_recalls
from reference_model.evaluation.others import OtherModel, read_others
from reference_model.paper import TABLES
from reference_model.reproduction import claims, plots
from reference_model.reproduction import table_formats as formats
from reference_model.reproduction.examples import EmbeddedTestSet, captions_as_queries, clips_as_queries, similarities
from reference_model.reproduction.grid import Grid, Run, count_states
from reference_model.reproduction.tables import RECALL_COLUMNS, Table, make_table
from reference_model.run_folder import DIVERGED, METRICS, stored_metrics, stored_reason, stored_time
from reference_model.runtime.environment import describe_environment
from reference_model.runtime.files import write_json, write_text
from reference_model.training.curves import write_figure

PAGE = "report.html"
LOCK = ".tables.lock"  # of the files that several machines may write


def write_tables(grid: Grid, results: Path, out: Path | None = None) -> list[Table]:
    """Write ``table_N.{md,tex,json,png}`` and ``claims.{md,json}`` for the runs that are done so far.

    They go to ``out``, or else to the folder of the results. Claims are written where a table of the paper is.
    """
    out = out or results
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / LOCK):
        tables = [make_table(grid, number, results) for number in grid.tables]
        for table in tables:
            name = f"table_{table['table']}"
            write_json(out / f"{name}.json", table)
            write_text(out / f"{name}.md", formats.markdown(table))
            write_text(out / f"{name}.tex", formats.latex(table))
            write_figure(out / f"{name}.png", plots.plot_table(table))
        if checked := _claims(tables):
            write_json(out / "claims.json", checked)
            write_text(out / "claims.md", claims.markdown(checked))
    return tables


def write_report(grid: Grid, results: Path, out: Path | None = None, *, sounds: bool = True) -> Path:
    """Write ``report.html``, to ``out`` or else to the results; all is inside it, and it fetches nothing.

    Without ``sounds``, no clip can be listened to in it.
    """
    out, runs = out or results, grid.runs(results)
    done = [run for run in runs if (run.folder / METRICS).exists()]
    blocks = _blocks(done)
    tables = [make_table(grid, number, results) for number in grid.tables]
    datasets = dict.fromkeys(row["dataset"] for row in grid.experiments.values())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(f"{PAGE}.jinja").render(
        title=f"Metric learning for audio-text retrieval: {' and '.join(datasets)}",
        state=f"{len(runs)} runs: {count_states(run.state() for run in runs)}",
        made=f"Made on {describe_environment()}",
        tables=[_table(table) for table in tables],
        claims=_claims(tables),
        curves=[{"title": title, "image": _curves(grid, block)} for title, block in blocks.items()],
        similarities=[{"title": title, "image": _similarities(grid, block)} for title, block in blocks.items()],
        examples=[_examples(title, block, sounds) for title, block in blocks.items()],
        hours=_hours(done),
        titles=list(TITLES.values()),
        metric_names=[metric for _, metric in RECALL_COLUMNS],
        runs=[*map(_run_line, runs), *map(_other_line, read_others(results))],
        settings=grid.settings,
        versions=_versions(done),
    )
    with FileLock(out / LOCK):
        write_text(out / PAGE, page)
    return out / PAGE


def _claims(tables: Sequence[Table]) -> list[dict[str, str]]:
    """Return the paper's claims, checked on those of the tables that the paper has; none if it has none of them."""
    of_paper = [table for table in tables if table["table"] in TABLES]
    return claims.check(of_paper) if of_paper else []


def _table(table: Table) -> dict[str, Any]:
    return {
        "number": table["table"],
        "caption": formats.plain(formats.caption(table)),
        "texts": formats.header(table),
        "lines": formats.lines(table),
        "notes": formats.plain(" ".join(formats.notes(table))),
        "image": plots.data_url(plots.plot_table(table)),
    }


def _blocks(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs that differ only in loss and seed; the key is their title."""
    blocks: dict[str, list[Run]] = {}
    for run in runs:
        title = f"{run.config.dataset}, {run.config.encoders} encoders, batch size {run.config.batch_size}"
        blocks.setdefault(title, []).append(run)
    return blocks


def _curves(grid: Grid, runs: Sequence[Run]) -> str:
    histories: dict[str, dict[int, Any]] = {}
    for run in runs:
        loss = grid.experiments[run.experiment]["loss"]
        histories.setdefault(loss, {})[run.config.seed] = stored_metrics(run.folder)["history"]
    return plots.data_url(plots.plot_learning_curves(histories))


def _similarities(grid: Grid, runs: Sequence[Run]) -> str:
    pairs: dict[str, list[Any]] = {}
    for run in runs:
        loss = grid.experiments[run.experiment]["loss"]
        pairs.setdefault(loss, []).append(similarities(EmbeddedTestSet.read(run.folder)))
    joined = {loss: [np.concatenate(arrays) for arrays in zip(*found, strict=True)] for loss, found in pairs.items()}
    return plots.data_url(plots.plot_similarities(joined))


def _examples(title: str, runs: Sequence[Run], sounds: bool) -> dict[str, Any]:
    best = max(runs, key=lambda run: sum_of_recalls(stored_metrics(run.folder)["val"]))
    test = EmbeddedTestSet.read(best.folder)
    config = best.config if sounds else None
    captions, clips = captions_as_queries(test, config), clips_as_queries(test, config)
    return {"title": title, "run": best.name, "captions": captions, "clips": clips}


def _hours(done: Sequence[Run]) -> str:
    if not done:
        return "None has finished."
    times = [stored_time(run.folder) for run in done]
    hours = sum(time["seconds"] for time in times) / 3600
    machines = ", ".join(sorted({time["machine"] for time in times}))
    return f"{len(done)} finished runs took {hours:.2f} hours, added up, on: {machines}."


def _run_line(run: Run) -> dict[str, Any]:
    state, cells = run.state(), [""] * len(RECALL_COLUMNS)
    line = {"name": run.name, "state": state, "minutes": "", "epoch": "", "cells": cells, "remark": ""}
    if state == "failed":
        line["remark"] = run.reason()
    elif state == "diverged":
        line["remark"] = stored_reason(run.folder / DIVERGED)
    elif state == "done":
        metrics = stored_metrics(run.folder)
        line |= {
            "minutes": f"{stored_time(run.folder)['seconds'] / 60:.1f}",
            "epoch": metrics["best_epoch"],
            "cells": [f"{metrics['test'][direction][metric]:.1f}" for direction, metric in RECALL_COLUMNS],
            "remark": "collapsed" if metrics["collapsed"] else "",
        }
    return line


def _other_line(record: OtherModel) -> dict[str, Any]:
    """Return the line of a model that was not trained here: its recalls, and mAP and median rank as the remark."""
    metrics: dict[str, Any] = dict(record["metrics"])
    remarks = [f"{record['dataset']}, {record['split']}", record["source"]]
    if record["relevance"] is not None:
        remarks.append(f"relevance of {record['relevance']}")
    for metric in ("mAP@10", "mAP@16", "median_rank"):
        values = [f"{metrics[direction][metric]:.1f}" for direction in TITLES if metric in metrics[direction]]
        remarks += [f"{metric.replace('_', ' ')} {' and '.join(values)}"] if values else []
    return {
        "name": record["model"],
        "state": "another model",
        "minutes": "",
        "epoch": "",
        "cells": [f"{metrics[direction][metric]:.1f}" for direction, metric in RECALL_COLUMNS],
        "remark": "; ".join(remarks),
    }


def _versions(done: Sequence[Run]) -> list[str]:
    """Return the different sets of package versions that the runs were made with, a line for each."""
    versions = (stored_metrics(run.folder)["versions"] for run in done)
    return list(dict.fromkeys(", ".join(f"{name} {version}" for name, version in v.items()) for v in versions))
