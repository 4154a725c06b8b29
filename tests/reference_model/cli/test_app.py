"""Help that teaches, and errors in one message."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from reference_model.cli.app import main

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
            [*train[:7], "--encoders", "frozen", "--loss", "nt_xent", "--model", "tiny"],
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
        (["synthesize", "--out", tmp_path, "--seconds", 0.1], "Error: expected at least 2 clips a split, 0.5 seconds"),
    ):
        result = command_line(*arguments)
        assert result.exit_code == 1, result.output
        assert result.output.splitlines()[-1].startswith(words)
        assert "Traceback" not in result.output


def test_as_a_program(tmp_path: Path) -> None:
    """Wrong input of a process ends in status 1 and one line."""
    program = [sys.executable, "-m", "reference_model"]
    done = subprocess.run(
        [*program, "evaluate", "--run", str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: expected a run with a finished epoch")


def test_help_needs_no_heavy_library() -> None:
    """Commands import what they use themselves, so that the help and a wrong option are answered at once."""
    heavy = ("accelerate", "faiss", "matplotlib", "sklearn", "tensorboard", "transformers")
    code = f"import sys, reference_model.cli.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout == "[]\n", done.stderr
