"""The eight settings in which the paper's text and its published code differ, each seen at work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reference_model.config import Config
from reference_model.evaluation.evaluate import evaluate
from reference_model.models.dual_encoder import new_model
from reference_model.models.logmel import SpecAugment
from reference_model.models.resnet38 import BasicBlock
from reference_model.paper import PROTOCOLS
from reference_model.training import trainer as train

CAPTIONS = ["A low hum", "A high hiss, then a click", "Rain"]


def test_what_the_protocols_say() -> None:
    """First the value of the paper's text, or of the published encoders; second that of the published code."""
    expected: dict[str, tuple[Any, Any]] = {
        "frozen_mode": ("eval", "train"),
        "spec_augment": (False, True),
        "dropout": (0.1, 0.2),
        "clip_norm": (0, 2),
        "nt_xent_factor": (1, 0.5),
        "weighted_rule": ("equation-6", "mined"),
        "mask_same_clip": (False, True),
        "select_on": ("both-directions", "text-to-audio"),
    }
    assert list(PROTOCOLS) == ["paper", "released"]
    for which, name in enumerate(PROTOCOLS):
        assert PROTOCOLS[name] == {setting: values[which] for setting, values in expected.items()}


def test_the_two_protocols_differ_in_every_setting() -> None:
    assert PROTOCOLS["paper"].keys() == PROTOCOLS["released"].keys()
    assert all(PROTOCOLS["released"][name] != value for name, value in PROTOCOLS["paper"].items())


@pytest.mark.parametrize("name, dropout, spec_augment", [("paper", 0.1, False), ("released", 0.2, True)])
def test_dropout_and_stripes_reach_the_encoders(config: Config, name: str, dropout: float, spec_augment: bool) -> None:
    model, _ = new_model(replace(config, **PROTOCOLS[name]), CAPTIONS)
    blocks = [block for block in model.modules() if isinstance(block, BasicBlock)]
    assert len(blocks) == 16
    assert {block.dropout for block in blocks} == {dropout}
    bert = model.text_encoder.bert.config
    assert bert.hidden_dropout_prob == bert.attention_probs_dropout_prob == dropout
    assert {m.p for m in model.text_encoder.modules() if isinstance(m, nn.Dropout)} == {dropout}
    assert isinstance(model.audio_encoder.spec_augment, SpecAugment) == spec_augment


def test_frozen_encoders_are_constant_or_drift(config: Config, tmp_path: Path) -> None:
    """The published code leaves frozen encoders in train mode: no weight changes, but statistics and dropout do."""
    config = replace(config, encoders="frozen", epochs=1)
    torch.manual_seed(0)
    constant, _ = new_model(config, CAPTIONS)
    drifting, _ = new_model(replace(config, **PROTOCOLS["released"]), CAPTIONS)
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
    train.train(replace(config, **PROTOCOLS["released"]), tmp_path / "run", features=tmp_path / "features")
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

    monkeypatch.setattr(train, "evaluate", scripted)
    config = replace(config, select_on=select_on)
    assert train.train(config, tmp_path / "run")["best_epoch"] == best
