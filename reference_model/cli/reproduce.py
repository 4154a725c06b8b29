"""Commands of the paper's tables: ``reproduce`` and ``report``."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from reference_model import InputError
from reference_model.beyond import TABLE as BEYOND
from reference_model.beyond import TITLES, rows_of_tables
from reference_model.cli.options import ENCODERS, FOLDER, FiniteRange, run_options, run_settings, with_options
from reference_model.paper import SEEDS, TABLES
from reference_model.runtime.signals import handle_signals

if TYPE_CHECKING:
    from reference_model.reproduction.grid import Run
    from reference_model.reproduction.launchers import Launcher

# What a job asks Slurm for.
_SLURM = ("partition", "gpus", "hours", "cpus", "memory", "slurm")
_TAKEN = ("array", "error", "job-name", "open-mode", "output", "requeue", "signal", "time")  # options of sbatch
_launcher_options = with_options(
    click.option(
        "--launcher",
        type=click.Choice(["local", "slurm"]),
        default="local",
        help="local: processes of this machine. slurm: jobs of a cluster, for which the next options are.",
    ),
    click.option("--partition", show_default="the cluster's", help="Where jobs run."),
    click.option("--gpus", type=click.IntRange(0), default=1, help="Of a job."),
    click.option("--hours", type=FiniteRange(0, min_open=True), default=12.0, help="Until a job is put back."),
    click.option("--cpus", type=click.IntRange(1), show_default="--workers + 1", help="Cores of a job."),
    click.option("--memory", type=FiniteRange(0, min_open=True), show_default="the cluster's", help="GB of a job."),
    click.option("--slurm", multiple=True, metavar="KEY=VALUE", help="Other options of sbatch: --slurm account=lab."),
    click.option(
        "--jobs",
        type=click.IntRange(1),
        show_default="1; of slurm, as many as there is room for",
        help="Runs at a time, each in its own process.",
    ),
)


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
@click.option(
    "--learning-rates",
    multiple=True,
    type=float,
    help="Several: --learning-rates 1e-4 --learning-rates 1e-3. Each has a grid, and one picture compares them.",
)
@run_options
@_launcher_options
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
    again at any time, and the same command may be at work on several machines that see the same --out: each takes the
    next run that nobody is at. --jobs N trains N runs at a time here, one on each GPU, or several, which small models
    and frozen encoders gain by. A run that ends in an error is recorded, and the others go on.

    \b
    How sensitive is a loss to the learning rate?
        python -m reference_model reproduce --tables 1 --learning-rates 1e-4 --learning-rates 1e-3 --out rates
    --out then holds a grid for each rate, and learning_rates.png, R@10 over the rate with a line for each loss.

    \b
    On a cluster with Slurm every run is a job of one array, and this command shows how far they are:
        python -m reference_model reproduce --launcher slurm --partition gpu --gpus 1 --hours 12 --slurm account=lab
    A job saves its run before --hours are over, or when it is preempted, and goes back into the queue. Ctrl-C cancels
    the jobs, and they save their runs too. If the command ends otherwise they go on, and the same command finds them.

    --out receives table_1 and table_2 as .md, .tex, .json and .png, claims.md, report.html, and a folder for each run.
    """
    from reference_model.reproduction.cost import estimate
    from reference_model.reproduction.grid import Grid, plan
    from reference_model.reproduction.schedule import check_before_training, check_encoders, train_all

    if "LOCAL_RANK" in os.environ:
        raise InputError("expected reproduce on its own, got torchrun; it divides runs, not batches: see --jobs")
    chosen = {name: options.pop(name) for name in ("datasets", "encoders", "losses", "batch_sizes")}
    rates = _rates_of_folders(out, options.pop("learning_rate"), options.pop("learning_rates"))
    launching = {name: options.pop(name) for name in ("launcher", "jobs", *_SLURM, "features", "checkpoint_minutes")}
    _check_launcher(launching["launcher"], launching["slurm"])
    whole, runs = {}, []
    for folder, rate in rates.items():
        requested = Grid.from_rows(rows_of_tables(tables, learning_rate=rate, **chosen), seeds, run_settings(options))
        whole[folder] = requested.merge_with_stored(folder)  # with runs of earlier commands, which tables show too
        runs += requested.runs(folder)
    check_before_training(runs)
    if not plan_only:
        check_encoders(runs, retry_failed=retry_failed)
        for run in runs if retry_failed else []:
            run.failure_file.unlink(missing_ok=True)
    for folder, grid in whole.items():
        click.echo((f"{folder}\n" if folder != out else "") + plan(grid, folder))
    with handle_signals():
        if launching["launcher"] == "local":  # a cluster's nodes are other machines than this one
            click.echo(estimate(runs, jobs=launching["jobs"] or 1, out=out))
        if plan_only:
            return
        launcher = _launcher(out, options["workers"], **launching)
        for folder, grid in whole.items():
            grid.write(folder)
        train_all(runs, launcher, on_finished=lambda: _write_tables(list(whole), out))
    _write_results(runs, list(whole), out)


def _rates_of_folders(out: Path, rate: float | None, rates: tuple[float, ...]) -> dict[Path, float | None]:
    """Return the folder of each grid, and the learning rate of its runs; None: that of the rows."""
    from reference_model.reproduction.learning_rates import rate_folder, refuse_other_folder

    if not rates:
        return {out: rate}
    if rate is not None:
        raise InputError("expected --learning-rate or --learning-rates, got both")
    refuse_other_folder(out)
    return {rate_folder(out, rate): rate for rate in sorted(set(rates))}


def _check_launcher(launcher: str, others: tuple[str, ...]) -> None:
    """Refuse options of Slurm for this machine, and options of sbatch that the launcher sets itself."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in _SLURM if source(name) is not ParameterSource.DEFAULT]
    if launcher == "local" and given:
        raise InputError(f"expected --{given[0]} with --launcher slurm, got it with --launcher local")
    for other in others:
        name = other.partition("=")[0]
        if not re.fullmatch(r"[a-z][a-z-]*(=[^\n]+)?", other) or name in _TAKEN:
            expected = f"expected --slurm KEY=VALUE, or KEY, of an option of sbatch other than {', '.join(_TAKEN)}"
            raise InputError(f"{expected}, got {other!r}")


def _launcher(
    out: Path,
    workers: int,
    *,
    launcher: str,
    jobs: int | None,
    slurm: tuple[str, ...],
    cpus: int | None,
    **options: Any,
) -> "Launcher":
    """Return what starts the jobs."""
    from reference_model.reproduction.local_jobs import LocalLauncher
    from reference_model.reproduction.slurm_jobs import SlurmLauncher, SlurmSettings

    asked = {name: options.pop(name) for name in ("partition", "gpus", "hours", "memory")}
    if launcher == "local":
        return LocalLauncher(out, jobs or 1, **options)
    others: dict[str, str | bool] = {}
    for name, equals, value in (other.partition("=") for other in slurm):
        others[name] = value if equals else True
    return SlurmLauncher(out, SlurmSettings(cpus=cpus or workers + 1, others=others, **asked), jobs, **options)


def _write_tables(folders: list[Path], out: Path) -> list[str]:
    """Write the tables of every grid, and return what is printed: they, or how learning rates compare."""
    from reference_model.reproduction.grid import Grid
    from reference_model.reproduction.learning_rates import write_learning_rates
    from reference_model.reproduction.report import write_tables
    from reference_model.reproduction.table_formats import markdown

    tables = [table for folder in folders for table in write_tables(Grid.read(folder), folder)]
    return [markdown(table) for table in tables] if folders == [out] else [write_learning_rates(out)]


def _write_results(runs: "list[Run]", folders: list[Path], out: Path) -> None:
    """Write the tables and the reports, and print the tables."""
    from reference_model.reproduction.grid import Grid, count_states
    from reference_model.reproduction.report import write_report

    for text in _write_tables(folders, out):
        click.echo("\n" + text)
    for folder in folders:
        write_report(Grid.read(folder), folder)  # others may have added to it
        checked = f", {folder}/claims.md" if (folder / "claims.md").exists() else ""
        click.echo(f"{folder}/report.html shows it all; {folder}/table_*.md, .tex, .json and .png{checked}")
    if folders != [out]:
        click.echo(f"{out}/learning_rates.png compares the rates; learning_rates.md and .json")
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
    of every run, similarities of pairs, retrieved clips and captions to listen to, settings and versions. Of a folder
    of several learning rates: how they compare.
    """
    from reference_model.reproduction.grid import Grid
    from reference_model.reproduction.learning_rates import rate_folders, write_learning_rates
    from reference_model.reproduction.report import write_report, write_tables

    if rate_folders(results):
        click.echo(write_learning_rates(results, out))
        return
    grid = Grid.read(results)
    write_tables(grid, results, out)
    click.echo(f"{write_report(grid, results, out)} opens in any browser, without a network")
