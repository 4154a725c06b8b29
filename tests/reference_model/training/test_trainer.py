"""A run from files to metrics: what it leaves, how it continues, what it refuses."""

import functools
import json
import math
import shutil
import statistics
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from crossmodal_losses import LOSSES, PairLoss
from reference_model import InputError
from reference_model.config import Config
from reference_model.data.dataset import SPLITS, read_split
from reference_model.evaluation.evaluate import evaluate_run
from reference_model.evaluation.metrics import NotFinite, retrieval_metrics
from reference_model.models import bert as text_encoder
from reference_model.models import dual_encoder
from reference_model.models.resnet38 import ResNet38
from reference_model.paper import PROTOCOLS
from reference_model.run_folder import Diverged
from reference_model.runtime import devices
from reference_model.runtime import tensors as checkpoint
from reference_model.runtime.lease import lock_run_folder
from reference_model.runtime.tensors import load_tensors
from reference_model.training import setup
from reference_model.training import trainer as train
from reference_model.training.checkpoint import fingerprint
from reference_model.training.setup import spread_seed
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
    left = {path.name for path in run.iterdir()}
    assert left == {
        "metrics.json", "config.json", "log.txt", "curves.png", "best.safetensors", "tensorboard", "text_encoder",
        "test_embeddings.safetensors", "time.json", ".lock.guard",
    }  # fmt: skip
    time = json.loads((run / "time.json").read_text())
    assert 0 < time["seconds"] < 600
    assert "torch 2." in time["machine"]
    embedded, record = load_tensors(run / "test_embeddings.safetensors")
    assert [len(clip["captions"]) for clip in record["clips"]] == [5] * 6
    of_caption = torch.arange(6).repeat_interleave(5)
    assert retrieval_metrics(embedded["audio"], embedded["text"], of_caption) == metrics["test"]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "first, epoch 2: loss" in (run / "log.txt").read_text()
    # The best weights give the metrics again, from the run's folder alone.
    assert evaluate_run(run, split="test", data=None) == metrics["test"]
    assert evaluate_run(run, split="val", data=None) == metrics["val"]


def test_the_best_epoch_is_kept(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epoch 2 of 3 has the highest sum of recalls; its weights are kept, and it is it that is reported."""
    scores = iter([1.0, 3.0, 2.0])
    score_of: dict[int, float] = {}

    def scripted(metrics: Any, directions: Any) -> float:
        return score_of.setdefault(id(metrics), next(scores) if id(metrics) not in score_of else 0)

    monkeypatch.setattr(train, "sum_of_recalls", scripted)
    saved: list[dict[str, torch.Tensor]] = []
    original = checkpoint.save_tensors

    def recorded(path: Path, tensors: Any, *record: Any) -> None:
        original(path, tensors, *record)
        if path.name == "best.safetensors":
            saved.append(load_file(path))

    monkeypatch.setattr(train, "save_tensors", recorded)
    metrics = train.train(replace(config, epochs=3), tmp_path / "run")
    assert metrics["best_epoch"] == 2
    assert len(saved) == 2
    assert all(torch.equal(saved[1][name], value) for name, value in weights(tmp_path / "run").items())


class Interrupted(Exception):
    """In place of a signal."""


@pytest.mark.parametrize("encoders, workers", [("frozen", 0), ("fine-tuned", 0), ("fine-tuned", 1)])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoders: Any, workers: int
) -> None:
    config = replace(config, encoders=encoders, workers=workers, epochs=3, decay_every=1)
    expected = train.train(config, tmp_path / "whole")

    original = LOSSES["nt_xent"].forward
    calls = 0

    def forward(self: PairLoss, x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 13:  # 5 steps an epoch: in the middle of the third
            raise Interrupted
        return original(self, x, y, ids)

    with monkeypatch.context() as patch:
        patch.setattr(LOSSES["nt_xent"], "forward", forward)
        with pytest.raises(Interrupted):
            train.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    metrics = train.train(config, tmp_path / "run")
    assert metrics == expected
    assert [record["learning_rate"] for record in metrics["history"]] == pytest.approx([1e-3, 1e-4, 1e-5])
    theirs = weights(tmp_path / "whole")
    assert all(torch.equal(theirs[name], value) for name, value in weights(tmp_path / "run").items())


def test_the_seed_decides(config: Config, tmp_path: Path) -> None:
    config = replace(config, epochs=1)
    first, again, other = (
        train.train(replace(config, seed=seed), tmp_path / name) for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert first == again
    assert first["history"][0]["loss"] != other["history"][0]["loss"]


def test_workers_change_nothing(config: Config, tmp_path: Path) -> None:
    alone = train.train(config, tmp_path / "a")
    helped = train.train(replace(config, workers=2), tmp_path / "b")
    assert helped["test"] == alone["test"]
    assert [r["loss"] for r in helped["history"]] == [r["loss"] for r in alone["history"]]
    assert train.train(replace(config, workers=1), tmp_path / "a") == json.loads(json.dumps(alone))  # the same run


def test_a_finished_run_is_not_repeated_and_no_other_overwrites_it(config: Config, tmp_path: Path) -> None:
    config = replace(config, epochs=1)
    run = tmp_path / "run"
    metrics = train.train(config, run)
    before = (run / "best.safetensors").stat().st_mtime_ns
    assert train.train(config, run) == json.loads(json.dumps(metrics))
    with pytest.raises(InputError, match=r"a run of another \(learning_rate 0.001 there, 0.5 here\); choose another"):
        train.train(replace(config, learning_rate=0.5), run)
    assert (run / "best.safetensors").stat().st_mtime_ns == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"got something without config\.json"):
        train.train(config, foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("epochs_before, kept", [(0, "no epoch was finished"), (1, "the best epoch, 1, is kept")])
def test_a_loss_that_is_not_finite_stops_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs_before: int, kept: str
) -> None:
    run = tmp_path / "run"
    calls = 0
    original = LOSSES["nt_xent"].forward

    def forward(self: PairLoss, x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(self, x * (math.nan if calls == 5 * epochs_before + 3 else 1), y, ids)

    monkeypatch.setattr(LOSSES["nt_xent"], "forward", forward)
    with pytest.raises(Diverged, match=f"the loss is nan at step 3 of epoch {epochs_before + 1}; {kept}"):
        train.train(config, run)
    assert "the loss is nan" in (run / "log.txt").read_text()
    assert not (run / "metrics.json").exists()
    with pytest.raises(Diverged, match=f"the loss is nan at step 3 of epoch {epochs_before + 1}; {kept}"):
        train.train(config, run)  # and is not tried again
    if epochs_before:
        assert evaluate_run(run, split="test", data=None)["text_to_audio"]["pool"] == 6
        assert all(value.isfinite().all() for value in weights(run).values() if value.is_floating_point())


def test_embeddings_that_are_not_finite_stop_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(*_: Any) -> None:
        raise NotFinite("expected finite audio embeddings, got NaN or inf; the model has diverged")

    monkeypatch.setattr(train, "evaluate", diverged)
    with pytest.raises(Diverged, match="after epoch 1: expected finite audio embeddings"):
        train.train(config, tmp_path / "run")


def test_a_collapsed_run_is_marked(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = train.train(replace(config, epochs=8), tmp_path / "healthy")
    assert not healthy["collapsed"]
    assert healthy["history"][-1]["diagnosis"]["spread"] > 0.03
    config = replace(config, loss="triplet_max", epochs=1)
    original = dual_encoder.new_model

    def collapsed_model(*arguments: Any) -> Any:
        model, tokenizer = original(*arguments)
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


def test_a_precision_that_the_device_lacks_is_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "Accelerator", functools.partial(Accelerator, cpu=True))
    with pytest.raises(InputError, match="expected --precision no or bf16 on cpu, got fp16"):
        train.train(replace(config, precision="fp16"), tmp_path / "run")


def test_the_full_model_from_its_checkpoints(config: Config, tmp_path: Path) -> None:
    """A run of the full-size audio encoder from a file in PANNs' layout, with BERT (a small one) from a folder."""
    panns, bert, run = tmp_path / "panns.pth", tmp_path / "bert", tmp_path / "run"
    torch.manual_seed(0)
    encoder = ResNet38()
    torch.save({"iteration": 1, "model": {**encoder.state_dict(), "fc1.bias": torch.zeros(3)}, "sampler": {}}, panns)
    tokenizer = text_encoder.train_tokenizer(["a low hum, then a high hiss"] * 2)
    small = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(small).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    full = replace(
        config, model="full", encoders="frozen", audio_checkpoint=str(panns), bert=str(bert), epochs=1, batch_size=40
    )
    metrics = train.train(full, run)
    assert weights(run)["heads.audio.2.weight"].shape == (1024, 2048)
    kept = load_file(run / "frozen.safetensors")
    published = "conv_block_after1.conv2.weight"
    assert torch.equal(kept[f"audio_encoder.{published}"], encoder.state_dict()[published])
    panns.unlink()
    shutil.rmtree(bert)
    assert evaluate_run(run, split="test", data=None) == metrics["test"]  # the run's folder is enough


def test_every_loss_trains(config: Config, tmp_path: Path) -> None:
    for name in LOSSES:
        metrics = train.train(replace(config, loss=name, epochs=1), tmp_path / name)
        assert metrics["history"][0]["loss"] > 0


def test_bad_settings_are_refused(config: Config) -> None:
    for change, words in (
        ({"loss": "arcface"}, "expected loss to be one of triplet_sum, .* got arcface"),
        ({"model": "full"}, "expected audio_checkpoint for the full model, got none; only the tiny one can begin anew"),
        ({"model": "full", "audio_checkpoint": "a.pth"}, "expected bert for the full model, got none"),
        ({"model": "Tiny"}, "expected model to be one of full, tiny, got Tiny"),
        ({"encoders": "thawed"}, "expected encoders to be one of frozen, fine-tuned, got thawed"),
        ({"precision": "fp8"}, "expected precision to be one of no, bf16, fp16, got fp8"),
        ({"epochs": 0}, "expected epochs > 0, got 0"),
        ({"learning_rate": -1.0}, "expected learning_rate > 0, got -1.0"),
        ({"workers": -1}, "expected workers >= 0, got -1"),
        ({"seed": -1}, "expected seed >= 0, got -1"),
        ({"clip_seconds": 0.2}, "expected clip_seconds >= 0.31, the least that ResNet-38 can pool, got 0.2"),
        ({"batch_size": 1}, "expected batch_size >= 2, because negatives come from the batch, got 1"),
    ):
        with pytest.raises(InputError, match=words):
            replace(config, **change)


def test_bad_data_is_refused_before_training(config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the captions of the train split"):
        train.train(replace(config, data=str(tmp_path)), tmp_path / "b")
    with pytest.raises(InputError, match="expected at least one batch of 500 pairs, got 80"):
        train.train(replace(config, batch_size=500), tmp_path / "b")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_sample_that_is_not_finite_is_no_divergence(
    config: Config, corpus: Path, tmp_path: Path, split: str, workers: int
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    bad = data / "Synthetic" / "waveforms" / split / "00001.wav"
    soundfile.write(bad, [0.0, math.nan, 0.0], 32_000, "FLOAT")
    with pytest.raises(InputError) as refusal:
        train.train(replace(config, data=str(data), workers=workers), tmp_path / "run")
    assert not isinstance(refusal.value, Diverged)
    assert str(refusal.value) == f"expected finite samples, got NaN or inf in {bad}"


def test_bad_checkpoints_are_refused(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config.as_dict()))
    (run / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"expected a safetensors file at .*checkpoint\.safetensors"):
        train.train(config, run)
    stored = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**stored, "colour": "blue"}))
    with pytest.raises(InputError, match=r"expected the settings of this version .* that differ: colour"):
        train.train(config, run)
    with pytest.raises(InputError, match=r"expected a run with a finished epoch in .*, got no best\.safetensors"):
        evaluate_run(run, split="test", data=None)


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
        steps = list(seen)
        assert [len(ids) for ids, *_ in steps] == [24] * 9
        assert [rate for _, _, rate, _ in steps] == pytest.approx([1e-3] * 6 + [1e-4] * 3)
        epochs = [steps[k : k + 3] for k in (0, 3, 6)]
        assert [record["loss"] for record in metrics["history"]] == pytest.approx(
            [statistics.mean(value for *_, value in epoch) for epoch in epochs]
        )
        orders += [tuple(ids for ids, *_ in epoch) for epoch in epochs]
        seeds += [of_step for _, of_step, *_ in steps]
    assert len(set(orders)) == 6
    assert len(set(seeds)) == 18


def test_every_process_draws_other_numbers() -> None:
    assert (
        len(
            {
                spread_seed(seed, epoch, step, p)
                for seed in (0, 1)
                for epoch in (1, 2)
                for step in (1, 2)
                for p in (0, 1)
            }
        )
        == 16
    )


def test_the_last_good_state_outlives_a_divergence(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    original = LOSSES["nt_xent"].forward

    def forward(self: PairLoss, x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(self, x * (math.nan if calls == 3 else 1), y, ids)

    monkeypatch.setattr(LOSSES["nt_xent"], "forward", forward)
    with pytest.raises(Diverged):
        train.train(config, tmp_path / "run", checkpoint_minutes=0)
    tensors, progress = checkpoint.load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert (progress["epoch"], progress["step"]) == (1, 2)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_of_equal_epochs_the_first_is_kept(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "sum_of_recalls", lambda *_: 1.0)
    saved: list[Path] = []

    def save(path: Path, tensors: Any, *record: Any) -> None:
        saved.append(path)
        checkpoint.save_tensors(path, tensors, *record)

    monkeypatch.setattr(train, "save_tensors", save)
    metrics = train.train(config, tmp_path / "run")
    assert metrics["best_epoch"] == 1
    assert [path.name for path in saved] == ["best.safetensors", "test_embeddings.safetensors"]
    assert metrics["val"] == metrics["history"][0]["val"] != metrics["history"][1]["val"]


def test_every_setting_but_the_place_and_the_readers_makes_another_run(config: Config) -> None:
    full = replace(config, model="full", audio_checkpoint="a", bert="b")
    changes: dict[str, Any] = {
        "dataset": "Mine", "clip_seconds": 1.0, "loss": "triplet_max", "encoders": "frozen", "audio_checkpoint": "c",
        "bert": "c", "batch_size": 8, "learning_rate": 1e-4, "epochs": 3, "decay_every": 2,
        "gradient_cache_micro_batch": 4, "seed": 1, "precision": "bf16",
    }  # fmt: skip
    changes |= PROTOCOLS["released"]
    for name, value in changes.items():
        changed = replace(full, **{name: value}).deciding()
        assert {other for other, there in full.deciding().items() if changed[other] != there} == {name}
    assert full.deciding()["model"] != config.deciding()["model"]
    assert config.deciding() == replace(config, data="elsewhere", workers=7).deciding()
    assert changes.keys() | {"model", "data", "workers"} == {field.name for field in fields(Config)}


def test_names_of_clips_are_part_of_the_fingerprint(corpus: Path) -> None:
    clips = {split: read_split(corpus, "Synthetic", split) for split in SPLITS}
    first, *rest = clips["val"]
    renamed = {**clips, "val": [replace(first, path=first.path.with_name("other.wav")), *rest]}
    assert fingerprint(renamed) != fingerprint(clips)
    elsewhere = {split: [replace(c, path=Path("/moved") / c.path.name) for c in of] for split, of in clips.items()}
    assert fingerprint(elsewhere) == fingerprint(clips)


def test_killed_while_the_folder_was_made(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".config.json.part").mkdir(parents=True)
    (run / "log.txt").touch()
    train.train(replace(config, epochs=1, encoders="frozen"), run, features=tmp_path / "features")
    assert not list(run.glob(".*.part"))


def test_killed_between_the_metrics_and_the_end(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = replace(config, epochs=1, encoders="frozen"), tmp_path / "run"

    def killed(*_: Any, **__: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Interrupted):
            train.train(config, run, features=tmp_path / "features")
    assert (run / "checkpoint.safetensors").exists()
    train.train(config, run, features=tmp_path / "features")
    assert not (run / "checkpoint.safetensors").exists()


@pytest.fixture
def half_done(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Path]:
    """A run of frozen encoders, in its second epoch."""
    config, run, calls, original = replace(config, encoders="frozen"), tmp_path / "run", 0, LOSSES["nt_xent"].forward

    def forward(self: PairLoss, x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise Interrupted
        return original(self, x, y, ids)

    with monkeypatch.context() as patch:
        patch.setattr(LOSSES["nt_xent"], "forward", forward)
        with pytest.raises(Interrupted):
            train.train(config, run)
    return config, run


def test_a_refused_call_leaves_the_run_as_it_was(half_done: tuple[Config, Path], corpus: Path, tmp_path: Path) -> None:
    config, run = half_done
    moved = shutil.copytree(corpus, tmp_path / "moved")
    table = moved / "Synthetic" / "csv_files" / "train.csv"
    table.write_text(table.read_text().replace("low", "deep").replace("hiss", "zzz"))
    files = [p for p in run.rglob("*") if p.is_file() and p.name != "log.txt" and "events" not in p.name]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(InputError, match="expected the clips and captions that"):
        train.train(replace(config, data=str(moved)), run)
    assert {path: path.read_bytes() for path in files} == before


def test_other_frozen_encoders_are_refused(half_done: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The file named in the config may hold others by now."""

    def other_model(*arguments: Any) -> Any:
        torch.manual_seed(1)
        return dual_encoder.new_model(*arguments)

    monkeypatch.setattr(setup, "new_model", other_model)
    with pytest.raises(InputError, match=r"expected the frozen encoders that .* was begun with, got others in"):
        train.train(*half_done)


def test_one_at_a_time(half_done: tuple[Config, Path]) -> None:
    config, run = half_done
    with (
        lock_run_folder(run),
        pytest.raises(InputError, match=r"expected .*run for this run alone, got one that is under way there"),
    ):
        train.train(config, run)
    assert train.train(config, run)["best_epoch"]
