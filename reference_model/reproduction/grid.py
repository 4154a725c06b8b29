"""The runs that the paper's tables need, and the state of each.

A row that is in two tables is run once. The folder of the results holds ``grid.json`` with the rows of the tables,
``runs/NAME-seed-N`` for every run, and ``failed/NAME-seed-N.json`` for every run that ended in an error.
"""

import dataclasses
import itertools
import reprlib
import socket
import time
import traceback
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from filelock import FileLock
from pydantic import Field, FiniteFloat, with_config
from typing_extensions import TypedDict

from reference_model import InputError, reason_of
from reference_model.beyond import settings_of
from reference_model.config import WITHOUT_EFFECT, Config, Encoders, in_current_form
from reference_model.data.layouts import clip_seconds
from reference_model.evaluation.others import OTHERS, read_others
from reference_model.paper import ROW_SETTINGS, Experiment, experiment_name
from reference_model.run_folder import CONFIG, DIVERGED, METRICS, stored_reason
from reference_model.runtime import lease
from reference_model.runtime.files import NotWritten, require_same_settings, write_json
from reference_model.runtime.lease import lock_holder, seconds_since_heartbeat
from reference_model.runtime.records import read_json

GRID = "grid.json"
KIND = "results of reproduce"
State = Literal["done", "diverged", "failed", "running", "interrupted", "pending"]
STATES: tuple[State, ...] = get_args(State)
FINISHED: tuple[State, ...] = ("done", "diverged", "failed")  # nothing is left to train


@dataclass(frozen=True)
class Run:
    """A training run: one row of the tables with one seed."""

    experiment: str
    config: Config
    folder: Path
    failure_file: Path  # records the error of a run that failed

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    def state(self) -> State:
        """Return the state that the files show now."""
        if (self.folder / METRICS).exists():
            return "done"
        if (self.folder / DIVERGED).exists():
            return "diverged"
        if lock_holder(self.folder) is not None and seconds_since_heartbeat(self.folder) < 2 * lease.LEASE_SECONDS:
            return "running"
        if self.failure_file.exists():
            return "failed"
        return "interrupted" if (self.folder / CONFIG).exists() else "pending"

    def finished(self) -> bool:
        """Return whether the state is one of :data:`FINISHED`, without looking at the lock."""
        return any(path.exists() for path in (self.folder / METRICS, self.folder / DIVERGED, self.failure_file))

    def record_failure(self, error: BaseException | str, *, log: str = "") -> None:
        """Record the error, its traceback or the end of a log, the time and the machine; the state is then "failed"."""
        lines = [log] if isinstance(error, str) else traceback.format_exception(error)
        reason = error if isinstance(error, str) else str(error).strip() or type(error).__name__
        self.failure_file.parent.mkdir(parents=True, exist_ok=True)
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        record = {"reason": reason, "when": when, "machine": socket.gethostname(), "traceback": "".join(lines)}
        write_json(self.failure_file, record)

    def reason(self) -> str:
        """Return the recorded error in one line."""
        return " ".join(stored_reason(self.failure_file).splitlines()[:2])


@with_config(extra="forbid")
class Row(TypedDict):
    """The settings of an experiment."""

    dataset: str
    encoders: Encoders
    loss: Literal[  # those with a title in the tables
        "triplet_sum", "triplet_max", "triplet_weighted", "nt_xent",
        "sup_con", "sup_con_together", "sigmoid", "nt_xent_learned", "nt_xent_queue",
    ]  # fmt: skip
    batch_size: int
    learning_rate: FiniteFloat


class GridForm(TypedDict):
    """The content of ``grid.json``."""

    tables: Annotated[dict[Literal["1", "2", "beyond"], Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    experiments: Annotated[dict[str, Row], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """The rows and the seeds of the tables, and the settings of all runs."""

    tables: dict[str, list[str]]  # the names of the rows, by number of the table
    experiments: dict[str, Experiment]  # the settings of the rows, by name
    seeds: list[int]
    settings: dict[str, Any]  # the fields of Config that are neither of the row nor the seed

    @classmethod
    def from_rows(cls, rows: dict[str, list[Experiment]], seeds: Sequence[int], settings: dict[str, Any]) -> "Grid":
        """Return the grid of rows in the form of :func:`reference_model.paper.select_rows`.

        Raises:
            InputError: two data sets would have runs of the same names.
        """
        tables = {table: [*dict.fromkeys(map(experiment_name, table_rows))] for table, table_rows in rows.items()}
        experiments: dict[str, Experiment] = {}
        for row in itertools.chain(*rows.values()):
            other = experiments.setdefault(experiment_name(row), row)
            if other["dataset"] != row["dataset"]:
                got = f"{other['dataset']} and {row['dataset']}"
                raise InputError(f"expected data sets whose names differ in more than capitals, got {got}")
        return cls(tables, experiments, sorted(set(seeds)), settings)

    def runs(self, out: Path) -> list[Run]:
        """Return every run once: all rows with the first seed come first, so that tables are soon complete."""
        runs = []
        for seed, (name, row) in itertools.product(self.seeds, self.experiments.items()):
            run = f"{name}-seed-{seed}"
            runs.append(Run(name, self._config(row, seed), out / "runs" / run, out / "failed" / f"{run}.json"))
        return runs

    def _config(self, row: Experiment, seed: int) -> Config:
        fixed = {"clip_seconds": clip_seconds(row["dataset"], self.settings["clip_seconds"])}
        return Config(**{**self.settings, **row, **settings_of(row["loss"]), **fixed, "seed": seed})

    def merge(self, other: "Grid") -> "Grid":
        """Return the tables, rows and seeds of both grids, with the settings of the other."""
        tables = {
            table: list(dict.fromkeys([*self.tables.get(table, []), *other.tables.get(table, [])]))
            for table in sorted({*self.tables, *other.tables})
        }
        experiments = {**self.experiments, **other.experiments}
        return Grid(tables, experiments, sorted({*self.seeds, *other.seeds}), other.settings)

    def merge_with_stored(self, out: Path) -> "Grid":
        """Return this grid merged with the one in the folder, if there is one; refuse a folder of something else.

        A damaged record of another model is refused too: the tables could not be made after hours of training.
        """
        read_others(out)
        if not (out / GRID).exists():
            if out.exists() and (not out.is_dir() or any(_is_foreign(path) for path in out.iterdir())):
                expected = "new or a grid's folder"
                raise InputError(f"expected {out} to be {expected}, got no {GRID} there; choose another --out")
            return self
        stored = Grid.read(out)
        common = stored.experiments.keys() & self.experiments.keys()
        there, here = (grid._deciding(common) for grid in (stored, self))
        require_same_settings(out, there, here, got="a grid of other settings: {}")
        return stored.merge(self)

    def _deciding(self, experiments: Collection[str]) -> dict[str, Any]:
        """Return the settings that decide the results: those of all runs, and those of these experiments."""
        of_all = {name: value for name, value in self.settings.items() if name not in WITHOUT_EFFECT}
        rows = {name: row for name, row in self.experiments.items() if name in experiments}
        return of_all | {f"{key} of {name}": row[key] for name, row in rows.items() for key in ROW_SETTINGS}

    def write(self, out: Path) -> None:
        """Write the grid into its folder, merged with what another process may have stored there."""
        try:
            out.mkdir(parents=True, exist_ok=True)
            with FileLock(out / ".grid.lock"):
                write_json(out / GRID, dataclasses.asdict(self.merge_with_stored(out)))
        except OSError as error:
            reason = error.reason if isinstance(error, NotWritten) else error
            raise InputError(
                f"expected to write results in {out}, got: {reason}; --out names another folder"
            ) from error

    @classmethod
    def read(cls, out: Path) -> "Grid":
        """Return the grid that is stored in a folder of results."""
        try:
            stored = read_json(out / GRID, GridForm, KIND)
        except InputError as error:
            raise InputError(f"expected {KIND} in {out}, got no readable {GRID}: {error}") from error
        fields = {field.name for field in dataclasses.fields(cls)}
        grid = cls(**{name: stored[name] for name in fields})
        grid = dataclasses.replace(grid, settings=in_current_form(grid.settings))
        expected = {field.name for field in dataclasses.fields(Config)} - {*ROW_SETTINGS, "seed"}
        if grid.settings.keys() != expected:
            differ = ", ".join(sorted(grid.settings.keys() ^ expected))
            raise InputError(f"expected the settings of this version in {out / GRID}, got these that differ: {differ}")
        grid._check_rows(out)
        return grid

    def _check_rows(self, out: Path) -> None:
        """Refuse rows of tables that there are not, under other names than theirs, and with impossible settings."""
        unknown = {name for rows in self.tables.values() for name in rows} - self.experiments.keys()
        unknown |= {name for name, row in self.experiments.items() if name != experiment_name(row)}
        if unknown:
            raise InputError(f"expected {KIND} in {out / GRID}, got the name {reprlib.repr(min(unknown))} of no row")
        try:
            self.runs(out)
        except InputError as error:
            raise InputError(f"expected {KIND} in {out / GRID}, got: {reason_of(error)}") from error


def _is_foreign(path: Path) -> bool:
    """Return whether a new folder of results does not hold this: all but hidden files, and other models' metrics."""
    return not path.name.startswith(".") and path.name != OTHERS


def plan(grid: Grid, out: Path) -> str:
    """Return a text with the state of every run, a line for each row, and the counts."""
    runs = grid.runs(out)
    states = {run.name: run.state() for run in runs}
    width = max(len(name) for name in grid.experiments)
    lines = [f"{'experiment':{width}}  table  " + "  ".join(f"{f'seed {seed}':11}" for seed in grid.seeds)]
    for name in grid.experiments:
        tables = ", ".join(table for table, rows in grid.tables.items() if name in rows)
        row_states = "  ".join(f"{states[f'{name}-seed-{seed}']:11}" for seed in grid.seeds)
        lines.append(f"{name:{width}}  {tables:5}  {row_states}".rstrip())
    lines += [f"failed: {run.name}: {run.reason()}" for run in runs if states[run.name] == "failed"]
    return "\n".join([*lines, f"{len(runs)} runs: {count_states(states.values())}"])


def count_states(states: Iterable[State]) -> str:
    """Return the number of each state that occurs, such as "3 done, 1 pending"."""
    listed = list(states)
    return ", ".join(f"{listed.count(state)} {state}" for state in STATES if state in listed)
