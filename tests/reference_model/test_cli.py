"""The command line: help that teaches, errors in one message, what is taken from the paper, and files to a table."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import click
import pytest
from locks import held
from runs import CommandLine

from reference_model import InputError
from reference_model.cli.app import main
from reference_model.config import ADDED_SETTINGS, Config
from reference_model.paper import PROTOCOLS
from reference_model.training import trainer

Seen = list[tuple[Config, Path]]


@pytest.mark.parametrize("command", ["", *sorted(main.commands)])
def test_help_of_every_command_explains_every_option(command: str, command_line: CommandLine) -> None:
    result = command_line(*command.split(), "--help")
    assert len(result.output) > 300
    for option in main.commands[command].params if command else []:
        if isinstance(option, click.Argument):
            assert f"{option.human_readable_name} is" in result.output, f"{command} does not explain {option.name}"
        else:
            assert getattr(option, "help", None), f"{command} {option.name} has no help"


def test_wrong_input_ends_in_one_message(tmp_path: Path, corpus: Path, command_line: CommandLine) -> None:
    data = ["--data", corpus, "--dataset", "Synthetic", "--clip-seconds", 0.5]
    train = ["train", *data, "--experiment", "clotho-frozen-nt_xent", "--out", tmp_path / "run"]
    tiny = ["--model", "tiny"]
    for arguments, words in (
        ([*train, "--audio-checkpoint", "nowhere.pth"], "a PANNs checkpoint at nowhere.pth, got no file"),
        (["train", *data], "--encoders, --loss, got none; an experiment"),
        ([*train, *tiny, "--train", "audio"], "--train audio with --encoders fine-tuned, got frozen: neither learns"),
        ([*train, *tiny, "--batch-size", 500], "at least one batch of 500 pairs, got 80"),
        ([*train, *tiny, "--data", tmp_path, "--out", tmp_path / "other"], "the captions of the train split"),
        (["reproduce", *data, *tiny, "--learning-rate", 0, "--out", tmp_path / "grid"], "learning_rate > 0, got 0.0"),
        (["evaluate", "--run", tmp_path], "a run with a finished epoch in"),
        (["synthesize", "--out", tmp_path, "--seconds", 0.1], "at least 2 clips a split, 0.5 to 300 seconds"),
        (["synthesize", "--out", tmp_path, "--seconds", "nan"], "at least 2 clips a split, 0.5 to 300 seconds"),
        (["synthesize", "--out", tmp_path, "--seconds", "inf"], "at least 2 clips a split, 0.5 to 300 seconds"),
        (["prepare", "--dataset", "Mine", "--raw", corpus, "--hold-out", "nan"], "--hold-out between 0 and 100"),
    ):
        result = command_line(*arguments, status=1)
        assert result.output.splitlines()[-1].startswith(f"Error: expected {words}")
        assert "Traceback" not in result.output
    assert not (tmp_path / "Synthetic").exists()


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("option", ["--hours", "--memory", "--checkpoint-minutes"])
def test_numbers_that_are_not_finite_are_refused(command_line: CommandLine, option: str, number: str) -> None:
    words = f"Invalid value for '{option}': {number} is not finite."
    assert words in command_line("reproduce", option, number, status=2).output


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=root, check=False)


def test_wrong_input_of_a_process_ends_in_status_1_and_one_line(tmp_path: Path) -> None:
    done = python("-m", "reference_model", "evaluate", "--run", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: expected a run with a finished epoch")


def test_help_needs_no_heavy_library() -> None:
    """Commands import what they use themselves, so that the help and a wrong option are answered at once."""
    heavy = ("accelerate", "faiss", "matplotlib", "sklearn", "tensorboard", "transformers")
    done = python("-c", f"import sys, reference_model.cli.app; print([n for n in {heavy} if n in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


# Settings that are given, and those that are not.


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_the_help_of_a_setting_says_its_value_in_both_protocols(command: str, command_line: CommandLine) -> None:
    helps = {option.name: getattr(option, "help", "") for option in main.commands[command].params}
    for name, value in PROTOCOLS["paper"].items():
        paper, released = (
            str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
            for value in (value, PROTOCOLS["released"][name])
        )
        if name == "direction_weights":
            paper, released = "1 1", "0.5 0.5 with nt_xent, 1 1 with others"
        assert helps[name].endswith(f" paper: {paper}, released: {released}.")
    assert "No such option" in command_line(command, "--decay-factor", 0.5, status=2).output  # the paper has one only


def test_several_values_one_by_one_and_by_default_both_tables_with_three_seeds(
    monkeypatch: pytest.MonkeyPatch, command_line: CommandLine, corpus: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("reference_model.reproduction.schedule.train_all", train_all := Mock())
    monkeypatch.setattr("reference_model.reproduction.cost.estimate", lambda *_, **__: "")
    start = ["reproduce", "--data", corpus, "--dataset", "Synthetic", "--model", "tiny", "--out", tmp_path / "results"]
    rows = ["--tables", 1, "--tables", 2, "--losses", "nt_xent", "--losses", "triplet_sum"]
    rows += ["--direction-weights", 1, 0.5]
    command_line(*start, *rows, "--seeds=4", "--seeds", 5, "--seeds", 6, "--jobs", 2)
    configs = [run.config for run in train_all.call_args.args[0]]
    assert {config.direction_weights for config in configs} == {(1, 0.5)}
    command_line(*start, *rows, "--plan")  # the stored settings are the same
    assert list(dict.fromkeys(config.seed for config in configs)) == [4, 5, 6]
    assert {config.loss for config in configs} == {"nt_xent", "triplet_sum"}
    assert {config.batch_size for config in configs} == {32, 128}  # of table 1, and of table 2 as well
    for values, message in (([], "Option '--seeds' requires an argument"), ([4, 5], "unexpected extra argument (5)")):
        assert message in command_line(*start, "--seeds", *values, status=2).output
    defaults = {option.name: option.default for option in main.commands["reproduce"].params}
    assert (defaults["seeds"], defaults["tables"]) == ((0, 1, 2), ("1", "2"))  # section 3.3: each run three times


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The configs and folders of the runs that train would train; it ends in an error instead."""
    seen: Seen = []

    def record(config: Config, run: Path, **_: object) -> None:
        seen.append((config, run))
        raise InputError("seen")

    monkeypatch.setattr(trainer, "train", record)
    return seen


def test_an_experiment_says_everything(command_line: CommandLine, seen: Seen) -> None:
    experiment = ["train", "--experiment", "clotho-frozen-triplet_weighted"]
    changes = ["--batch-size", 48, "--protocol", "released", "--dropout", 0, "--spec-augment", "no"]
    changes += ["--direction-weights", 1, 0, "--out", "there"]
    assert command_line(*experiment, "--seed", 2, status=1).stdout == ""
    command_line(*experiment, *changes, status=1)
    (plain, run), (changed, elsewhere) = seen
    assert (run, elsewhere) == (Path("runs/clotho-frozen-triplet_weighted-seed-2"), Path("there"))
    assert plain == Config(
        data="data", dataset="Clotho", clip_seconds=30.0, loss="triplet_weighted", encoders="frozen",
        model="full", audio_checkpoint="ResNet38_mAP=0.434.pth", text_encoder="bert-base-uncased", **ADDED_SETTINGS,
        batch_size=24, learning_rate=5e-5, epochs=50, decay_every=20,
        gradient_cache_micro_batch=None, seed=2, precision="no", workers=2, **PROTOCOLS["paper"],
    )  # fmt: skip
    released = {**PROTOCOLS["released"], "dropout": 0.0, "spec_augment": False, "direction_weights": (1, 0)}
    assert changed == replace(plain, batch_size=48, seed=0, **released)
    for option, value in (("--experiment", "clotho-frozen-arcface"), ("--frozen-mode", "maybe")):
        assert f"Invalid value for '{option}'" in command_line(*experiment, option, value, status=2).output


def of(dataset: str, encoders: str, loss: str, *more: object) -> list[object]:
    """The options that cannot be known, with an --out."""
    return ["train", "--dataset", dataset, "--encoders", encoders, "--loss", loss, "--out", "out", *more]


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
        of("Clotho", "frozen", "triplet_weighted_mined", "--batch-size", 8, "--epochs", 3),
        (8, 5e-5, 3),
        "learning rate 5e-05: the paper's, table 1, Clotho, frozen, Triplet-weighted, "
        "for it has no row of triplet_weighted_mined",
    ),
    (
        of("Mine", "frozen", "triplet_weighted_mined", "--learning-rate", 0.5, "--clip-seconds", 2),
        (32, 0.5, 50),
        "batch size 32: the paper's, table 1, AudioCaps, frozen, Triplet-weighted, "
        "for it has no row of Mine and triplet_weighted_mined; epochs 50: section 3.2",
    ),
    (
        of("Clotho", "frozen", "nt_xent", "--batch-size", 9, "--learning-rate", 0.25),
        (9, 0.25, 50),
        "epochs 50: section 3.2",
    ),
    (of("Clotho", "frozen", "nt_xent", "--batch-size", 9, "--learning-rate", 0.25, "--epochs", 7), (9, 0.25, 7), ""),
]


@pytest.mark.parametrize("given, expected, line", TAKEN)
def test_what_is_not_given_is_the_papers_and_is_printed_once(
    command_line: CommandLine,
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
    given: list[object],
    expected: tuple[int, float, int],
    line: str,
) -> None:
    assert command_line(*given, status=1).stdout.splitlines() == [line] * bool(line)
    ((config, run),) = seen
    assert (config.batch_size, config.learning_rate, config.epochs) == expected
    assert [config.dataset, config.encoders, config.loss, str(run)] == given[2:9:2]
    monkeypatch.setenv("RANK", "1")  # the second process of torchrun
    assert command_line(*given, status=1).stdout == ""
    assert len(seen) == 2


@pytest.mark.parametrize("missing", ["--dataset", "--encoders", "--loss", "--out", "--clip-seconds"])
def test_what_cannot_be_known_is_required(command_line: CommandLine, seen: Seen, missing: str) -> None:
    given = of("Mine", "frozen", "nt_xent", "--clip-seconds", 1)
    where = given.index(missing)
    result = command_line(*given[:where], *given[where + 2 :], status=1)
    assert result.output.startswith(f"Error: expected {missing}")
    assert "got none" in result.output
    assert not seen


# From files to a table: each command names the next one.


def test_data_are_made_and_prepared(tmp_path: Path, command_line: CommandLine) -> None:
    for seconds, length in ((0.5, " --clip-seconds 0.5"), (1.5, "")):
        raw, data = tmp_path / str(seconds), tmp_path / "data"
        done = command_line("synthesize", "--out", raw, "--train", 2, "--val", 2, "--test", 2, "--seconds", seconds)
        assert f"{raw / 'Synthetic'} holds 2 + 2 + 2 clips" in done.output
        assert f"reproduce --data {raw} --dataset Synthetic --model tiny{length} ..." in done.output
    for dataset, of_the_paper in (("Clotho", True), ("Mine", False)):
        places = ["--raw", raw / "Synthetic", "--data", data, "--workers", 0]
        done = command_line("prepare", "--dataset", dataset, *places)
        assert f"{data / dataset} is ready" in done.output
        experiment = f"next: python -m reference_model train --experiment clotho-frozen-triplet_sum --data {data}"
        assert (experiment in done.output) == of_the_paper


def test_from_files_to_the_table(tmp_path: Path, command_line: CommandLine) -> None:
    data, out, run = tmp_path / "data", tmp_path / "results", tmp_path / "run"
    command_line("synthesize", "--out", data, "--train", 10, "--val", 4, "--test", 4, "--seconds", 0.5)
    settings = ["--data", data, "--dataset", "Synthetic", "--model", "tiny", "--clip-seconds", 0.5, "--epochs", 1,
                "--encoders", "frozen", "--learning-rate", 1e-3, "--workers", 0]  # fmt: skip
    trained = command_line("train", *settings, "--batch-size", 16, "--loss", "nt_xent", "--out", run)
    assert "test, 4 clips: text to audio R@1/5/10" in trained.output
    evaluated = command_line("evaluate", "--run", run)
    assert json.loads(evaluated.stdout) == json.loads((run / "metrics.json").read_text())["test"]
    rows = ["--tables", 1, "--losses", "nt_xent", "--seeds", 3]
    table = command_line("reproduce", *settings, *rows, "--out", out)
    assert "\n| Synthetic | No | NT-Xent | " in table.output
    assert "Learning rate 0.001." in table.output
    assert f"{out}/report.html shows it all" in table.output
    assert json.loads((out / "runs/synthetic-frozen-nt_xent-seed-3/metrics.json").read_text())["clips"]["test"] == 4
    other = out / "runs/synthetic-frozen-nt_xent-seed-3/test_embeddings.safetensors"
    place = ["--data", data, "--dataset", "Synthetic", "--out", out / "others/mine.json"]
    command_line("evaluate", "--embeddings", other, *place, "--name", "Mine")
    command_line("report", "--results", out)
    (row,) = [line for line in (out / "table_1.md").read_text().splitlines() if "| Mine†, Synthetic |" in line]
    assert row.count(" | ") == 8
    before = (out / "report.html").read_text()
    assert "<td>Mine†, Synthetic</td>" in before
    assert "<td>Mine</td><td>another model</td>" in before
    assert "mAP@10 " in before
    again = command_line("report", "--results", out)
    assert "report.html opens in any browser" in again.output
    assert (out / "report.html").read_text() == before
    command_line("report", "--results", run, status=1)


@pytest.mark.parametrize("command", ["synthesize", "prepare", "pretrain"])
def test_one_command_at_a_time_in_a_folder(
    tmp_path: Path, corpus: Path, command_line: CommandLine, command: str
) -> None:
    folder, arguments = {
        "synthesize": ("Synthetic", ["--out", tmp_path, "--train", 2, "--val", 2, "--test", 2, "--seconds", 0.5]),
        "prepare": ("Mine", ["--dataset", "Mine", "--raw", corpus / "Synthetic", "--data", tmp_path, "--workers", 0]),
        "pretrain": ("out", ["--data", corpus, "--out", tmp_path / "out", "--audio-epochs", 1, "--text-epochs", 1]),
    }[command]
    (tmp_path / folder).mkdir()  # as the other process has just made it
    with held(tmp_path / folder) as process:
        refused = command_line(command, *arguments, status=1).output.splitlines()[-1]
        assert refused.startswith(f"Error: expected {tmp_path / folder} for this run alone, got one that is under way")
        assert str(process.pid) in refused
        assert {path.name for path in (tmp_path / folder).iterdir()} == {".lock", ".lock.guard"}
    command_line(command, *arguments)
    assert not list((tmp_path / folder).glob(".*"))
