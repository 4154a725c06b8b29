"""Help that teaches, and errors in one message."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from runs import CommandLine

from reference_model.cli.app import main


@pytest.mark.parametrize("command", ["", *sorted(main.commands)])
def test_help_of_every_command_explains_every_option(command: str, command_line: CommandLine) -> None:
    result = command_line(*command.split(), "--help")
    assert len(result.output) > 300
    if command:
        for option in main.commands[command].params:
            if isinstance(option, click.Argument):
                assert f"{option.human_readable_name} is" in result.output, f"{command} does not explain {option.name}"
            else:
                assert getattr(option, "help", None), f"{command} {option.name} has no help"


def test_wrong_input_ends_in_one_message(tmp_path: Path, corpus: Path, command_line: CommandLine) -> None:
    train = ["train", "--data", corpus, "--dataset", "Synthetic", "--clip-seconds", 0.5, "--experiment",
             "clotho-frozen-nt_xent", "--out", tmp_path / "run"]  # fmt: skip
    tiny = ["--model", "tiny"]
    for arguments, words in (
        ([*train, "--audio-checkpoint", "nowhere.pth"], "a PANNs checkpoint at nowhere.pth, got no file"),
        (train[:-4], "--encoders, --loss, got none; an experiment"),
        ([*train[:7], "--encoders", "frozen", "--loss", "nt_xent", *tiny], "--out, the run's folder, got none"),
        ([*train, *tiny, "--data", tmp_path, "--out", tmp_path / "other"], "the captions of the train split"),
        ([*train[:3], "--dataset", "Other", *train[7:], *tiny], "--clip-seconds for a data"),
        (["evaluate", "--run", tmp_path], "a run with a finished epoch in"),
        (["synthesize", "--out", tmp_path, "--seconds", 0.1], "at least 2 clips a split, 0.5 seconds"),
    ):
        result = command_line(*arguments, status=1)
        assert result.output.splitlines()[-1].startswith(f"Error: expected {words}")
        assert "Traceback" not in result.output


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[3]
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=root, check=False)


def test_as_a_program(tmp_path: Path) -> None:
    """Wrong input of a process ends in status 1 and one line."""
    done = python("-m", "reference_model", "evaluate", "--run", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: expected a run with a finished epoch")


def test_help_needs_no_heavy_library() -> None:
    """Commands import what they use themselves, so that the help and a wrong option are answered at once."""
    heavy = ("accelerate", "faiss", "matplotlib", "sklearn", "tensorboard", "transformers")
    code = f"import sys, reference_model.cli.app; print([name for name in {heavy} if name in sys.modules])"
    done = python("-c", code)
    assert done.stdout == "[]\n", done.stderr
