"""What the folder of a grid shows to people: the tables, the claims, and one HTML page that holds everything."""

import base64
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reference_model.evaluation.metrics import TITLES, sum_of_recalls
from reference_model.reproduction import claims
from reference_model.reproduction.examples import Pool, captions_as_queries, clips_as_queries, similarities
from reference_model.reproduction.grid import Grid, Run, counts
from reference_model.reproduction.plots import plot_all_curves, plot_similarities, plot_table
from reference_model.reproduction.tables import (
    COLUMNS,
    Table,
    caption,
    header,
    latex,
    lines,
    make_table,
    markdown,
    notes,
    plain,
)
from reference_model.run_folder import DIVERGED, METRICS, TIME, stored_metrics
from reference_model.runtime.environment import describe_environment
from reference_model.runtime.files import read_json, write_json, write_text

PAGE = "report.html"


def write_tables(grid: Grid, out: Path) -> list[Table]:
    """``table_1.{md,tex,json,png}``, likewise of the others, and ``claims.{md,json}``; of the runs there are so far."""
    with _alone(out):
        tables = [make_table(grid, number, out) for number in grid.tables]
        for table in tables:
            name = f"table_{table['table']}"
            write_json(out / f"{name}.json", table)
            write_text(out / f"{name}.md", markdown(table))
            write_text(out / f"{name}.tex", latex(table))
            plot_table(out / f"{name}.png", table)
        found = claims.check(tables)
        write_json(out / "claims.json", found)
        write_text(out / "claims.md", claims.markdown(found))
    return tables


def write_report(grid: Grid, out: Path) -> Path:
    """``report.html``: styles, pictures and sounds are inside it, and nothing is fetched from anywhere."""
    runs = grid.runs(out)
    done = [run for run in runs if (run.folder / METRICS).exists()]
    tables = [make_table(grid, number, out) for number in grid.tables]
    datasets = dict.fromkeys(row["dataset"] for row in grid.experiments.values())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(f"{PAGE}.jinja").render(
        title=f"Metric learning for audio-text retrieval: {' and '.join(datasets)}",
        state=f"{len(runs)} runs: {counts(run.state() for run in runs)}",
        made=f"Made on {describe_environment()}",
        tables=[_table(table) for table in tables],
        claims=claims.check(tables),
        curves=[_curves(title, of_block) for title, of_block in _blocks(done)],
        similarities=[_similarities(title, of_block) for title, of_block in _blocks(done)],
        examples=[_examples(title, of_block) for title, of_block in _blocks(done)],
        hours=_hours(done),
        titles=list(TITLES.values()),
        metric_names=[metric for _, metric in COLUMNS],
        runs=[_line(run) for run in runs],
        settings=grid.settings,
        versions=_versions(done),
    )  # fmt: skip
    with _alone(out):
        write_text(out / PAGE, page)
    return out / PAGE


def _alone(out: Path) -> FileLock:
    """Other machines write the same files."""
    return FileLock(out / ".tables.lock")


def _table(table: Table) -> dict[str, Any]:
    return {
        "number": table["table"],
        "caption": plain(caption(table)),
        "texts": header(table),
        "lines": lines(table),
        "notes": plain(" ".join(notes(table))),
        "picture": _picture(lambda path: plot_table(path, table)),
    }


def _blocks(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that differ in loss and seed alone, under what they have in common."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        config = run.config
        title = f"{config.dataset}, {config.encoders} encoders, batch size {config.batch_size}"
        found.setdefault(title, []).append(run)
    return list(found.items())


def _of_losses(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.config.loss, []).append(run)
    return found


def _picture(plot: Callable[[Path], object]) -> str:
    """What ``plot`` draws as a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        plot(path)
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _curves(title: str, runs: Sequence[Run]) -> dict[str, str]:
    histories = {
        loss: {run.config.seed: stored_metrics(run.folder)["history"] for run in of_loss}
        for loss, of_loss in _of_losses(runs).items()
    }
    return {"title": title, "image": _picture(lambda path: plot_all_curves(path, histories))}


def _similarities(title: str, runs: Sequence[Run]) -> dict[str, str]:
    pairs = {}
    for loss, of_loss in _of_losses(runs).items():
        found = [similarities(Pool.of(run.folder)) for run in of_loss]
        pairs[loss] = (np.concatenate([p for p, _ in found]), np.concatenate([n for _, n in found]))
    return {"title": title, "image": _picture(lambda path: plot_similarities(path, pairs))}


def _examples(title: str, runs: Sequence[Run]) -> dict[str, Any]:
    best = max(runs, key=lambda run: sum_of_recalls(stored_metrics(run.folder)["val"]))
    test = Pool.of(best.folder)
    return {
        "title": title,
        "run": best.name,
        "captions": captions_as_queries(test, best.config),
        "clips": clips_as_queries(test, best.config),
    }


def _hours(done: Sequence[Run]) -> str:
    times = [read_json(run.folder / TIME) for run in done]
    hours = sum(time["seconds"] for time in times) / 3600
    machines = ", ".join(sorted({time["machine"] for time in times}))
    return (
        f"{len(done)} finished runs took {hours:.2f} hours, added up, on: {machines}." if done else "None has finished."
    )


def _line(run: Run) -> dict[str, Any]:
    state = run.state()
    line: dict[str, Any] = {
        "name": run.name, "state": state, "minutes": "", "epoch": "", "cells": [""] * len(COLUMNS), "remark": ""
    }  # fmt: skip
    if state == "failed":
        line["remark"] = run.reason()
    elif state == "diverged":
        line["remark"] = read_json(run.folder / DIVERGED)["reason"]
    elif state == "done":
        metrics = stored_metrics(run.folder)
        line |= {
            "minutes": f"{read_json(run.folder / TIME)['seconds'] / 60:.1f}",
            "epoch": metrics["best_epoch"],
            "cells": [f"{metrics['test'][way][metric]:.1f}" for way, metric in COLUMNS],
            "remark": "collapsed" if metrics["collapsed"] else "",
        }
    return line


def _versions(done: Sequence[Run]) -> list[str]:
    """Those that the runs were made with; one line if all of them were made with the same."""
    found = (stored_metrics(run.folder)["versions"] for run in done)
    return list(dict.fromkeys(", ".join(f"{name} {version}" for name, version in of.items()) for of in found))
