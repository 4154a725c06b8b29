"""The runs that the paper's tables need: which there are, in what state each is, what they will cost.

A row that stands in two tables is run once. The folder of the results holds grid.json, which says what belongs to the
tables, runs/NAME-seed-N for every run, and failed/NAME-seed-N.json for those that ended in an error.
"""

import dataclasses
import json
import socket
import time
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock

from reference_model import InputError
from reference_model.config import WITHOUT_EFFECT, Config, in_current_form
from reference_model.data.layouts import clip_seconds
from reference_model.paper import ROW_SETTINGS, Experiment, experiment_name
from reference_model.run_folder import CONFIG, DIVERGED, METRICS
from reference_model.runtime import lease
from reference_model.runtime.files import require_same_settings, write_json
from reference_model.runtime.lease import lock_holder, seconds_since_heartbeat

GRID = "grid.json"
State = Literal["done", "diverged", "failed", "running", "interrupted", "left"]
STATES: tuple[State, ...] = get_args(State)
SETTLED: tuple[State, ...] = ("done", "diverged", "failed")


@dataclass(frozen=True)
class Run:
    """One row of the tables with one seed."""

    experiment: str
    config: Config
    folder: Path
    failure: Path  # where its error is recorded, if it ended in one

    @property
    def name(self) -> str:
        return self.folder.name

    def state(self) -> State:
        """As the files say now."""
        if (self.folder / METRICS).exists():
            return "done"
        if (self.folder / DIVERGED).exists():
            return "diverged"
        if lock_holder(self.folder) is not None and seconds_since_heartbeat(self.folder) < 2 * lease.LEASE_SECONDS:
            return "running"
        if self.failure.exists():
            return "failed"
        return "interrupted" if (self.folder / CONFIG).exists() else "left"

    def settled(self) -> bool:
        """Whether there is nothing left to do; without asking who is at work."""
        return any(path.exists() for path in (self.folder / METRICS, self.folder / DIVERGED, self.failure))

    def record_failure(self, error: BaseException | str) -> None:
        """Why it ended, for people, and where in the code, for those who mend it."""
        lines = [] if isinstance(error, str) else traceback.format_exception(error)
        reason = error if isinstance(error, str) else str(error).strip() or type(error).__name__
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        record = {"reason": reason, "when": when, "machine": socket.gethostname(), "traceback": "".join(lines)}
        write_json(self.failure, record)

    def reason(self) -> str:
        """Why it failed, in one line."""
        lines = json.loads(self.failure.read_text(encoding="utf-8"))["reason"].splitlines()
        return " ".join(lines[:2])


@dataclass(frozen=True)
class Grid:
    """What the tables are made of."""

    tables: dict[str, list[str]]  # number to the names of its rows
    experiments: dict[str, Experiment]  # name to what a row says
    seeds: list[int]
    settings: dict[str, Any]  # of all runs: what Config has beside the row and the seed

    @classmethod
    def of(cls, rows: Mapping[str, Iterable[Experiment]], seeds: Sequence[int], settings: dict[str, Any]) -> "Grid":
        """Of rows as :func:`reference_model.paper.select_rows` returns them."""
        tables = {table: [experiment_name(row) for row in of_table] for table, of_table in rows.items()}
        named = {experiment_name(row): row for of_table in rows.values() for row in of_table}
        return cls(tables, named, sorted(set(seeds)), settings)

    def runs(self, out: Path) -> list[Run]:
        """Every run once: all rows with the first seed, then with the next, so that tables are soon whole."""
        return [
            Run(name, self._config(row, seed), out / "runs" / run, out / "failed" / f"{run}.json")
            for seed in self.seeds
            for name, row in self.experiments.items()
            for run in [f"{name}-seed-{seed}"]
        ]

    def _config(self, row: Experiment, seed: int) -> Config:
        fixed = {"clip_seconds": clip_seconds(row["dataset"], self.settings["clip_seconds"])}
        return Config(**{**self.settings, **row, **fixed, "seed": seed})

    def joined(self, other: "Grid") -> "Grid":
        """The tables, rows and seeds of both, with the settings of the other."""
        tables = {
            table: list(dict.fromkeys([*self.tables.get(table, []), *other.tables.get(table, [])]))
            for table in sorted({*self.tables, *other.tables})
        }
        experiments = {**self.experiments, **other.experiments}
        return Grid(tables, experiments, sorted({*self.seeds, *other.seeds}), other.settings)

    def with_those_of(self, out: Path) -> "Grid":
        """This grid, and what the folder already holds.

        Raises:
            InputError: it holds a grid of other settings, or something else.
        """
        if not (out / GRID).exists():
            if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
                raise InputError(
                    f"expected {out} to be new or a grid's folder, got no {GRID} there; choose another --out"
                )
            return self
        stored = Grid.read(out)
        common = stored.experiments.keys() & self.experiments.keys()
        there, here = stored._deciding(common), self._deciding(common)
        require_same_settings(out, there, here, got="a grid of other settings: {}")
        return stored.joined(self)

    def _deciding(self, experiments: Collection[str]) -> dict[str, Any]:
        """Return the settings that decide the results: those of all runs, and those of these experiments."""
        of_all = {name: value for name, value in self.settings.items() if name not in WITHOUT_EFFECT}
        of_rows = {
            f"{setting} of {name}": row[setting]
            for name, row in self.experiments.items()
            if name in experiments
            for setting in ROW_SETTINGS
        }
        return of_all | of_rows

    def write(self, out: Path) -> None:
        """Into its folder, with what others have put there in the meantime."""
        try:
            out.mkdir(parents=True, exist_ok=True)
            with FileLock(out / ".grid.lock"):
                write_json(out / GRID, dataclasses.asdict(self.with_those_of(out)))
        except OSError as error:
            raise InputError(f"expected to write results in {out}, got: {error}; --out names another folder") from error

    @classmethod
    def read(cls, out: Path) -> "Grid":
        """The grid of a folder of results.

        Raises:
            InputError: there is none.
        """
        try:
            grid = cls(**json.loads((out / GRID).read_text(encoding="utf-8")))
            grid = dataclasses.replace(grid, settings=in_current_form(grid.settings))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"expected results of reproduce in {out}, got no readable {GRID}: {error}") from error
        expected = {field.name for field in dataclasses.fields(Config)} - {*ROW_SETTINGS, "seed"}
        if grid.settings.keys() != expected:
            differ = ", ".join(sorted(grid.settings.keys() ^ expected))
            raise InputError(f"expected the settings of this version in {out / GRID}, got these that differ: {differ}")
        return grid


def plan(grid: Grid, out: Path) -> str:
    """Every row with the state of its runs, and the counts, for people."""
    runs = grid.runs(out)
    states = {run.name: run.state() for run in runs}
    width = max(len(name) for name in grid.experiments)
    lines = [f"{'experiment':{width}}  table  " + "  ".join(f"{f'seed {seed}':11}" for seed in grid.seeds)]
    for name in grid.experiments:
        tables = ", ".join(table for table, rows in grid.tables.items() if name in rows)
        of_seeds = "  ".join(f"{states[f'{name}-seed-{seed}']:11}" for seed in grid.seeds)
        lines.append(f"{name:{width}}  {tables:5}  {of_seeds}".rstrip())
    lines += [f"failed: {run.name}: {run.reason()}" for run in runs if states[run.name] == "failed"]
    return "\n".join([*lines, f"{len(runs)} runs: {counts(states.values())}"])


def counts(states: Iterable[State]) -> str:
    """How many there are of each state, those that occur."""
    listed = list(states)
    return ", ".join(f"{listed.count(state)} {state}" for state in STATES if state in listed)
