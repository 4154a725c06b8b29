"""SIGKILL, SIGTERM, Ctrl-C, a full disk: the same command again ends as if nothing had happened."""

import functools
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from runs import at_step, train_arguments
from torch import Tensor

from reference_model import InputError
from reference_model.config import Config
from reference_model.models import features
from reference_model.paper import PROTOCOLS
from reference_model.runtime.lease import Busy
from reference_model.runtime.signals import EXIT_STOPPED, Stopped
from reference_model.runtime.tensors import save_tensors
from reference_model.training.trainer import train

ROOT = Path(__file__).parents[2]
Undisturbed = Callable[[Config], dict[str, bytes]]
_context = multiprocessing.get_context("forkserver")
# Loading it takes seconds, and no time in each of the processes below.
_context.set_forkserver_preload(["reference_model.training.trainer"])


def started(config: Config, run: Path, **options: Any) -> BaseProcess:
    process = _context.Process(target=train, args=(config, run), kwargs=options)
    process.start()
    return process


def finished(config: Config, run: Path, **options: Any) -> dict[str, bytes]:
    process = started(config, run, **options)
    process.join()
    assert process.exitcode == 0
    return {name: (run / name).read_bytes() for name in ("metrics.json", "best.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What a run ends with that nothing interrupts; of equal settings, one run."""

    @functools.cache
    def of(config: Config) -> dict[str, bytes]:
        return finished(config, tmp_path_factory.mktemp("undisturbed"))

    return of


def kill_after_a_checkpoint(config: Config, run: Path) -> None:
    process = started(config, run, checkpoint_minutes=0)
    while process.is_alive() and not (run / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    process.kill()
    process.join()


@pytest.mark.parametrize("encoders, protocol, kills", [("fine-tuned", "released", 6), ("frozen", "paper", 3)])
def test_killed_at_random_moments(config: Config, tmp_path: Path, encoders: Any, protocol: str, kills: int) -> None:
    """The fine-tuned run has dropout, erased stripes and batch-norm statistics to lose; the frozen one its features."""
    config = replace(config, encoders=encoders, epochs=3, decay_every=2, **PROTOCOLS[protocol])
    expected = finished(config, tmp_path / "whole", features=tmp_path / "features")
    moments, killed = random.Random(0), 0
    for attempt in itertools.count():
        run, kept = tmp_path / f"run-{attempt}", tmp_path / f"features-{attempt}"
        for _ in range(kills):
            # A checkpoint after every step, so that many a kill meets one being written; or every third of a second.
            process = started(config, run, features=kept, checkpoint_minutes=moments.choice([0, 0.005]))
            process.join(moments.uniform(0, 2))
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            if process.exitcode == 0:
                break
        assert finished(config, run, features=kept) == expected
        assert not list(run.glob(".*.part"))  # nothing half-written is left
        if killed >= kills:
            break


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(config: Config, tmp_path: Path, undisturbed: Undisturbed, number: signal.Signals) -> None:
    """The command line leaves a checkpoint of the last step, one line, and the status that says: run me again."""
    run = tmp_path / "run"
    command = [sys.executable, *train_arguments(replace(config, workers=1), run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    while process.poll() is None and not (run / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal and a cluster do: also those that read
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED == 75
    assert errors.splitlines()[-1].endswith("stopped when asked to; the same command continues")
    assert "Traceback" not in errors
    assert not (run / "metrics.json").exists()
    assert "stopped when asked to" in (run / "log.txt").read_text()
    assert finished(config, run) == undisturbed(config)
    assert "continuing after step" in (run / "log.txt").read_text()


def test_asked_while_features_are_computed(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That may take hours; what is kept by then is not computed again."""
    config = replace(config, encoders="frozen")
    monkeypatch.setattr(features, "PART", 8)
    kept: list[Path] = []

    def save(path: Path, *arguments: Any) -> None:
        save_tensors(path, *arguments)
        kept.append(path)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(features, "save_tensors", save)
        with pytest.raises(Stopped):
            train(config, tmp_path / "run", features=tmp_path / "features")
    assert [path.name for path in kept] == ["000000.safetensors"]
    assert "stopped when asked to" in (tmp_path / "run" / "log.txt").read_text()
    modified = kept[0].stat().st_mtime_ns
    metrics = train(config, tmp_path / "run", features=tmp_path / "features")
    assert kept[0].stat().st_mtime_ns == modified
    assert metrics == train(config, tmp_path / "whole", features=tmp_path / "new")


def _train_on_a_full_disk(size: int, config: Config, run: Path) -> None:
    """No file can grow beyond the size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        train(config, run, checkpoint_minutes=0)
    except Exception as error:
        (run / "error.txt").write_text(f"{type(error).__name__}: {error}")


def test_a_full_disk_leaves_the_last_good_state(config: Config, tmp_path: Path, undisturbed: Undisturbed) -> None:
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoint.safetensors"
    kill_after_a_checkpoint(config, run)
    kept = checkpoint.read_bytes()
    process = _context.Process(target=_train_on_a_full_disk, args=(len(kept) // 2, config, run))
    process.start()
    process.join()
    error = (run / "error.txt").read_text()
    assert error.startswith("InputError: expected to write a checkpoint, got: ")
    assert error.endswith("the same command goes on from there")
    assert "\n" not in error
    assert checkpoint.read_bytes() == kept
    assert not list(run.glob(".*.part"))
    (run / "error.txt").unlink()
    assert finished(config, run) == undisturbed(config)


def test_a_run_goes_on_with_its_own_data_wherever_that_is(
    config: Config, corpus: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    run = tmp_path / "run"
    kill_after_a_checkpoint(config, run)
    moved = shutil.copytree(corpus, tmp_path / "moved")
    table = moved / "Synthetic" / "csv_files" / "val.csv"
    text = table.read_text()
    table.write_text(text.replace("low", "deep", 1))
    with pytest.raises(InputError, match=r"expected the clips and captions that .* was trained on so far, got others"):
        train(replace(config, data=str(moved)), run)
    table.write_text(text)
    moved_run, whole = finished(replace(config, data=str(moved)), run), undisturbed(config)
    theirs, ours = (json.loads(files["metrics.json"]) for files in (moved_run, whole))
    assert {**theirs, "config": None} == {**ours, "config": None}


def test_a_run_that_was_taken_over_is_left_alone(config: Config, tmp_path: Path) -> None:
    """As after a suspension that lasted longer than the lease."""
    run, taken = tmp_path / "run", tmp_path / "taken"

    def take_over(x: Tensor) -> Tensor:
        (run / ".lock").unlink()
        (run / ".lock").write_text("of another process")
        shutil.copytree(run, taken, ignore=shutil.ignore_patterns("log.txt", "tensorboard"))
        return x

    frozen = replace(config, encoders="frozen")
    with at_step(4, take_over), pytest.raises(Busy, match="got it taken over while this process was suspended"):
        train(frozen, run, features=tmp_path / "features", checkpoint_minutes=0)
    assert {"checkpoint.safetensors", "frozen.safetensors"} <= {path.name for path in taken.iterdir()}
    for path in taken.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (run / path.relative_to(taken)).read_bytes()
    assert "taken over" in (run / "log.txt").read_text()
    assert not (run / "metrics.json").exists()


def test_the_reader_of_the_output_goes_away(config: Config, tmp_path: Path) -> None:
    """As with ``2>&1 | tee log`` and Ctrl-C, which ends tee as well: the state is saved as after any stop."""
    config, run = replace(config, epochs=60), tmp_path / "run"
    reader, writer = os.pipe()
    command = [sys.executable, *train_arguments(config, run)]
    process = subprocess.Popen(command, stdout=writer, stderr=writer, cwd=ROOT)
    os.close(writer)
    while process.poll() is None and not (run / "best.safetensors").exists():
        os.read(reader, 4096)
    os.close(reader)
    time.sleep(0.5)  # the bar meets the closed pipe before the signal comes
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == EXIT_STOPPED
    assert "stopped when asked to" in (run / "log.txt").read_text()
    assert (run / "checkpoint.safetensors").exists()
