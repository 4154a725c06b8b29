"""A job trains one run, records its error, and holds nothing but texts, numbers and paths."""

import itertools
import json
import pickle
import pickletools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path, PosixPath
from queue import Queue
from typing import Any

import pytest
import torch
from submitit.helpers import DelayedSubmission

from reference_model.config import Config
from reference_model.reproduction.grid import Run
from reference_model.reproduction.job import TrainRun
from reference_model.runtime import children
from reference_model.runtime.lease import lock_folder
from reference_model.runtime.signals import EXIT_STOPPED
from reference_model.training import trainer
from reference_model.training.trainer import train


@pytest.fixture
def run(config: Config, tmp_path: Path) -> Run:
    config = replace(config, encoders="frozen", epochs=1)
    return Run("experiment", config, tmp_path / "run", tmp_path / "failed" / "run.json")


def job(run: Run, **options: Any) -> TrainRun:
    return TrainRun.of(run, **{"features": None, "checkpoint_minutes": 1.0, **options})


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Jobs change the threads and the environment of their process."""
    before = torch.get_num_threads()
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield
    torch.set_num_threads(before)


def test_a_job_trains_its_run(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As train does, with its share of the cores, and without a bar in its log."""
    torch.set_num_threads(4)
    job(run, shared_by=2, features=tmp_path / "features")()
    assert torch.get_num_threads() == 2
    assert "step/s" not in capfd.readouterr().err
    assert run.state() == "done"
    trained = train(run.config, tmp_path / "other", features=tmp_path / "features")
    assert json.loads((run.folder / "metrics.json").read_text()) == trained


@pytest.mark.parametrize("error", [MemoryError("no more"), ValueError("two\nlines")])
def test_an_error_is_recorded(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(trainer, "train", fail)
    job(run)()
    assert run.state() == "failed"
    assert run.reason() == " ".join(str(error).splitlines())
    assert "in fail" in json.loads(run.failure_file.read_text())["traceback"]
    monkeypatch.setattr(trainer, "train", lambda *_, **__: pytest.fail("expected a failed run to be left alone"))
    job(run)()


def test_a_run_that_another_process_trains_is_left_to_it(run: Run) -> None:
    run.folder.mkdir()
    with lock_folder(run.folder):
        job(run)()
    assert run.state() == "pending"


def test_a_job_stops_when_the_lock_of_its_command_is_free(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a minute; a process that has not ended by then is ended."""
    monkeypatch.setattr(children, "POLL_SECONDS", 0.001)
    monkeypatch.setattr("reference_model.reproduction.job.SECONDS_TO_STOP", 0.2)
    ended: Queue[int] = Queue()
    monkeypatch.setattr("os._exit", ended.put)
    long = replace(run, config=replace(run.config, epochs=100_000))
    job(long, command=tmp_path / "command.lock")()
    assert not long.finished()
    assert "stopped when asked to" in (run.folder / "log.txt").read_text()
    assert ended.get(timeout=60) == EXIT_STOPPED


def test_a_job_holds_texts_numbers_and_paths(run: Run, tmp_path: Path) -> None:
    given = job(run, environment={"CUDA_VISIBLE_DEVICES": None}, command=Path("lock"))
    DelayedSubmission(given).dump(tmp_path / "job")
    stored = (tmp_path / "job").read_bytes()
    texts = [value for code, value, _ in pickletools.genops(stored) if code.name in ("SHORT_BINUNICODE", "BINUNICODE")]
    names = {f"{module}.{name}" for module, name in itertools.pairwise(texts)}
    assert sum(code.name == "STACK_GLOBAL" for code, _, _ in pickletools.genops(stored)) == 3
    assert names >= {f"{each.__module__}.{each.__qualname__}" for each in (DelayedSubmission, TrainRun, PosixPath)}
    again = pickle.loads(stored).function
    assert again == given
    assert again.checkpoint().function is again  # what is put back into the queue is the same job


def test_a_process_that_reads_a_job_imports_nothing_large() -> None:
    """So its signals and variables are set before."""
    code = "import sys, reference_model.reproduction.job; print({'torch', 'tqdm', 'transformers'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=Path(__file__).parents[3]) == "set()\n"
