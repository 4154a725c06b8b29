"""The results that are kept of ``make evidence``: tables, claims and reports, without any sound."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from reference_model import InputError
from reference_model.reproduction.grid import GRID, Grid, Run
from reference_model.reproduction.learning_rates import rate_folders, write_learning_rates
from reference_model.reproduction.report import write_report, write_tables
from reference_model.run_folder import METRICS, stored_time
from reference_model.runtime.files import atomic_folder, write_text

KEPT = Path(__file__).parents[1] / "results" / "evidence"
MADE = "made.md"  # says how long the runs took, and on which machine


def keep_results(results: Path, sources: Path, out: Path = KEPT) -> list[Path]:
    """Replace ``out`` by the tables, claims and reports of every folder of ``reproduce`` in ``results``.

    Args:
        results: the folder that holds a folder for each grid of runs.
        sources: the table of the recordings' origin, which is copied beside them.

    Returns:
        The folders of the grids in ``out``.

    Raises:
        InputError: there are no grids, or no table; or ``out`` holds something else.
    """
    folders = sorted(path.parent for path in results.glob(f"*/{GRID}"))
    of_rates = sorted({path.parents[1] for path in results.glob(f"*/rate-*/{GRID}")})
    if not (folders or of_rates) or not sources.is_file():
        raise InputError(f"expected folders of reproduce in {results}, and {sources}, got none")

    def write(kept: Path) -> None:
        for folder in folders:
            _keep(folder, kept / folder.name)
        for folder in of_rates:
            with TemporaryDirectory() as made:
                write_learning_rates(folder, Path(made))
                shutil.copytree(made, kept / folder.name, ignore=shutil.ignore_patterns(".*"))
            runs = [run for rate in rate_folders(folder) for run in Grid.read(rate).runs(rate)]
            _say_what_it_cost(runs, kept / folder.name)
        shutil.copyfile(sources, kept / sources.name)

    atomic_folder(out, write, check=_refuse_other_results)
    return [out / folder.name for folder in (*folders, *of_rates)]


def _refuse_other_results(folder: Path) -> None:
    """Refuse a folder that holds anything, but no results that were kept."""
    if any(folder.iterdir()) and not any(folder.glob(f"*/{MADE}")):
        expected = f"expected {folder} to be new or results that were kept"
        raise InputError(f"{expected}, got one without */{MADE}")


def _keep(folder: Path, kept: Path) -> None:
    """Make the tables and the report of one grid in another folder, and say what they cost."""
    grid = Grid.read(folder)
    with TemporaryDirectory() as made:  # locks stay there
        write_tables(grid, folder, Path(made))
        write_report(grid, folder, Path(made), sounds=False)
        shutil.copytree(made, kept, ignore=shutil.ignore_patterns(".*"))
    _say_what_it_cost(grid.runs(folder), kept)


def _say_what_it_cost(runs: Sequence[Run], kept: Path) -> None:
    times = [stored_time(run.folder) for run in runs if (run.folder / METRICS).exists()]
    hours = sum(time["seconds"] for time in times) / 3600
    machines = ", and on ".join(sorted({time["machine"] for time in times})) or "no machine yet"
    cost = f"{len(times)} runs of {hours:.2f} hours added up"
    write_text(kept / MADE, f"Made by `make evidence` on {machines}: {cost}.\n")
