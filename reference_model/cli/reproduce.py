"""Commands of the paper's tables: ``reproduce`` and ``report``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reference_model import InputError
from reference_model.beyond import TABLE as BEYOND
from reference_model.beyond import TITLES, rows_of_tables
from reference_model.cli.options import ENCODERS, FOLDER, run_options, run_settings
from reference_model.paper import SEEDS, TABLES
from reference_model.runtime.signals import handle_signals

if TYPE_CHECKING:
    from reference_model.reproduction.grid import Run


@click.command()
@click.option(
    "--tables",
    multiple=True,
    type=click.Choice((*TABLES, BEYOND)),
    default=TABLES,
    help="One: --tables 1; beyond: losses of later years beside NT-Xent.",
)
@click.option("--seeds", multiple=True, type=int, default=SEEDS, help="One or several: --seeds 0 --seeds 1.")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="Only these data sets. One that is not the paper's takes AudioCaps' rows.",
)
@click.option("--encoders", multiple=True, type=ENCODERS, help="Only these rows.")
@click.option("--losses", multiple=True, type=click.Choice(list(TITLES)), help="Only these rows.")
@click.option("--batch-sizes", multiple=True, type=int, help="Only these rows.")
@click.option("--learning-rate", type=float, help="Of every run, in place of the tables'.")
@run_options
@click.option("--jobs", type=click.IntRange(1), default=1, help="Runs to train at a time, each in its own process.")
@click.option("--plan", "plan_only", is_flag=True, help="Show the runs, their states, hours and disk; train nothing.")
@click.option("--retry-failed", is_flag=True, help="Train those again that ended in an error.")
@click.option("--out", type=FOLDER, default="results", help="Where to put the runs, the tables and the report.")
def reproduce(
    tables: tuple[str, ...], seeds: tuple[int, ...], plan_only: bool, retry_failed: bool, out: Path, **options: Any
) -> None:
    """Train what the paper's tables need, and make the tables, ours beside the published numbers.

    \b
        python -m reference_model reproduce                 both tables, with three seeds
        python -m reference_model reproduce --plan          what there is to do, what is done, what failed
        python -m reference_model reproduce --tables 2      and later the other: what both share is run once

    A row that stands in both tables is run once, and a finished run is not repeated. It can be stopped and started
    again at any time, and the same command may be at work on several GPUs or machines that see the same --out: each
    takes the next run that nobody is at. --jobs N trains N runs at a time here, which small models and frozen encoders
    gain by. A run that ends in an error is recorded, and the others go on.

    --out receives table_1 and table_2 as .md, .tex, .json and .png, claims.md, report.html, and a folder for each run.
    """
    from reference_model.reproduction.cost import estimate
    from reference_model.reproduction.grid import Grid, plan
    from reference_model.reproduction.report import write_tables
    from reference_model.reproduction.workers import check_before_training, train_all

    if "LOCAL_RANK" in os.environ:
        raise InputError("expected reproduce on its own, got torchrun; it divides runs, not batches: see --jobs")
    chosen = {name: options.pop(name) for name in ("datasets", "encoders", "losses", "batch_sizes", "learning_rate")}
    training = {name: options.pop(name) for name in ("jobs", "features", "checkpoint_minutes")}
    requested = Grid.from_rows(rows_of_tables(tables, **chosen), seeds, run_settings(options))
    whole = requested.merge_with_stored(out)  # with the runs of earlier commands, which the tables show too
    runs = requested.runs(out)
    check_before_training(runs)
    if retry_failed and not plan_only:
        for run in runs:
            run.failure_file.unlink(missing_ok=True)
    click.echo(plan(whole, out))
    with handle_signals():
        click.echo(estimate(runs, jobs=training["jobs"], out=out))
        if plan_only:
            return
        whole.write(out)
        train_all(runs, on_finished=lambda: write_tables(Grid.read(out), out), **training)
    _write_results(runs, out)


def _write_results(runs: "list[Run]", out: Path) -> None:
    """Write the tables and the report, and print the tables."""
    from reference_model.reproduction.grid import Grid, count_states
    from reference_model.reproduction.report import write_report, write_tables
    from reference_model.reproduction.table_formats import markdown

    grid = Grid.read(out)  # others may have added to it
    tables = write_tables(grid, out)
    write_report(grid, out)
    for table in tables:
        click.echo("\n" + markdown(table))
    click.echo(f"{out}/report.html shows it all; {out}/table_*.md, .tex, .json and .png, {out}/claims.md")
    states = [run.state() for run in runs]
    click.echo(f"{len(states)} runs: {count_states(states)}")
    if "running" in states:
        click.echo(f"next: python -m reference_model report --results {out}, when those that others are at are done")
    if "failed" in states:
        failed = f"{states.count('failed')} that failed: --plan says why, --retry-failed tries again"
        raise InputError(f"expected every run to end well, got {failed}")


@click.command()
@click.option("--results", type=FOLDER, default="results", help="The folder that reproduce works in.")
@click.option("--out", type=FOLDER, show_default="RESULTS", help="Where to put the tables and the page.")
def report(results: Path, out: Path | None) -> None:
    """Make the tables and report.html of a folder of results again, of the runs that there are so far.

    One page that holds everything: tables and pictures, what the paper reports beside what these runs show, the curves
    of every run, similarities of pairs, retrieved clips and captions to listen to, settings and versions.
    """
    from reference_model.reproduction.grid import Grid
    from reference_model.reproduction.report import write_report, write_tables

    grid = Grid.read(results)
    write_tables(grid, results, out)
    click.echo(f"{write_report(grid, results, out)} opens in any browser, without a network")
