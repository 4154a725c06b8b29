"""The grid has every run that the tables need, shows the state of each, and estimates what they cost."""

import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grids import settings
from locks import held

from reference_model import InputError
from reference_model.config import Config
from reference_model.paper import LOSS_NAMES, PROTOCOLS, experiments, select_rows
from reference_model.reproduction import cost
from reference_model.reproduction.grid import Grid, Run, count_states, plan
from reference_model.runtime import lease
from reference_model.runtime.files import write_json
from reference_model.runtime.signals import Stopped, handle_signals, request_stop


@pytest.fixture
def grid(config: Config) -> Grid:
    return Grid.from_rows(select_rows(("1", "2")), (2, 0, 1, 0), settings(config) | {"clip_seconds": None})


def test_rows_that_stand_in_both_tables_are_run_once_and_all_before_the_next_seed(grid: Grid, tmp_path: Path) -> None:
    assert {table: len(rows) for table, rows in grid.tables.items()} == {"1": 16, "2": 8}
    runs = grid.runs(tmp_path)
    assert len(runs) == (16 + 8 - 4) * 3
    assert len({run.folder for run in runs}) == len(runs)
    assert [run.config.seed for run in runs] == [0] * 20 + [1] * 20 + [2] * 20
    assert {run.experiment for run in runs} == set(experiments())
    assert set(grid.tables["1"]) & set(grid.tables["2"]) == set(grid.tables["2"][:4])


def test_a_run_is_what_its_row_says(grid: Grid, tmp_path: Path) -> None:
    runs = {run.name: run for run in grid.runs(tmp_path)}
    config = runs["clotho-fine-tuned-triplet_max-seed-1"].config
    assert (config.dataset, config.encoders, config.loss) == ("Clotho", "fine-tuned", "triplet_max")
    assert (config.batch_size, config.learning_rate, config.seed, config.clip_seconds) == (24, 5e-5, 1, 30.0)
    config = runs["audiocaps-frozen-nt_xent-batch-128-seed-0"].config
    assert (config.batch_size, config.learning_rate, config.clip_seconds) == (128, 1e-4, 10.0)
    assert runs["clotho-frozen-nt_xent-seed-2"].folder == tmp_path / "runs" / "clotho-frozen-nt_xent-seed-2"


def test_a_data_set_that_is_named_twice_is_one_and_capitals_alone_make_no_other(config: Config) -> None:
    chosen: dict[str, Any] = {"encoders": ["frozen"], "losses": ["nt_xent"]}
    grid = Grid.from_rows(select_rows(("1",), datasets=("Mine", "Mine"), **chosen), (0,), settings(config))
    assert grid.tables == {"1": ["mine-frozen-nt_xent"]}
    with pytest.raises(InputError, match="whose names differ in more than capitals, got Mine and mine"):
        Grid.from_rows(select_rows(("1",), datasets=("Mine", "mine"), **chosen), (0,), settings(config))


def test_rows_are_chosen() -> None:
    rows = select_rows(("1",), datasets=("Clotho",), encoders=("frozen",), losses=("nt_xent", "triplet_max"))
    assert [(row["dataset"], row["encoders"], row["loss"]) for row in rows["1"]] == [
        ("Clotho", "frozen", "triplet_max"), ("Clotho", "frozen", "nt_xent"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="expected rows of table 2, got none of these data sets"):
        select_rows(("1", "2"), datasets=("Clotho",))


def test_another_data_set_takes_the_rows_of_audiocaps() -> None:
    rows = select_rows(("1", "2"), datasets=("Mine",))
    assert len(rows["1"]) == len(rows["2"]) == 8
    for table in ("1", "2"):
        for mine, row in zip(rows[table], select_rows((table,), datasets=("AudioCaps",))[table], strict=True):
            assert mine == {**row, "dataset": "Mine"}


def test_a_grid_is_stored_and_grows(config: Config, tmp_path: Path) -> None:
    first = Grid.from_rows(select_rows(("1",), datasets=("Clotho",), losses=("nt_xent",)), (1,), settings(config))
    first.write(tmp_path / "out")
    assert Grid.read(tmp_path / "out") == first
    second = Grid.from_rows(select_rows(("2",)), (0,), settings(replace(config, data="elsewhere", workers=7)))
    joined = second.merge_with_stored(tmp_path / "out")
    assert joined.seeds == [0, 1]
    assert joined.tables == {**first.tables, **second.tables}
    assert joined.experiments == {**first.experiments, **second.experiments}
    assert joined.settings["workers"] == 7
    joined.write(tmp_path / "out")
    assert Grid.read(tmp_path / "out") == joined


def test_a_grid_in_the_older_form_is_read_and_grows(config: Config, tmp_path: Path) -> None:
    """The protocol was nested then, and the decay factor was a setting; so was one of NT-Xent alone."""
    grid = Grid.from_rows(select_rows(("1",)), (0,), {**settings(config), **PROTOCOLS["released"]})
    grid.write(tmp_path)
    stored = json.loads((tmp_path / "grid.json").read_text())
    stored["settings"]["protocol"] = {name: stored["settings"].pop(name) for name in PROTOCOLS["paper"]}
    del stored["settings"]["protocol"]["direction_weights"]
    stored["settings"]["protocol"]["nt_xent_factor"] = 0.5
    stored["settings"]["decay_factor"] = 0.1
    (tmp_path / "grid.json").write_text(json.dumps(stored))
    assert Grid.read(tmp_path) == grid
    weights = {run.config.loss: run.config.direction_weights for run in Grid.read(tmp_path).runs(tmp_path)}
    assert weights == {name: (0.5, 0.5) if name == "nt_xent" else (1, 1) for name in LOSS_NAMES}
    other = Grid.from_rows(select_rows(("2",)), (1,), grid.settings)
    assert other.merge_with_stored(tmp_path).settings == grid.settings


def test_a_grid_of_other_settings_is_refused(config: Config, tmp_path: Path) -> None:
    rows = select_rows(("1",))
    Grid.from_rows(rows, (0,), settings(config)).write(tmp_path)
    faster = {"1": [{**row, "learning_rate": 1e-3} for row in rows["1"]]}
    changes: list[tuple[Any, dict[str, Any], str]] = [
        (rows, {"epochs": 7}, "epochs 2 there, 7 here"),
        (rows, {"precision": "bf16"}, "precision no there, bf16 here"),
        (rows, PROTOCOLS["released"], "frozen_mode eval there, train here; spec_augment False there"),
        (
            rows,
            {"model": "full", "audio_checkpoint": "a", "text_encoder": "b"},
            "model tiny there, full here; audio_checkp",
        ),
        (faster, {}, r"learning_rate of audiocaps-frozen-triplet_sum 0\.0001 there, 0\.001 here"),
    ]
    for others, change, words in changes:
        other = Grid.from_rows(others, (0,), settings(replace(config, **change)))
        with pytest.raises(InputError, match=f"expected .* of these settings, got .*{words}.*choose another --out"):
            other.merge_with_stored(tmp_path)


def test_a_folder_of_something_else_is_refused(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"expected .* to be new or a grid's folder, got no grid\.json there"):
        grid.merge_with_stored(tmp_path)
    with pytest.raises(InputError, match=r"expected results of reproduce in .*, got no readable grid\.json"):
        Grid.read(tmp_path)
    grid.write(tmp_path / "other")
    stored = json.loads((tmp_path / "other" / "grid.json").read_text())
    stored["settings"]["colour"] = stored["settings"].pop("epochs")
    (tmp_path / "other" / "grid.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"expected the settings of this version in .*, got .* differ: colour, epochs"):
        Grid.read(tmp_path / "other")
    (tmp_path / "grid.json").write_text('{"tables": ')
    with pytest.raises(InputError, match=r"got no readable grid\.json"):
        Grid.read(tmp_path)


def test_the_states_of_a_run(grid: Grid, tmp_path: Path) -> None:
    run = grid.runs(tmp_path)[0]
    assert (run.state(), run.finished()) == ("pending", False)
    run.folder.mkdir(parents=True)
    assert run.state() == "pending"
    write_json(run.folder / "config.json", {})
    assert (run.state(), run.finished()) == ("interrupted", False)
    run.record_failure(ValueError("no\nmemory"))
    assert (run.state(), run.finished(), run.reason()) == ("failed", True, "no memory")
    with held(run.folder):
        assert run.state() == "running"
    assert run.state() == "failed"
    write_json(run.folder / "diverged.json", {})
    assert (run.state(), run.finished()) == ("diverged", True)
    write_json(run.folder / "metrics.json", {})
    assert (run.state(), run.finished()) == ("done", True)


def test_the_plan_shows_all_of_them(grid: Grid, tmp_path: Path) -> None:
    runs = {run.name: run for run in grid.runs(tmp_path)}
    for seed, file in ((1, "metrics.json"), (2, "config.json")):
        folder = runs[f"clotho-frozen-nt_xent-seed-{seed}"].folder
        folder.mkdir(parents=True)
        write_json(folder / file, {})
    runs["audiocaps-frozen-nt_xent-seed-0"].record_failure("the disk is full")
    lines = plan(grid, tmp_path).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["experiment"] == ["table", "seed", "0", "seed", "1", "seed", "2"]
    assert rows["clotho-frozen-nt_xent"] == ["1", "pending", "done", "interrupted"]
    assert rows["audiocaps-frozen-nt_xent"] == ["1,", "2", "failed", "pending", "pending"]
    assert lines[-2] == "failed: audiocaps-frozen-nt_xent-seed-0: the disk is full"
    assert lines[-1] == "60 runs: 1 done, 1 failed, 1 interrupted, 57 pending"
    assert count_states([]) == ""


def test_a_run_of_a_machine_that_went_away_is_shown_as_interrupted(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that looks for the first time already sees it, by the age of the lock."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    run = grid.runs(tmp_path)[0]
    run.folder.mkdir(parents=True)
    write_json(run.folder / "config.json", {})
    with held(run.folder, "elsewhere", "1.0") as process:
        assert run.state() == "running"
        process.kill()
    os.utime(run.folder / ".lock", (time.time() - 10, time.time() - 10))
    (tmp_path / "link").symlink_to(run.folder, target_is_directory=True)  # a folder that was not looked at before
    assert replace(run, folder=tmp_path / "link").state() == "interrupted"


def test_estimates_follow_from_the_settings(config: Config) -> None:
    """Ten times the epochs take more seconds; losses and seeds are measured once."""
    frozen = replace(config, encoders="frozen")
    longer, other = replace(frozen, epochs=20), replace(frozen, loss="triplet_max", seed=3)
    costs = cost.measure_costs([frozen, longer, other, config])
    assert costs[frozen] is costs[other]
    assert costs[longer].seconds > 3 * costs[frozen].seconds
    assert costs[frozen].features_seconds > 0 == costs[config].features_seconds
    assert costs[config].gigabytes == pytest.approx(costs[frozen].gigabytes)
    assert costs[config].temporary_gigabytes > costs[frozen].temporary_gigabytes > 0


def test_the_cost_in_words(config: Config, tmp_path: Path) -> None:
    rows = select_rows(("1",), datasets=("Synthetic",), encoders=("frozen",))
    runs = Grid.from_rows(rows, (0, 1), settings(config)).runs(tmp_path)
    for run in runs:
        run.record_failure("enough")
    assert cost.estimate(runs, jobs=1, out=tmp_path) == "nothing is left to train"
    assert [cost.duration(seconds) for seconds in (59, 60, 720, 12600)] == [
        "less than a minute", "about 1.0 minutes", "about 12.0 minutes", "about 3.5 hours",
    ]  # fmt: skip


@pytest.fixture
def runs(config: Config, tmp_path: Path) -> list[Run]:
    rows = select_rows(("1",), datasets=("Synthetic",), encoders=("frozen",), losses=("nt_xent",))
    return Grid.from_rows(rows, (0,), settings(config)).runs(tmp_path)


def test_an_estimate_whose_process_is_killed_decides_nothing(runs: list[Run], tmp_path: Path) -> None:
    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    (thread := threading.Thread(target=kill)).start()
    shown = cost.estimate(runs, jobs=1, out=tmp_path)
    thread.join()
    words = (
        "1 to train: hours and disk space are unknown, because measuring them failed: its process was ended by SIGKILL"
    )
    assert shown == f"{words}, as the system does when memory runs out"


def test_an_estimate_ends_with_a_request_to_stop(runs: list[Run], tmp_path: Path) -> None:
    with handle_signals():
        request_stop()
        with pytest.raises(Stopped):
            cost.estimate(runs, jobs=1, out=tmp_path)
    assert not multiprocessing.active_children()


def test_wrong_input_is_refused_by_the_estimate_and_other_errors_are_said(runs: list[Run], tmp_path: Path) -> None:
    """No memory holds a batch of that size."""
    with pytest.raises(InputError, match="expected a PANNs checkpoint at nowhere"):
        cost.estimate(
            [replace(runs[0], config=replace(runs[0].config, audio_checkpoint="nowhere"))], jobs=1, out=tmp_path
        )
    huge = replace(runs[0], config=replace(runs[0].config, batch_size=2**40))
    shown = cost.estimate([huge], jobs=1, out=tmp_path)
    assert shown.startswith("1 to train: hours and disk space are unknown, because measuring them failed: RuntimeError")
    assert "\n" not in shown
