"""A run from files to metrics: what it leaves, which epoch is kept, in which order it steps."""

import json
import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from published import panns, save_bert
from runs import Interrupted
from safetensors.torch import load_file

from crossmodal_losses import LOSSES
from reference_model.config import Config
from reference_model.evaluation.evaluate import evaluate_run
from reference_model.evaluation.metrics import NotFinite, retrieval_metrics
from reference_model.models import dual_encoder
from reference_model.models.resnet38 import ResNet38
from reference_model.run_folder import Diverged
from reference_model.runtime.tensors import load_tensors, save_tensors
from reference_model.training import setup
from reference_model.training import trainer as train
from reference_model.training.step import Step


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "best.safetensors")


def test_a_run_leaves_what_it_promises(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    metrics = train.train(config, run)
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
    assert retrieval_metrics(embedded["audio"], embedded["text"], clip_of_caption) == metrics["test"]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "first, epoch 2: loss" in (run / "log.txt").read_text()
    # The best weights give the metrics again, from the run's folder alone.
    assert evaluate_run(run, split="test", data=None) == metrics["test"]
    assert evaluate_run(run, split="val", data=None) == metrics["val"]


def test_the_best_epoch_is_kept(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epoch 2 of 3 has the highest sum of recalls; its weights are kept, and it is it that is reported."""
    scores: dict[int, float] = {}

    def scripted(metrics: Any, _: Any) -> float:
        return scores.setdefault(id(metrics), [1.0, 3.0, 2.0, 0.0][len(scores)])

    monkeypatch.setattr(train, "sum_of_recalls", scripted)
    saved: list[dict[str, torch.Tensor]] = []

    def recorded(path: Path, tensors: Any, *record: Any) -> None:
        save_tensors(path, tensors, *record)
        if path.name == "best.safetensors":
            saved.append(load_file(path))

    monkeypatch.setattr(train, "save_tensors", recorded)
    metrics = train.train(replace(config, epochs=3), tmp_path / "run")
    assert metrics["best_epoch"] == 2
    assert len(saved) == 2
    assert all(torch.equal(saved[1][name], value) for name, value in weights(tmp_path / "run").items())


def test_the_seed_decides(config: Config, tmp_path: Path) -> None:
    config = replace(config, epochs=1)
    first, again = train.train(config, tmp_path / "a"), train.train(config, tmp_path / "b")
    other = train.train(replace(config, seed=1), tmp_path / "c")
    assert first == again
    assert first["history"][0]["loss"] != other["history"][0]["loss"]


def test_workers_change_nothing(config: Config, tmp_path: Path) -> None:
    alone = train.train(config, tmp_path / "a")
    helped = train.train(replace(config, workers=2), tmp_path / "b")
    assert helped["test"] == alone["test"]
    assert [r["loss"] for r in helped["history"]] == [r["loss"] for r in alone["history"]]
    assert train.train(replace(config, workers=1), tmp_path / "a") == json.loads(json.dumps(alone))  # the same run


def test_embeddings_that_are_not_finite_stop_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverged = NotFinite("expected finite audio embeddings, got NaN or inf; the model has diverged")
    monkeypatch.setattr(train, "evaluate", Mock(side_effect=diverged))
    with pytest.raises(Diverged, match="after epoch 1: expected finite audio embeddings"):
        train.train(config, tmp_path / "run")


def test_a_collapsed_run_is_marked(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = train.train(replace(config, epochs=8), tmp_path / "healthy")
    assert not healthy["collapsed"]
    assert healthy["history"][-1]["diagnosis"]["spread"] > 0.03
    config = replace(config, loss="triplet_max", epochs=1)

    def collapsed_model(*arguments: Any) -> Any:
        model, tokenizer = dual_encoder.new_model(*arguments)
        for head in (model.heads.audio, model.heads.text):  # every embedding the same, and no gradient to part them
            last = head[2]
            assert isinstance(last, torch.nn.Linear)
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.ones_(last.bias)
            head.requires_grad_(False)
        return model, tokenizer

    monkeypatch.setattr(setup, "new_model", collapsed_model)
    metrics = train.train(config, tmp_path / "collapsed")
    assert metrics["collapsed"]
    assert metrics["history"][0]["loss"] == pytest.approx(2 * 0.2, rel=1e-4)
    assert "has collapsed" in (tmp_path / "collapsed" / "log.txt").read_text()
    assert metrics["test"]["text_to_audio"]["R@5"] == 0  # ties count against us


def test_mixed_precision(config: Config, tmp_path: Path) -> None:
    metrics = train.train(replace(config, precision="bf16", epochs=1), tmp_path / "run")
    assert math.isfinite(metrics["history"][0]["loss"])
    assert weights(tmp_path / "run")["heads.audio.0.weight"].dtype == torch.float32


def test_the_full_model_from_its_checkpoints(config: Config, tmp_path: Path) -> None:
    """A run of the full-size audio encoder from a file in PANNs' layout, with BERT (a small one) from a folder."""
    audio, bert, run = tmp_path / "panns.pth", tmp_path / "bert", tmp_path / "run"
    torch.manual_seed(0)
    encoder = ResNet38()
    torch.save(panns(encoder), audio)
    save_bert(bert, ["a low hum, then a high hiss"] * 2)
    full = replace(config, model="full", encoders="frozen", audio_checkpoint=str(audio), bert=str(bert))
    metrics = train.train(replace(full, epochs=1, batch_size=40), run)
    assert weights(run)["heads.audio.2.weight"].shape == (1024, 2048)
    kept = load_file(run / "frozen.safetensors")["audio_encoder.conv_block_after1.conv2.weight"]
    assert torch.equal(kept, encoder.conv_block_after1.conv2.weight)
    audio.unlink()
    shutil.rmtree(bert)
    assert evaluate_run(run, split="test", data=None) == metrics["test"]  # the run's folder is enough


def test_every_loss_trains(config: Config, tmp_path: Path) -> None:
    for name in LOSSES:
        assert train.train(replace(config, loss=name, epochs=1), tmp_path / name)["history"][0]["loss"] > 0


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
    orders, seeds = [], []
    for seed in (0, 1):
        seen.clear()
        metrics = train.train(replace(config, seed=seed), tmp_path / str(seed), features=tmp_path / "features")
        assert [len(ids) for ids, *_ in seen] == [24] * 9
        assert [rate for _, _, rate, _ in seen] == pytest.approx([1e-3] * 6 + [1e-4] * 3)
        epochs = [seen[k : k + 3] for k in (0, 3, 6)]
        means = [statistics.mean(value for *_, value in epoch) for epoch in epochs]
        assert [record["loss"] for record in metrics["history"]] == pytest.approx(means)
        orders += [tuple(ids for ids, *_ in epoch) for epoch in epochs]
        seeds += [of_step for _, of_step, *_ in seen]
    assert len(set(orders)) == 6
    assert len(set(seeds)) == 18


def test_of_equal_epochs_the_first_is_kept(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "sum_of_recalls", lambda *_: 1.0)
    monkeypatch.setattr(train, "save_tensors", save := Mock(side_effect=save_tensors))
    metrics = train.train(config, tmp_path / "run")
    assert metrics["best_epoch"] == 1
    assert [call.args[0].name for call in save.mock_calls] == ["best.safetensors", "test_embeddings.safetensors"]
    assert metrics["val"] == metrics["history"][0]["val"] != metrics["history"][1]["val"]


def test_killed_between_the_metrics_and_the_end(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = replace(config, epochs=1, encoders="frozen"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", Mock(side_effect=Interrupted))
        with pytest.raises(Interrupted):
            train.train(config, run, features=tmp_path / "features")
    assert (run / "checkpoint.safetensors").exists()
    train.train(config, run, features=tmp_path / "features")
    assert not (run / "checkpoint.safetensors").exists()
