"""Losses are fetched, logged, and checked to be finite; every epoch is reported, and drawn in curves."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from runs import at_step, make_nan
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from reference_model.config import Config
from reference_model.evaluation.evaluate import evaluate_run
from reference_model.evaluation.metrics import Metrics, NotFinite
from reference_model.run_folder import Diverged
from reference_model.training import curves
from reference_model.training.checkpoint import Progress
from reference_model.training.monitor import Monitor, summary
from reference_model.training.trainer import train


def add(monitor: Monitor, *losses: float) -> None:
    for loss in losses:
        monitor.progress.step += 1
        monitor.add_loss(torch.tensor(loss))


def test_losses_are_added_up_and_written(config: Config, tmp_path: Path) -> None:
    progress = Progress(epoch=2, step=1, total=4.0)
    monitor = Monitor(config, tmp_path, progress, 5, show_bar=True, is_main=True)
    add(monitor, 2.0, 1.5)
    assert progress.total == 4.0  # nothing is fetched before it is due
    monitor.fetch_losses()
    add(monitor, 1.0)
    monitor.fetch_losses()
    monitor.close()
    assert progress.total == 8.5
    assert monitor.bar.n == 9
    written = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in written] == [(7, 2.0), (8, 1.5), (9, 1.0)]


def test_losses_are_fetched_every_half_second_and_one_that_is_not_finite_is_named(
    config: Config, tmp_path: Path
) -> None:
    """In a process that is not the main one, which writes nothing."""
    progress = Progress(epoch=3, step=1, history=[{"epoch": 1}])
    monitor = Monitor(config, tmp_path, progress, 5, show_bar=True, is_main=False)
    assert not monitor.fetch_is_due()
    monitor.fetched_at -= 0.5
    assert monitor.fetch_is_due()
    add(monitor, 1.0, float("inf"), 1.0)
    with pytest.raises(NotFinite, match="the loss is inf at step 3 of epoch 3"):
        monitor.fetch_losses()
    assert not monitor.fetch_is_due()
    monitor.report_epoch()
    monitor.close()
    assert not list(tmp_path.iterdir())


def test_the_summary_of_an_epoch() -> None:
    recalls: Metrics = {
        "text_to_audio": {"R@1": 1.0, "R@5": 5.25, "R@10": 10},
        "audio_to_text": {"R@1": 2, "R@5": 6, "R@10": 9},
    }
    assert summary(recalls) == "text to audio R@1/5/10 1.0/5.2/10.0; audio to text R@1/5/10 2.0/6.0/9.0"


@pytest.mark.parametrize("epochs_before, kept", [(0, "no epoch was finished"), (1, "the best epoch, 1, is kept")])
def test_a_loss_that_is_not_finite_stops_the_run(config: Config, tmp_path: Path, epochs_before: int, kept: str) -> None:
    run = tmp_path / "run"
    words = f"the loss is nan at step 3 of epoch {epochs_before + 1}; {kept}"
    with at_step(5 * epochs_before + 3, make_nan), pytest.raises(Diverged, match=words):
        train(config, run)
    assert "the loss is nan" in (run / "log.txt").read_text()
    assert not (run / "metrics.json").exists()
    with pytest.raises(Diverged, match=words):
        train(config, run)  # it is not tried again
    if epochs_before:
        assert evaluate_run(run, split="test", data=None)["text_to_audio"]["pool"] == 6
        weights = load_file(run / "best.safetensors").values()
        assert all(value.isfinite().all() for value in weights if value.is_floating_point())


def test_loss_and_recalls_are_drawn_over_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(epoch: int) -> dict[str, Any]:
        recalls = {f"R@{k}": float(k + epoch) for k in (1, 5, 10)}
        return {"epoch": epoch, "loss": 2.0 / epoch, "val": {"text_to_audio": recalls, "audio_to_text": recalls}}

    monkeypatch.setattr(curves, "write_figure", write := Mock())
    curves.plot_curves(tmp_path / "curves.png", [record(1), record(2), record(3)], title="a run")
    loss, recall = write.call_args.args[1].axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2.0], [2, 1.0], [3, 2 / 3]])
    labels = [f"{name} R@{k}" for name in ("Text-to-Audio", "Audio-to-Text") for k in (1, 5, 10)]
    assert [line.get_label() for line in recall.lines] == labels
    np.testing.assert_array_equal(recall.lines[1].get_ydata(), [6, 7, 8])
