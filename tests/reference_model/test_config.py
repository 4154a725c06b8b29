"""The settings of a run: checked, stored, read again, and those of the two protocols each seen at work."""

import json
import math
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import at_step
from torch import Tensor, nn

from reference_model import InputError
from reference_model.config import ADDED_SETTINGS, Config
from reference_model.evaluation.evaluate import evaluate, evaluate_run
from reference_model.models.dual_encoder import new_model
from reference_model.models.logmel import SpecAugment
from reference_model.models.resnet38 import BasicBlock
from reference_model.paper import PROTOCOLS
from reference_model.runtime.signals import Stopped, handle_signals, request_stop
from reference_model.search.retriever import Retriever
from reference_model.training import trainer
from reference_model.training.trainer import train


@pytest.mark.parametrize(
    "change, words",
    [
        ({"loss": "arcface"}, "expected loss to be one of triplet_sum, .* got arcface"),
        ({"model": "full"}, "expected audio_checkpoint for the full model, got none; only the tiny one can begin anew"),
        ({"model": "full", "audio_checkpoint": "a.pth"}, "expected text_encoder for the full model, got none"),
        ({"model": "Tiny"}, "expected model to be one of full, tiny, got Tiny"),
        ({"encoders": "thawed"}, "expected encoders to be one of frozen, fine-tuned, got thawed"),
        ({"precision": "fp8"}, "expected precision to be one of no, bf16, fp16, got fp8"),
        ({"epochs": 0}, "expected epochs > 0, got 0"),
        ({"learning_rate": -1.0}, "expected learning_rate > 0, got -1.0"),
        ({"workers": -1}, "expected workers >= 0, got -1"),
        ({"seed": -1}, "expected seed >= 0, got -1"),
        ({"clip_seconds": 0.2}, "expected clip_seconds >= 0.31, the least that ResNet-38 can pool, got 0.2"),
        ({"batch_size": 1}, "expected batch_size >= 2, because negatives come from the batch, got 1"),
        ({"dropout": 1.0}, r"expected dropout in \[0, 1\), got 1.0"),
        ({"text_encoder": ""}, "expected text_encoder to be a name or a folder, got an empty text"),
        ({"audio_encoder": ""}, "expected audio_encoder to be a name or a folder, got an empty text"),
        ({"clip_norm": -1.0}, "expected clip_norm >= 0, where 0 is no clipping, got -1.0"),
        ({"direction_weights": (1,)}, "expected settings of the right types, got no entry direction_weights.1"),
        ({"direction_weights": [True, 1.0]}, "got True as direction_weights.0, which should be a valid number"),
        ({"direction_weights": (-1.0, 1.0)}, r"expected direction_weights.0. to be finite and >= 0, got -1"),
        ({"direction_weights": (1.0, math.inf)}, r"expected direction_weights.1. to be finite and >= 0, got inf"),
        ({"direction_weights": (0, 0)}, r"expected direction_weights of which one is above 0, got \(0, 0\)"),
        ({"loss": "sigmoid", "direction_weights": (1, 0)}, r"expected direction_weights \(1, 1\) with sigmoid, which"),
        ({"frozen_mode": "off"}, "expected frozen_mode to be one of eval, train, got off"),
        ({"weighted_rule": "mine"}, "expected weighted_rule to be one of equation-6, mined, got mine"),
        ({"select_on": "both"}, "expected select_on to be one of both-directions, text-to-audio, got both"),
    ],
)
def test_bad_settings_are_refused(config: Config, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(config, **change)


def test_a_setting_that_is_unknown_or_missing_is_refused(config: Config, tmp_path: Path) -> None:
    path, settings = tmp_path / "config.json", config.as_dict()
    differ = "expected the settings of this version .* that differ: "
    for stored, words in (
        ({**settings, "colour": 1}, f"{differ}colour"),
        ({name: value for name, value in settings.items() if name != "dropout"}, f"{differ}dropout"),
        ({**settings, "protocol": "paper"}, f"{differ}protocol"),
        ("paper", f"{differ}.*str"),
        ({**settings, "batch_size": "16"}, r"expected the settings of a run in .*, got: "),
    ):
        path.write_text(json.dumps(stored))
        with pytest.raises(InputError, match=words):
            Config.read(path)
    path.write_text("{")
    with pytest.raises(InputError, match="expected the settings of a run as JSON in"):
        Config.read(path)
    path.write_text(json.dumps(settings))
    assert Config.read(path) == config


OLDER = """{
 "data": "data", "dataset": "Clotho", "clip_seconds": 30.0, "loss": "triplet_max", "encoders": "frozen",
 "protocol": {
  "frozen_mode": "train", "spec_augment": true, "dropout": 0.2, "clip_norm": 2.0, "nt_xent_factor": 0.5,
  "weighted_rule": "mined", "mask_same_clip": true, "select_on": "text-to-audio"
 },
 "model": "tiny", "audio_checkpoint": null, "bert": null, "batch_size": 24, "learning_rate": 0.0001, "epochs": 50,
 "decay_every": 20, "decay_factor": 0.1, "gradient_cache_micro_batch": null, "seed": 2, "precision": "no", "workers": 2
}"""


def test_settings_in_the_older_form_are_read(tmp_path: Path) -> None:
    (path := tmp_path / "config.json").write_text(OLDER)
    assert Config.read(path) == Config(
        data="data", dataset="Clotho", clip_seconds=30.0, loss="triplet_max", encoders="frozen", frozen_mode="train",
        spec_augment=True, dropout=0.2, clip_norm=2.0, direction_weights=(1, 1), weighted_rule="mined",
        mask_same_clip=True, select_on="text-to-audio", model="tiny", audio_checkpoint=None, text_encoder=None,
        **ADDED_SETTINGS, batch_size=24,
        learning_rate=1e-4, epochs=50, decay_every=20, gradient_cache_micro_batch=None, seed=2, precision="no",
        workers=2,
    )  # fmt: skip
    for loss, factor, weights in (("nt_xent", 0.5, (0.5, 0.5)), ("nt_xent", 1, (1, 1)), ("sigmoid", 0.5, (1, 1))):
        path.write_text(OLDER.replace("triplet_max", loss).replace('factor": 0.5', f'factor": {factor}'))
        assert Config.read(path).direction_weights == weights
    for older, differs in (
        (OLDER.replace('"nt_xent_factor"', '"direction_weights": [1, 1], "nt_xent_factor"'), "nt_xent_factor"),
        (OLDER.replace('"decay_factor": 0.1', '"decay_factor": 0.5'), "decay_factor"),
        (OLDER.replace('"dropout": 0.2, ', ""), "dropout"),
        (OLDER.replace('"epochs": 50,', ""), "epochs"),
    ):
        path.write_text(older)
        with pytest.raises(InputError, match=f"expected the settings of this version .* that differ: {differs}$"):
            Config.read(path)


def in_the_older_form(path: Path) -> None:
    """Rewrite a config.json as earlier versions did."""
    settings = json.loads(path.read_text())
    settings["nt_xent_factor"], _ = settings.pop("direction_weights")
    settings["bert"] = settings.pop("text_encoder")
    for name in ADDED_SETTINGS:
        del settings[name]
    names = PROTOCOLS["paper"].keys() - {"direction_weights"} | {"nt_xent_factor"}
    nested = {name: settings.pop(name) for name in names}
    path.write_text(json.dumps({**settings, "protocol": nested, "decay_factor": 0.1}))


def test_a_run_in_the_older_form_is_evaluated_searched_and_not_repeated(
    config: Config, trained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    in_the_older_form(run / "config.json")
    metrics = json.loads((run / "metrics.json").read_text())
    assert train(replace(config, epochs=1), run) == metrics
    assert evaluate_run(run, split="test", data=None) == metrics["test"]
    assert Retriever.from_pretrained(run).config == replace(config, epochs=1)
    with pytest.raises(InputError, match=r"got a run of another .epochs 1 there, 2 here"):
        train(config, run)


def test_a_setting_that_was_added_last_may_be_missing(config: Config, tmp_path: Path) -> None:
    settings = config.as_dict()
    del settings["captions_together"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    assert Config.read(path) == config


def test_an_interrupted_run_in_the_older_form_continues(config: Config, tmp_path: Path) -> None:
    expected, run = train(config, tmp_path / "whole"), tmp_path / "run"

    def stop(x: Tensor) -> Tensor:
        request_stop()
        return x

    with handle_signals(), at_step(7, stop), pytest.raises(Stopped):  # in the second epoch
        train(config, run)
    assert (run / "checkpoint.safetensors").exists()
    in_the_older_form(run / "config.json")
    assert {**train(config, run), "history": None} == {**expected, "history": None}
    assert Config.read(run / "config.json") == config


def test_every_setting_but_the_place_and_the_readers_makes_another_run(config: Config) -> None:
    with pytest.raises(TypeError):
        Config(**PROTOCOLS["paper"])  # none has a default
    full = replace(config, model="full", audio_checkpoint="a", text_encoder="b")
    changes: dict[str, Any] = {
        "dataset": "Mine", "clip_seconds": 1.0, "loss": "triplet_max", "encoders": "frozen", "audio_checkpoint": "c",
        "text_encoder": "c", "audio_encoder": "panns-cnn14", "text_pooling": "mean",
        "trained": "audio", "batch_size": 8, "learning_rate": 1e-4, "epochs": 3, "decay_every": 2,
        "gradient_cache_micro_batch": 4, "seed": 1, "precision": "bf16", "learn_temperature": True, "queue": 8,
        "captions_together": True,
    }  # fmt: skip
    changes |= PROTOCOLS["released"]
    for name, value in changes.items():
        changed = replace(full, **{name: value}).deciding()
        assert {other for other, there in full.deciding().items() if changed[other] != there} == {name}
    assert full.deciding()["model"] != config.deciding()["model"]
    assert config.deciding() == replace(config, data="elsewhere", workers=7).deciding()
    assert changes.keys() | {"model", "data", "workers"} == {field.name for field in fields(Config)}


# The eight settings in which the paper's text and its published code differ.

CAPTIONS = ["A low hum", "A high hiss, then a click", "Rain"]


def test_the_two_protocols_differ_in_every_setting() -> None:
    """First the value of the paper's text, or of the published encoders; second that of the published code."""
    expected: dict[str, tuple[Any, Any]] = {
        "frozen_mode": ("eval", "train"),
        "spec_augment": (False, True),
        "dropout": (0.1, 0.2),
        "clip_norm": (0, 2),
        "direction_weights": ([1, 1], {"nt_xent": [0.5, 0.5]}),
        "weighted_rule": ("equation-6", "mined"),
        "mask_same_clip": (False, True),
        "select_on": ("both-directions", "text-to-audio"),
    }
    assert {name: (value, PROTOCOLS["released"][name]) for name, value in PROTOCOLS["paper"].items()} == expected
    assert list(PROTOCOLS) == ["paper", "released"]
    assert PROTOCOLS["released"].keys() == expected.keys()


@pytest.mark.parametrize("name, dropout, spec_augment", [("paper", 0.1, False), ("released", 0.2, True)])
def test_dropout_and_stripes_reach_the_encoders(config: Config, name: str, dropout: float, spec_augment: bool) -> None:
    model = new_model(replace(config, **PROTOCOLS[name]), CAPTIONS)
    blocks = [block for block in model.modules() if isinstance(block, BasicBlock)]
    assert len(blocks) == 16
    assert {block.dropout for block in blocks} == {dropout}
    bert = model.text_encoder.config
    assert bert.hidden_dropout_prob == bert.attention_probs_dropout_prob == dropout
    assert {m.p for m in model.text_encoder.modules() if isinstance(m, nn.Dropout)} == {dropout}
    assert isinstance(model.audio_encoder.spec_augment, SpecAugment) == spec_augment


def test_frozen_encoders_are_constant_or_drift(config: Config, tmp_path: Path) -> None:
    """The published code leaves frozen encoders in train mode: no weight changes, but statistics and dropout do."""
    config = replace(config, encoders="frozen", epochs=1)
    torch.manual_seed(0)
    constant = new_model(config, CAPTIONS)
    drifting = new_model(replace(config, **PROTOCOLS["released"]), CAPTIONS)
    waveforms = torch.randn(4, 16_000)
    for model, drifts in ((constant, False), (drifting, True)):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        first, second = model.audio_encoder(waveforms), model.audio_encoder(waveforms)
        assert torch.equal(first, second) != drifts
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert bool(changed) == drifts
        assert all(name.split(".")[-1].startswith(("running_", "num_batches")) for name in changed)
        assert changed <= model.trainable_state_dict().keys()
    train(replace(config, **PROTOCOLS["released"]), tmp_path / "run", features=tmp_path / "features")
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("select_on, best", [("both-directions", 1), ("text-to-audio", 2)])
def test_the_best_epoch_is_the_best_in_what_the_protocol_says(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select_on: Any, best: int
) -> None:
    recalls = iter([(10, 50), (20, 30), (0, 0)])  # text-to-audio, audio-to-text; at the end those of the test set

    def scripted(*arguments: Any) -> Any:
        metrics, diagnosis = evaluate(*arguments)
        for direction, value in zip(("text_to_audio", "audio_to_text"), next(recalls), strict=True):
            metrics[direction] |= {"R@1": value, "R@5": value, "R@10": value}
        return metrics, diagnosis

    monkeypatch.setattr(trainer, "evaluate", scripted)
    config = replace(config, select_on=select_on)
    assert train(config, tmp_path / "run")["best_epoch"] == best
