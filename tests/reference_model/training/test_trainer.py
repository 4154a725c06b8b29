"""A run from files to metrics: what it refuses and leaves, which epoch is kept, its steps, its processes."""

import itertools
import json
import math
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import soundfile
import torch
from runs import train_arguments
from safetensors.torch import load_file

from crossmodal_losses import LOSSES
from reference_model import InputError
from reference_model.config import Config
from reference_model.evaluation.evaluate import evaluate_run
from reference_model.evaluation.metrics import NotFinite, split_metrics
from reference_model.models import dual_encoder
from reference_model.run_folder import Diverged, stored_metrics
from reference_model.runtime.tensors import load_tensors, save_tensors
from reference_model.training import setup, trainer
from reference_model.training.step import Step


def test_a_run_leaves_what_it_promises(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    metrics = trainer.train(config, run)
    stored = json.loads((run / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(metrics))
    for split in ("test", "val"):
        for direction, pool in (("text_to_audio", 6), ("audio_to_text", 30)):
            result = stored[split][direction]
            assert result["pool"] == pool
            assert all(0 <= result[f"R@{k}"] <= 100 for k in (1, 5, 10, 50))
            assert result["R@50"] == 100
    assert stored["config"] == config.as_dict() == json.loads((run / "config.json").read_text())
    assert stored["best_epoch"] in (1, 2)
    assert [record["epoch"] for record in stored["history"]] == [1, 2]
    assert stored["chance"]["text_to_audio"]["R@1"] == pytest.approx(100 / 6)
    assert {path.name for path in run.iterdir()} == {
        "metrics.json", "config.json", "log.txt", "curves.png", "best.safetensors", "tensorboard", "text_encoder",
        "test_embeddings.safetensors", "time.json", ".lock.guard",
    }  # fmt: skip
    time = json.loads((run / "time.json").read_text())
    assert 0 < time["seconds"] < 600
    assert "torch 2." in time["machine"]
    embedded, record = load_tensors(run / "test_embeddings.safetensors")
    assert [len(clip["captions"]) for clip in record["clips"]] == [5] * 6
    clip_of_caption = torch.arange(6).repeat_interleave(5)
    assert split_metrics(embedded["audio"], embedded["text"], clip_of_caption) == metrics["test"]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "first, epoch 2: loss" in (run / "log.txt").read_text()
    # The best weights give the metrics again, from the run's folder alone.
    assert evaluate_run(run, split="test", data=None) == metrics["test"]
    assert evaluate_run(run, split="val", data=None) == metrics["val"]


@pytest.mark.parametrize("sums, best", [([1.0, 3.0, 2.0, 0.0], 2), ([1.0, 1.0, 1.0, 1.0], 1)])
def test_the_best_epoch_is_kept(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: list[float], best: int
) -> None:
    """It is the first with the highest sum of recalls; its weights are kept, and it is it that is reported."""
    scores: dict[int, float] = {}
    saved: list[dict[str, torch.Tensor]] = []

    def save(path: Path, tensors: Any, *record: Any) -> None:
        save_tensors(path, tensors, *record)
        if path.name == "best.safetensors":
            saved.append(load_file(path))

    monkeypatch.setattr(trainer, "sum_of_recalls", lambda recalls, _: scores.setdefault(id(recalls), sums[len(scores)]))
    monkeypatch.setattr(trainer, "save_tensors", save)
    metrics = trainer.train(replace(config, epochs=3), tmp_path / "run")
    assert metrics["best_epoch"] == len(saved) == best
    torch.testing.assert_close(saved[-1], load_file(tmp_path / "run" / "best.safetensors"), rtol=0, atol=0)
    others = [record["val"] for record in metrics["history"]]
    assert metrics["val"] == others.pop(best - 1)
    assert metrics["val"] not in others


def test_the_seed_decides(config: Config, tmp_path: Path) -> None:
    config = replace(config, epochs=1)
    first, again = trainer.train(config, tmp_path / "a"), trainer.train(config, tmp_path / "b")
    other = trainer.train(replace(config, seed=1), tmp_path / "c")
    assert first == again
    assert first["history"][0]["loss"] != other["history"][0]["loss"]


def test_embeddings_that_are_not_finite_stop_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "evaluate", Mock(side_effect=NotFinite("expected finite audio embeddings, got NaN")))
    with pytest.raises(Diverged, match="after epoch 1: expected finite audio embeddings"):
        trainer.train(config, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_sample_that_is_not_finite_is_no_divergence(
    config: Config, corpus: Path, tmp_path: Path, split: str, workers: int
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    bad = data / "Synthetic" / "waveforms" / split / "00001.wav"
    soundfile.write(bad, [0.0, math.nan, 0.0], 32_000, "FLOAT")
    with pytest.raises(InputError) as refusal:
        trainer.train(replace(config, data=str(data), workers=workers), tmp_path / "run")
    assert not isinstance(refusal.value, Diverged)
    assert str(refusal.value) == f"expected finite samples, got NaN or inf in {bad}"


def test_a_collapsed_run_is_marked(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = trainer.train(replace(config, epochs=8), tmp_path / "healthy")
    assert not healthy["collapsed"]
    assert healthy["history"][-1]["diagnosis"]["spread"] > 0.03
    config = replace(config, loss="triplet_max", epochs=1)

    def collapsed_model(*arguments: Any) -> Any:
        model = dual_encoder.new_model(*arguments)
        for head in (model.heads.audio, model.heads.text):  # every embedding the same, and no gradient to part them
            last = head[2]
            assert isinstance(last, torch.nn.Linear)
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.ones_(last.bias)
            head.requires_grad_(False)
        return model

    monkeypatch.setattr(setup, "new_model", collapsed_model)
    metrics = trainer.train(config, tmp_path / "collapsed")
    assert metrics["collapsed"]
    assert metrics["history"][0]["loss"] == pytest.approx(2 * 0.2, rel=1e-4)
    assert "has collapsed" in (tmp_path / "collapsed" / "log.txt").read_text()
    assert metrics["test"]["text_to_audio"]["R@5"] == 0  # ties count against us


def test_mixed_precision(config: Config, tmp_path: Path) -> None:
    metrics = trainer.train(replace(config, precision="bf16", epochs=1), tmp_path / "run")
    assert math.isfinite(metrics["history"][0]["loss"])
    assert load_file(tmp_path / "run" / "best.safetensors")["heads.audio.0.weight"].dtype == torch.float32


def test_every_loss_trains(config: Config, tmp_path: Path) -> None:
    for name in LOSSES:
        assert trainer.train(replace(config, loss=name, epochs=1), tmp_path / name)["history"][0]["loss"] > 0


def test_order_seed_rate_and_loss_of_every_step(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], int, float, float]] = []
    original = Step.__call__

    def noted(self: Step, batch: dict[str, Any]) -> torch.Tensor:
        seed, rate = torch.initial_seed(), self.optimizer.param_groups[0]["lr"]
        value = original(self, batch)
        seen.append((tuple(batch["ids"].tolist()), seed, rate, float(value)))
        return value

    monkeypatch.setattr(Step, "__call__", noted)
    # 80 pairs: three steps an epoch, and 8 pairs left over.
    config = replace(config, encoders="frozen", batch_size=24, epochs=3, decay_every=2)
    orders, seeds = set(), set()
    for seed in (0, 1):
        seen.clear()
        metrics = trainer.train(replace(config, seed=seed), tmp_path / str(seed), features=tmp_path / "features")
        ids, of_steps, rates, losses = zip(*seen, strict=True)
        assert [len(batch) for batch in ids] == [24] * 9
        assert rates == pytest.approx([1e-3] * 6 + [1e-4] * 3)
        means = [statistics.mean(losses[k : k + 3]) for k in (0, 3, 6)]
        assert [record["loss"] for record in metrics["history"]] == pytest.approx(means)
        orders |= {ids[k : k + 3] for k in (0, 3, 6)}
        seeds |= set(of_steps)
    assert (len(orders), len(seeds)) == (6, 18)


@pytest.mark.parametrize("encoders", ["frozen", "fine-tuned"])
def test_captions_of_a_clip_are_together_in_a_batch(
    encoders: Any, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of clips in another order in each epoch; 5 captions each."""
    epochs: list[list[int]] = []
    original = Step.__call__

    def noted(self: Step, batch: dict[str, Any]) -> torch.Tensor:
        epochs[-1].extend(batch["ids"].tolist())
        return original(self, batch)

    def begun(self: setup.EpochBatches, epoch: int, *, first: int) -> Any:
        epochs.append([])
        return of_epoch(self, epoch, first=first)

    of_epoch = setup.EpochBatches.of_epoch
    monkeypatch.setattr(setup.EpochBatches, "of_epoch", begun)
    monkeypatch.setattr(Step, "__call__", noted)
    config = replace(config, encoders=encoders, captions_together=True, loss="sup_con", batch_size=20, clip_seconds=0.5)
    trainer.train(config, tmp_path / "run")
    assert [len(ids) for ids in epochs] == [80, 80]
    orders = [ids[::5] for ids in epochs]
    assert [[clip for clip in order for _ in range(5)] for order in orders] == epochs
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == [*range(16)]


def test_every_process_draws_other_numbers() -> None:
    numbers = itertools.product((0, 1), (1, 2), (1, 2), (0, 1))  # seed, epoch, step, process
    assert len({setup.spread_seed(*each) for each in numbers}) == 16


# A run divided among processes, as torchrun starts them.


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
    one, two = trainer.train(config, tmp_path / "one"), launched(2, config, tmp_path / "two")
    for alone, together in zip(one["history"], two["history"], strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["val"] == alone["val"]
    assert (two["test"], two["best_epoch"]) == (one["test"], one["best_epoch"])
    first, second = (load_file(tmp_path / run / "best.safetensors") for run in ("one", "two"))
    # Where a gradient is nearly 0, Adam makes of its rounding a part of a step, which is as long as the learning rate.
    torch.testing.assert_close(second, first, rtol=1e-3, atol=0.5 * config.learning_rate)
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
    plain = trainer.train(config, tmp_path / "plain")
    cached = trainer.train(replace(config, gradient_cache_micro_batch=part), tmp_path / "cached")
    for without, with_cache in zip(plain["history"], cached["history"], strict=True):
        assert with_cache["loss"] == pytest.approx(without["loss"], rel=1e-5)
    assert cached["test"] == plain["test"]
