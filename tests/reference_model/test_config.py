"""The eight settings in which the paper's text and its published code differ, each seen at work; and the named rows."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from click.testing import Result
from torch import Tensor, nn

from crossmodal_losses import (
    cosine_similarity,
    nt_xent,
    triplet_max,
    triplet_sum,
    triplet_weighted,
    triplet_weighted_mined,
)
from reference_model import InputError
from reference_model.config import Config
from reference_model.evaluation.evaluate import evaluate, evaluate_run
from reference_model.models.dual_encoder import new_model
from reference_model.models.logmel import SpecAugment
from reference_model.models.resnet38 import BasicBlock, ResNet38
from reference_model.paper import PAPER_TABLES, PROTOCOLS, experiments
from reference_model.search.retriever import Retriever
from reference_model.training import trainer as train
from reference_model.training.step import Step

CommandLine = Callable[..., Result]
CAPTIONS = ["A low hum", "A high hiss, then a click", "Rain"]


def test_what_the_protocols_say() -> None:
    """Left what the paper's text says or leaves to the encoders, right what its published code does."""
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
    paper, released = PROTOCOLS["paper"], PROTOCOLS["released"]
    assert paper.keys() == released.keys()
    assert all(paper[name] != released[name] for name in paper)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dropout": 1.0}, r"expected dropout in \[0, 1\), got 1.0"),
        ({"clip_norm": -1.0}, "expected clip_norm >= 0, where 0 is no clipping, got -1.0"),
        ({"nt_xent_factor": 0.0}, "expected nt_xent_factor > 0, got 0.0"),
        ({"frozen_mode": "off"}, "expected frozen_mode to be one of eval, train, got off"),
        ({"weighted_rule": "mine"}, "expected weighted_rule to be one of equation-6, mined, got mine"),
        ({"select_on": "both"}, "expected select_on to be one of both-directions, text-to-audio, got both"),
    ],
)
def test_bad_settings_are_refused(config: Config, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(config, **change)
    with pytest.raises(TypeError):
        Config(**PROTOCOLS["paper"])  # none has a default


def test_stripes_are_erased_in_training_and_for_every_clip_on_its_own() -> None:
    torch.manual_seed(0)
    erase, whole = SpecAugment(), torch.ones(200, 1, 300, 64)
    assert torch.equal(erase.eval()(whole), whole)
    erased = erase.train()(whole)[:, 0] == 0
    frames, bins = erased.all(2), erased.all(1)  # [clips, T], [clips, F]
    assert torch.equal(erased, frames[:, :, None] | bins[:, None, :])  # stripes, and nothing else
    assert 64 <= frames.sum(1).max() <= 2 * 63
    assert 8 <= bins.sum(1).max() <= 2 * 7
    assert frames.sum(1).float().mean() == pytest.approx(2 * 31.5, rel=0.15)  # less where two stripes overlap
    assert bins.sum(1).float().mean() == pytest.approx(2 * 3.5, rel=0.15)
    assert len({tuple(row.tolist()) for row in frames}) > 190


def test_the_stripes_stand_after_bn0() -> None:
    torch.manual_seed(0)
    encoder, waveforms = ResNet38(width=1 / 16, spec_augment=True).train(), torch.randn(4, 32_000)
    seen: dict[str, Tensor] = {}
    encoder.spec_augment.register_forward_hook(lambda _, inputs, output: seen.update(before=inputs[0], after=output))
    encoder(waveforms)
    decibels = encoder.logmel(waveforms)
    normalised = (decibels - decibels.mean((0, 1))) / decibels.var((0, 1), unbiased=False).add(1e-5).sqrt()
    torch.testing.assert_close(seen["before"][:, 0], normalised, rtol=1e-3, atol=1e-3)
    assert (seen["after"] == 0).any()
    assert isinstance(ResNet38(width=1 / 16).spec_augment, nn.Identity)


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
    """In the published code they stay in train mode: no weight moves, statistics and dropout do."""
    config = replace(config, encoders="frozen", epochs=1)
    torch.manual_seed(0)
    constant, _ = new_model(config, CAPTIONS)
    drifting, _ = new_model(replace(config, **PROTOCOLS["released"]), CAPTIONS)
    waveforms = torch.randn(4, 16_000)
    for model, drifts in ((constant, False), (drifting, True)):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        first, second = model.encode_audio(waveforms), model.encode_audio(waveforms)
        assert torch.equal(first, second) != drifts
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert bool(changed) == drifts
        assert all(name.split(".")[-1].startswith(("running_", "num_batches")) for name in changed)
        assert changed <= model.changing_state().keys()
    train.train(replace(config, **PROTOCOLS["released"]), tmp_path / "run", features=tmp_path / "features")
    assert not (tmp_path / "features").exists()


class Given(nn.Module):
    """In place of the dual encoder: embeddings that are parameters."""

    def __init__(self, pairs: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.x, self.y = (nn.Parameter(torch.randn(pairs, 16)) for _ in range(2))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y


def stepped(config: Config, ids: Tensor) -> tuple[Tensor, Step]:
    step = Step(Given(len(ids)), config, Accelerator(cpu=True))
    return step({"audio": {}, "text": {}, "ids": ids}), step


IDS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4])
LOSSES_OF_S: dict[str, Callable[[Tensor], Tensor]] = {
    "triplet_sum": triplet_sum,
    "triplet_max": triplet_max,
    "triplet_weighted": triplet_weighted,
    "nt_xent": nt_xent,
}


@pytest.mark.parametrize("loss", LOSSES_OF_S)
def test_the_loss_is_as_the_protocol_says(config: Config, loss: str) -> None:
    given = Given(len(IDS))
    S = cosine_similarity(given.x, given.y)
    paper, _ = stepped(replace(config, loss=loss), IDS)
    torch.testing.assert_close(paper, LOSSES_OF_S[loss](S).detach())
    released, _ = stepped(replace(config, loss=loss, **PROTOCOLS["released"]), IDS)
    expected = {
        "triplet_sum": triplet_sum(S, ids=IDS),
        "triplet_max": triplet_max(S, ids=IDS),
        "triplet_weighted": triplet_weighted_mined(S, ids=IDS),
        "nt_xent": nt_xent(S) / 2,
    }[loss]
    torch.testing.assert_close(released, expected.detach())
    assert not torch.isclose(paper, released)


def test_the_update_is_adams_with_its_usual_settings(config: Config) -> None:
    """Section 3.2 says Adam, and nothing about its settings: betas 0.9 and 0.999, eps 1e-8, no weight decay."""
    batch = {"audio": {}, "text": {}, "ids": torch.arange(4)}
    step, given = Step(module := Given(4), replace(config, learning_rate=1e-2), Accelerator(cpu=True)), Given(4)
    assert type(step.optimizer) is torch.optim.Adam
    (group,) = step.optimizer.param_groups
    settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")}
    assert settings == {
        "lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "maximize": False
    }  # fmt: skip
    # By hand, three steps long.
    weights = [given.x.detach().clone(), given.y.detach().clone()]
    mean, square = [torch.zeros(4, 16) for _ in weights], [torch.zeros(4, 16) for _ in weights]
    for t in (1, 2, 3):
        step(batch)
        for weight in weights:
            weight.requires_grad_()
        gradients = torch.autograd.grad(nt_xent(cosine_similarity(*weights)), weights)
        for k, gradient in enumerate(gradients):
            mean[k] = 0.9 * mean[k] + 0.1 * gradient
            square[k] = 0.999 * square[k] + 0.001 * gradient**2
            update = mean[k] / (1 - 0.9**t) / ((square[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            weights[k] = (weights[k] - 1e-2 * update).detach()
    torch.testing.assert_close([module.x.detach(), module.y.detach()], weights, rtol=1e-4, atol=1e-5)


def test_large_gradients_are_clipped_before_the_update(config: Config) -> None:
    def gradient_norm(**settings: Any) -> float:
        changed = replace(config, loss="triplet_sum", **settings)
        step = Step(Given(8), changed, Accelerator(cpu=True))
        norms: list[float] = []

        def note(*_: Any) -> None:
            norms.append(float(torch.cat([p.grad.flatten() for p in step.parameters if p.grad is not None]).norm()))

        step.optimizer.register_step_pre_hook(note)
        step({"audio": {}, "text": {}, "ids": torch.arange(8)})
        return norms[0]

    unclipped = gradient_norm()
    assert unclipped > 0.5
    assert gradient_norm(clip_norm=0.5) == pytest.approx(0.5, rel=1e-4)
    assert gradient_norm(clip_norm=2 * unclipped) == pytest.approx(unclipped)


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


def test_a_setting_that_is_unknown_or_missing_is_refused(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for change, differs in (({"colour": 1}, "colour"), ({}, "dropout")):
        settings = config.as_dict()
        settings |= change
        if not change:
            del settings["dropout"]
        path.write_text(json.dumps(settings))
        with pytest.raises(InputError, match=rf"expected the settings of this version .* that differ: {differs}"):
            Config.read(path)
    path.write_text(json.dumps({**config.as_dict(), "protocol": "paper"}))
    with pytest.raises(InputError, match=r"expected the settings of this version .* that differ: protocol"):
        Config.read(path)
    path.write_text('"paper"')
    with pytest.raises(InputError, match=r"expected the settings of this version .* that differ: .*str"):
        Config.read(path)
    path.write_text(json.dumps({**config.as_dict(), "batch_size": "16"}))
    with pytest.raises(InputError, match=r"expected the settings of a run in .*, got: "):
        Config.read(path)
    path.write_text("{")
    with pytest.raises(InputError, match="expected the settings of a run as JSON in"):
        Config.read(path)
    path.write_text(json.dumps(config.as_dict()))
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
        spec_augment=True, dropout=0.2, clip_norm=2.0, nt_xent_factor=0.5, weighted_rule="mined", mask_same_clip=True,
        select_on="text-to-audio", model="tiny", audio_checkpoint=None, bert=None, batch_size=24, learning_rate=1e-4,
        epochs=50, decay_every=20, gradient_cache_micro_batch=None, seed=2, precision="no", workers=2,
    )  # fmt: skip
    for older, differs in (
        (OLDER.replace('"decay_factor": 0.1', '"decay_factor": 0.5'), "decay_factor"),
        (OLDER.replace('"dropout": 0.2, ', ""), "dropout"),
        (OLDER.replace('"epochs": 50,', ""), "epochs"),
    ):
        path.write_text(older)
        with pytest.raises(InputError, match=f"expected the settings of this version .* that differ: {differs}$"):
            Config.read(path)


def test_a_run_in_the_older_form_is_evaluated_searched_and_not_repeated(
    config: Config, trained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    settings = replace(config, epochs=1).as_dict()
    nested = {name: settings.pop(name) for name in PROTOCOLS["paper"]}
    (run / "config.json").write_text(json.dumps({**settings, "protocol": nested, "decay_factor": 0.1}))
    metrics = json.loads((run / "metrics.json").read_text())
    assert train.train(replace(config, epochs=1), run) == metrics
    assert evaluate_run(run, split="test", data=None) == metrics["test"]
    assert Retriever.from_pretrained(run).config == replace(config, epochs=1)
    with pytest.raises(InputError, match=r"got a run of another .epochs 1 there, 2 here"):
        train.train(config, run)


def test_every_row_of_the_tables_is_an_experiment() -> None:
    tables = json.loads(PAPER_TABLES.read_text())
    assert len(tables["table_1"]) == 16
    assert len(tables["table_2"]) == 8
    named = experiments()
    assert len(named) == 16 + 4  # half of table 2 repeats table 1
    for row in (*tables["table_1"], *tables["table_2"]):
        name = f"{row['dataset'].lower()}-{row['encoders']}-{row['loss']}"
        name += "-batch-128" if row["batch_size"] == 128 else ""
        assert named[name] == {key: row[key] for key in named[name]}
    assert {name for name, settings in named.items() if settings["learning_rate"] == 5e-5} == {
        "clotho-frozen-triplet_weighted", "clotho-fine-tuned-triplet_max", "clotho-fine-tuned-triplet_weighted",
    }  # fmt: skip
    assert {settings["learning_rate"] for settings in named.values()} == {1e-4, 5e-5}
    assert {settings["batch_size"] for name, settings in named.items() if "clotho" in name} == {24}
    of_audiocaps = {name: settings["batch_size"] for name, settings in named.items() if "audiocaps" in name}
    assert of_audiocaps == {name: 128 if name.endswith("-batch-128") else 32 for name in of_audiocaps}
    assert list(of_audiocaps.values()).count(128) == 4


LOSSES_OF_THE_TABLES = ("triplet_sum", "triplet_max", "triplet_weighted", "nt_xent")
# Sums over the six recalls of each row, means and standard deviations, added up from the published tables.
SUMS: dict[tuple[str, str, int], list[tuple[float, float]]] = {
    ("AudioCaps", "frozen", 32): [(267.0, 3.8), (285.2, 4.1), (289.3, 3.0), (281.6, 2.5)],
    ("AudioCaps", "fine-tuned", 32): [(368.7, 5.6), (374.1, 4.1), (375.1, 6.8), (381.5, 3.5)],
    ("Clotho", "frozen", 24): [(135.2, 2.6), (136.5, 3.9), (126.3, 1.6), (146.3, 2.5)],
    ("Clotho", "fine-tuned", 24): [(204.4, 4.6), (201.5, 6.5), (206.9, 2.0), (204.8, 3.1)],
    ("AudioCaps", "frozen", 128): [(263.5, 4.8), (221.6, 3.5), (181.1, 7.6), (280.9, 4.3)],
}
# And over the rows of a table, column by column.
COLUMNS: dict[str, list[tuple[float, float]]] = {
    "table_1": [(294.7, 5.9), (716.6, 7.2), (929.5, 6.5), (336.3, 12.6), (751.7, 14.7), (955.6, 13.3)],
    "table_2": [(134.6, 3.0), (369.8, 3.7), (494.4, 3.6), (151.6, 7.0), (396.6, 9.0), (523.2, 7.3)],
}


def recalls(row: dict[str, Any]) -> list[tuple[float, float]]:
    """Means and standard deviations, in the order of the columns."""
    cells = [row[way][f"R@{k}"] for way in ("text_to_audio", "audio_to_text") for k in (1, 5, 10)]
    return [(cell["mean"], cell["std"]) for cell in cells]


def added(cells: list[tuple[float, float]]) -> tuple[float, float]:
    return round(sum(mean for mean, _ in cells), 1), round(sum(std for _, std in cells), 1)


def test_the_published_numbers_add_up() -> None:
    tables = json.loads(PAPER_TABLES.read_text())
    of_table_1, of_table_2 = list(SUMS)[:4], [("AudioCaps", "frozen", 32), ("AudioCaps", "frozen", 128)]
    for table, blocks in (("table_1", of_table_1), ("table_2", of_table_2)):
        rows = tables[table]
        expected = [(*block, loss) for block in blocks for loss in LOSSES_OF_THE_TABLES]
        assert [(row["dataset"], row["encoders"], row["batch_size"], row["loss"]) for row in rows] == expected
        assert [added(recalls(row)) for row in rows] == [sums for block in blocks for sums in SUMS[block]]
        assert [added(list(column)) for column in zip(*map(recalls, rows), strict=True)] == COLUMNS[table]


def test_half_of_table_2_repeats_table_1() -> None:
    tables = json.loads(PAPER_TABLES.read_text())
    assert tables["table_2"][:4] == tables["table_1"][:4]
    assert {row["learning_rate"] for row in tables["table_2"]} == {1e-4}


def test_an_experiment_says_everything(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, config: Config
) -> None:
    seen: list[tuple[Config, Path]] = []

    def record(config: Config, run: Path, **_: object) -> None:
        seen.append((config, run))
        raise InputError("seen")

    monkeypatch.setattr(train, "train", record)
    command_line("train", "--experiment", "clotho-frozen-triplet_weighted", "--seed", 2)
    command_line("train", "--experiment", "clotho-frozen-triplet_weighted", "--batch-size", 48, "--protocol",
                 "released", "--dropout", 0, "--spec-augment", "no", "--out", "elsewhere")  # fmt: skip
    (plain, run), (changed, elsewhere) = seen
    assert run == Path("runs/clotho-frozen-triplet_weighted-seed-2")
    assert elsewhere == Path("elsewhere")
    assert plain == Config(
        data="data", dataset="Clotho", clip_seconds=30.0, loss="triplet_weighted", encoders="frozen",
        model="full", audio_checkpoint="ResNet38_mAP=0.434.pth", bert="bert-base-uncased",
        batch_size=24, learning_rate=5e-5, epochs=50, decay_every=20,
        gradient_cache_micro_batch=None, seed=2, precision="no", workers=2, **PROTOCOLS["paper"],
    )  # fmt: skip
    assert changed == replace(
        plain, batch_size=48, seed=0, **{**PROTOCOLS["released"], "dropout": 0.0, "spec_augment": False}
    )
    for arguments, words in (
        (["--dataset", "Clotho"], "Error: expected --encoders, --loss, got none"),
        (["--experiment", "clotho-frozen-arcface"], "Invalid value for '--experiment'"),
        (["--experiment", "clotho-frozen-nt_xent", "--frozen-mode", "maybe"], "Invalid value for '--frozen-mode'"),
    ):
        assert words in command_line("train", *arguments).output
