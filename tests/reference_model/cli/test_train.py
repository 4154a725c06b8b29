"""The command train: named experiments, the paper's settings for what is not given, and errors."""

from dataclasses import replace
from pathlib import Path

import pytest
from runs import CommandLine

from reference_model import InputError
from reference_model.config import Config
from reference_model.paper import PROTOCOLS
from reference_model.training import trainer as train

Seen = list[tuple[Config, Path]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The configs and folders of the runs that train would train; it ends in an error instead."""
    seen: Seen = []

    def record(config: Config, run: Path, **_: object) -> None:
        seen.append((config, run))
        raise InputError("seen")

    monkeypatch.setattr(train, "train", record)
    return seen


def test_an_experiment_says_everything(command_line: CommandLine, seen: Seen) -> None:
    command_line("train", "--experiment", "clotho-frozen-triplet_weighted", "--seed", 2, status=1)
    command_line("train", "--experiment", "clotho-frozen-triplet_weighted", "--batch-size", 48, "--protocol",
                 "released", "--dropout", 0, "--spec-augment", "no", "--out", "elsewhere", status=1)  # fmt: skip
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
    for arguments, status, words in (
        (["--dataset", "Clotho"], 1, "Error: expected --encoders, --loss, got none"),
        (["--experiment", "clotho-frozen-arcface"], 2, "Invalid value for '--experiment'"),
        (["--experiment", "clotho-frozen-nt_xent", "--frozen-mode", "maybe"], 2, "Invalid value for '--frozen-mode'"),
    ):
        assert words in command_line("train", *arguments, status=status).output


def of(dataset: str, encoders: str, loss: str) -> list[str]:
    """The options that cannot be known, with an --out."""
    return ["--dataset", dataset, "--encoders", encoders, "--loss", loss, "--out", "out"]


# What is given, then the batch size, learning rate and epochs of the run, and the line that says where they are from.
TAKEN = [
    (
        of("AudioCaps", "frozen", "nt_xent"),
        (32, 1e-4, 50),
        "batch size 32, learning rate 0.0001: the paper's, table 1, AudioCaps, frozen, NT-Xent; epochs 50: section 3.2",
    ),
    (
        of("Clotho", "fine-tuned", "triplet_max"),  # with a star in table 1
        (24, 5e-5, 50),
        "batch size 24, learning rate 5e-05: the paper's, table 1, Clotho, fine-tuned, Triplet-max; "
        "epochs 50: section 3.2",
    ),
    (
        of("Synthetic", "frozen", "triplet_sum"),
        (32, 1e-4, 50),
        "batch size 32, learning rate 0.0001: the paper's, table 1, AudioCaps, frozen, Triplet-sum, "
        "for it has no row of Synthetic; epochs 50: section 3.2",
    ),
    (
        [*of("Clotho", "frozen", "triplet_weighted_mined"), "--batch-size", "8", "--epochs", "3"],
        (8, 5e-5, 3),
        "learning rate 5e-05: the paper's, table 1, Clotho, frozen, Triplet-weighted, "
        "for it has no row of triplet_weighted_mined",
    ),
    (
        [*of("Mine", "frozen", "triplet_weighted_mined"), "--learning-rate", "0.5", "--clip-seconds", "2"],
        (32, 0.5, 50),
        "batch size 32: the paper's, table 1, AudioCaps, frozen, Triplet-weighted, "
        "for it has no row of Mine and triplet_weighted_mined; epochs 50: section 3.2",
    ),
    (
        [*of("Clotho", "frozen", "nt_xent"), "--batch-size", "9", "--learning-rate", "0.25"],
        (9, 0.25, 50),
        "epochs 50: section 3.2",
    ),
]


@pytest.mark.parametrize("given, expected, line", TAKEN)
def test_what_is_not_given_is_the_papers_and_is_printed(
    command_line: CommandLine, seen: Seen, given: list[str], expected: tuple[int, float, int], line: str
) -> None:
    result = command_line("train", *given, status=1)
    ((config, run),) = seen
    assert (config.batch_size, config.learning_rate, config.epochs) == expected
    assert [config.dataset, config.encoders, config.loss, str(run)] == given[1:8:2]
    assert result.stdout.splitlines()[0] == line


def test_nothing_is_printed_where_everything_was_given(
    command_line: CommandLine, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_given = ["--batch-size", 9, "--learning-rate", 0.25, "--epochs", 50]
    assert command_line("train", *of("Clotho", "frozen", "nt_xent"), *all_given, status=1).stdout == ""
    assert command_line("train", "--experiment", "clotho-frozen-nt_xent", status=1).stdout == ""
    monkeypatch.setenv("RANK", "1")  # the second process of torchrun; the first prints it
    assert command_line("train", *of("Clotho", "frozen", "nt_xent"), status=1).stdout == ""
    assert len(seen) == 3


@pytest.mark.parametrize("missing", ["--dataset", "--encoders", "--loss", "--out", "--clip-seconds"])
def test_what_cannot_be_known_is_required(command_line: CommandLine, seen: Seen, missing: str) -> None:
    given = [*of("Mine", "frozen", "nt_xent"), "--clip-seconds", "1"]
    where = given.index(missing)
    result = command_line("train", *given[:where], *given[where + 2 :], status=1)
    assert result.output.startswith(f"Error: expected {missing}")
    assert "got none" in result.output
    assert not seen
