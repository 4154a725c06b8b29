"""Every run of a grid is submitted once, although others train some, jobs die, and the command is stopped."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from grids import settings
from light_jobs import begun, use_light_jobs
from locks import held

from reference_model import InputError
from reference_model.config import Config
from reference_model.models import hugging_face_audio, text
from reference_model.paper import select_rows
from reference_model.reproduction import schedule
from reference_model.reproduction.grid import Grid, Run
from reference_model.reproduction.launchers import Ended
from reference_model.reproduction.local_jobs import LocalLauncher
from reference_model.reproduction.schedule import check_before_training, check_encoders, train_all
from reference_model.runtime import lease
from reference_model.runtime.files import write_json
from reference_model.runtime.signals import Stopped, request_stop


@pytest.fixture
def runs(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Four losses with frozen encoders and two seeds."""
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.01)
    rows = select_rows(("1",), datasets=("Synthetic",), encoders=("frozen",))
    return Grid.from_rows(rows, (0, 1), settings(config)).runs(tmp_path / "results")


def finish(run: Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / "metrics.json", {})


class Script:
    """A launcher whose jobs end at once: each finishes its run, or ends as it is told to, one after the other."""

    def __init__(self, ends: dict[str, list[Ended]], jobs: int = 2, *, adopted: Sequence[Run] = ()) -> None:
        self.ends, self.jobs, self.adopted = ends, jobs, list(adopted)
        self.at_work: dict[str, Run] = {}
        self.order: list[str] = []
        self.closed = False

    def adopt(self, runs: Sequence[Run]) -> list[Run]:
        self.at_work |= {run.name: run for run in self.adopted}
        return [run for run in runs if run not in self.adopted]

    def room(self) -> int:
        return self.jobs - len(self.at_work)

    def submit(self, runs: Sequence[Run]) -> None:
        self.at_work |= {run.name: run for run in runs}
        self.order += [run.name for run in runs]
        assert len(self.at_work) <= self.jobs

    def ended(self) -> Iterator[Ended]:
        for name, run in list(self.at_work.items()):
            del self.at_work[name]
            if self.ends.get(name):
                yield self.ends[name].pop(0)
            else:
                finish(run)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.closed = True


def test_pending_runs_are_submitted_in_order(runs: list[Run]) -> None:
    finish(runs[1])
    runs[2].record_failure("before")
    launcher, on_finished = Script({}, adopted=[runs[3]]), Mock()
    train_all(runs, launcher, on_finished=on_finished)
    assert launcher.order == [run.name for k, run in enumerate(runs) if k not in (1, 2, 3)]
    assert launcher.closed
    assert [run.state() for run in runs] == ["done", "done", "failed", *["done"] * 5]
    assert 2 <= on_finished.call_count <= 6  # whenever runs are finished, not for those that were before
    train_all(runs, again := Script({}), on_finished=on_finished)
    assert again.order == []


def test_the_run_of_a_job_that_dies_has_failed_and_the_others_go_on(
    runs: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {runs[0].name: [Ended(runs[0], "ended by SIGSEGV", "Fatal\nlast words")], runs[1].name: [Ended(runs[1])]}
    ends[runs[2].name] = [Ended(runs[2], again=True), Ended(runs[2], again=True)]
    train_all(runs, launcher := Script(ends), on_finished=Mock())
    assert [run.state() for run in runs] == ["failed", "pending", *["done"] * 6]
    assert runs[0].reason() == "ended by SIGSEGV"
    assert "last words" in runs[0].failure_file.read_text()
    assert [launcher.order.count(run.name) for run in runs] == [1, 1, 3, 1, 1, 1, 1, 1]  # not one that was cancelled
    assert f"failed: {runs[0].name}: ended by SIGSEGV" in capsys.readouterr().out


def test_a_run_of_another_process_is_left_to_it(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the lock of a dead process would have expired; when it is free again before, the run is trained."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)
    for run in runs[:6]:
        finish(run)
    with held(runs[6].folder, os.uname().nodename, "0.6") as process:
        began = time.monotonic()
        train_all(runs, launcher := Script({}), on_finished=Mock())
        assert time.monotonic() - began >= 0.8
        assert launcher.order == [runs[7].name]
        assert not runs[6].finished()
        process.kill()
        process.wait()
        train_all(runs, launcher, on_finished=Mock())
    assert launcher.order == [runs[7].name, runs[6].name]


def test_a_stop_leaves_runs_pending_and_closes_the_launcher(runs: list[Run]) -> None:
    launcher = Script({}, jobs=1)
    with pytest.raises(Stopped):
        train_all(runs, launcher, on_finished=request_stop)
    assert launcher.closed
    assert [run.state() for run in runs] == ["done", *["pending"] * 7]


def test_new_lines_of_the_logs_are_shown(runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    for run in runs[:2]:
        run.folder.mkdir(parents=True)
    (runs[0].folder / "log.txt").write_text("of an earlier command\n")

    def write() -> None:
        if (runs[1].folder / "log.txt").exists():
            return
        with (runs[0].folder / "log.txt").open("a") as log:
            log.write("epoch 1\nepoch 2\nhalf a li")
        (runs[1].folder / "log.txt").write_text("the other run\n")

    train_all(runs, Script({}, jobs=1), on_finished=write)
    assert capsys.readouterr().out == "epoch 1\nepoch 2\nthe other run\n"


def test_runs_of_other_settings_are_refused(runs: list[Run]) -> None:
    run = runs[3]
    run.folder.mkdir(parents=True)
    write_json(run.folder / "config.json", replace(run.config, epochs=9).as_dict())
    with pytest.raises(InputError, match=r"expected .*nt_xent-seed-0 to be of these settings, got others in epochs"):
        check_before_training(runs)


def test_each_published_encoder_is_loaded_once_before_training(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of runs that will be trained: later one is done, and two have failed. Clips of each length are tried."""
    monkeypatch.setattr(hugging_face_audio, "published", audio := Mock())
    monkeypatch.setattr(text, "published", words := Mock())
    check_encoders(runs, retry_failed=False)
    audio.assert_not_called()  # the small encoders begin with new weights
    words.assert_not_called()
    published: dict[str, Any] = {"audio_encoder": "some/audio", "text_encoder": "some/text"}
    runs = [replace(run, config=replace(run.config, **published)) for run in runs]
    runs[4] = replace(runs[4], config=replace(runs[4].config, clip_seconds=9.0))
    check_encoders(runs, retry_failed=False)
    assert [call.kwargs["clip_seconds"] for call in audio.call_args_list] == [0.5, 9.0]
    words.assert_called_once()
    finish(runs[0])
    for run in runs[1:3]:
        run.record_failure("it is not there")
    words.reset_mock()
    check_encoders(runs[:3], retry_failed=False)
    words.assert_not_called()
    words.side_effect = InputError("not there yet")
    with pytest.raises(InputError, match="not there yet"):
        check_encoders(runs[:3], retry_failed=True)


def test_with_jobs_in_processes(runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at a time; one is killed, and one finds another process at its run, the first time."""
    use_light_jobs(monkeypatch, {runs[0].name: "die", runs[1].name: "leave"})
    launcher = LocalLauncher(tmp_path / "results", 2, features=None, checkpoint_minutes=1.0)
    train_all(runs[:4], launcher, on_finished=Mock())
    assert [run.state() for run in runs[:4]] == ["failed", "done", "done", "done"]
    assert "as by SIGKILL when memory runs out" in runs[0].reason()
    assert [len(begun(run)) for run in runs[:4]] == [1, 2, 1, 1]
    assert not list((tmp_path / "results" / "jobs").iterdir())
