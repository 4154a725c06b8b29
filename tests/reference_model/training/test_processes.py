"""A run divided among processes, as torchrun starts them: the numbers of one process."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import train_arguments
from safetensors.torch import load_file

from reference_model.config import Config
from reference_model.run_folder import stored_metrics
from reference_model.training.trainer import train


def launched(processes: int, config: Config, run: Path, *options: str) -> dict[str, Any]:
    """The metrics of ``torchrun --nproc-per-node PROCESSES -m reference_model train``."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launch, *train_arguments(config, run), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert f", {processes} processes" in (run / "log.txt").read_text()
    return stored_metrics(run)


@pytest.mark.parametrize("loss", ["nt_xent", "triplet_max"])
def test_two_processes_give_the_numbers_of_one(loss: str, config: Config, tmp_path: Path) -> None:
    """With frozen encoders a step is the same up to rounding, however the batch is divided; an odd one too."""
    config = replace(config, loss=loss, encoders="frozen", batch_size=15)
    one, two = train(config, tmp_path / "one"), launched(2, config, tmp_path / "two")
    for alone, together in zip(one["history"], two["history"], strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["val"] == alone["val"]
    assert (two["test"], two["best_epoch"]) == (one["test"], one["best_epoch"])
    first, second = (load_file(tmp_path / run / "best.safetensors") for run in ("one", "two"))
    torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-4)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_fine_tuning_on_two_processes(config: Config, tmp_path: Path) -> None:
    """Dropout differs from process to process, and so does batch-norm on a CPU: no more than a run that works."""
    metrics = launched(2, replace(config, epochs=1), tmp_path / "run", "--gradient-cache-micro-batch", "3")
    assert metrics["config"]["gradient_cache_micro_batch"] == 3
    assert 0 < metrics["history"][0]["loss"] < 10


@pytest.mark.parametrize("encoders, part", [("frozen", 16), ("fine-tuned", 16), ("frozen", 5)])
def test_a_gradient_cache_changes_nothing(encoders: Any, part: int, config: Config, tmp_path: Path) -> None:
    """Of the whole batch with any encoders, of parts with frozen ones."""
    config = replace(config, encoders=encoders)
    plain = train(config, tmp_path / "plain")
    cached = train(replace(config, gradient_cache_micro_batch=part), tmp_path / "cached")
    for without, with_cache in zip(plain["history"], cached["history"], strict=True):
        assert with_cache["loss"] == pytest.approx(without["loss"], rel=1e-5)
    assert cached["test"] == plain["test"]
