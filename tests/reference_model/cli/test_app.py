"""Help that teaches, errors in one message, and the whole way from files to a table."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from reference_model.cli.app import main
from reference_model.reproduction.grid import Grid

CommandLine = Callable[..., Result]


@pytest.mark.parametrize("command", ["", *sorted(main.commands)])
def test_help_of_every_command_explains_every_option(command: str, command_line: CommandLine) -> None:
    result = command_line(*command.split(), "--help")
    assert result.exit_code == 0
    assert len(result.output) > 300
    if command:
        for option in main.commands[command].params:
            if option.name == "help":
                continue
            if isinstance(option, click.Argument):
                assert f"{option.human_readable_name} is" in result.output, f"{command} does not explain {option.name}"
                continue
            assert getattr(option, "help", None), f"{command} {option.name} has no help"


def test_from_files_to_the_table(tmp_path: Path, command_line: CommandLine) -> None:
    data, out, run = tmp_path / "data", tmp_path / "results", tmp_path / "run"
    made = command_line("synthesize", "--out", data, "--train", 10, "--val", 4, "--test", 4, "--seconds", 0.5)
    assert made.exit_code == 0, made.output
    settings = ["--data", data, "--dataset", "Synthetic", "--model", "tiny", "--clip-seconds", 0.5, "--epochs", 1,
                "--encoders", "frozen", "--batch-size", 16, "--learning-rate", 1e-3, "--workers", 0]  # fmt: skip
    trained = command_line("train", *settings, "--loss", "nt_xent", "--out", run)
    assert trained.exit_code == 0, trained.output
    assert "test, 4 clips: text to audio R@1/5/10" in trained.output
    evaluated = command_line("evaluate", "--run", run)
    assert json.loads(evaluated.stdout) == json.loads((run / "metrics.json").read_text())["test"]
    of_all = [*settings[: settings.index("--batch-size")], "--learning-rate", 0.001, "--workers", 0, "--out", out]
    table = command_line("reproduce", *of_all, "--tables", 1, "--losses", "triplet_sum", "nt_xent", "--seeds", 3)
    assert table.exit_code == 0, table.output
    assert "\n| Synthetic | No | Triplet-sum | " in table.output
    assert "Learning rate 0.001." in table.output
    assert f"{out}/report.html shows it all" in table.output
    assert json.loads((out / "runs/synthetic-frozen-nt_xent-seed-3/metrics.json").read_text())["clips"]["test"] == 4
    before = (out / "report.html").read_text()
    again = command_line("report", "--results", out)
    assert again.exit_code == 0, again.output
    assert "report.html opens in any browser" in again.output
    assert (out / "report.html").read_text() == before
    assert command_line("report", "--results", run).exit_code == 1


def test_several_values_at_once_or_one_by_one(
    monkeypatch: pytest.MonkeyPatch, command_line: CommandLine, corpus: Path, tmp_path: Path
) -> None:
    seen: list[Grid] = []

    def record(grid: Grid, out: Path, **_: object) -> None:
        seen.append(grid)

    monkeypatch.setattr("reference_model.reproduction.workers.reproduce", record)
    monkeypatch.setattr("reference_model.reproduction.workers.estimate", lambda *_, **__: "")
    start = ["reproduce", "--data", corpus, "--dataset", "Synthetic", "--model", "tiny", "--tables", 1]
    for k, seeds in enumerate(
        (["--seeds", 4, 5, 6], ["--seeds", 4, "--seeds", 5, "--seeds", 6], ["--seeds=4", "--seeds", 5, 6])
    ):
        out = ("--out", tmp_path / str(k), "--jobs", 2)
        done = command_line(*start, *seeds, "--losses", "nt_xent", "triplet_sum", *out)
        assert done.exit_code == 0, done.output
        assert seen[-1].seeds == [4, 5, 6]
        assert {row["loss"] for row in seen[-1].experiments.values()} == {"nt_xent", "triplet_sum"}
    refused = command_line(*start, "--seeds")
    assert refused.exit_code == 2
    assert "Option '--seeds' requires an argument" in refused.output


def test_by_default_both_tables_with_three_seeds() -> None:
    """Section 3.3: all experiments are repeated three times."""
    defaults = {option.name: option.default for option in main.commands["reproduce"].params}
    assert defaults["seeds"] == (0, 1, 2)
    assert defaults["tables"] == ("1", "2")


def test_wrong_input_ends_in_one_message(tmp_path: Path, corpus: Path, command_line: CommandLine) -> None:
    train = ["train", "--data", corpus, "--dataset", "Synthetic", "--clip-seconds", 0.5, "--experiment",
             "clotho-frozen-nt_xent", "--out", tmp_path / "run"]  # fmt: skip
    for arguments, words in (
        (
            [*train, "--audio-checkpoint", "nowhere.pth"],
            "Error: expected a PANNs checkpoint at nowhere.pth, got no file",
        ),
        (train[:-4], "Error: expected --encoders, --loss, got none; an experiment"),
        (
            [
                *train[:5],
                "--encoders",
                "frozen",
                "--loss",
                "nt_xent",
                "--batch-size",
                8,
                "--learning-rate",
                1,
                "--model",
                "tiny",
                "--clip-seconds",
                0.5,
            ],
            "Error: expected --out, the run's folder, got none",
        ),
        (
            [*train, "--model", "tiny", "--data", tmp_path, "--out", tmp_path / "other"],
            "Error: expected the captions of the train split",
        ),
        (
            [*train[:3], "--dataset", "Other", *train[7:], "--model", "tiny"],
            "Error: expected --clip-seconds for a data",
        ),
        (["evaluate", "--run", tmp_path], "Error: expected a run with a finished epoch in"),
        (
            ["synthesize", "--out", tmp_path, "--seconds", 0.1],
            "Error: expected at least 2 clips a split, 0.5 seconds",
        ),
    ):
        result = command_line(*arguments)
        assert result.exit_code == 1, result.output
        assert result.output.splitlines()[-1].startswith(words)
        assert "Traceback" not in result.output


def test_as_a_program(tmp_path: Path) -> None:
    """In a process of its own, where bad input must end in status 1 and one line."""
    program = [sys.executable, "-m", "reference_model"]
    done = subprocess.run(
        [*program, "evaluate", "--run", str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: expected a run with a finished epoch")
