"""Options that several commands share: several values of one, and the settings of the protocols."""

from pathlib import Path
from unittest.mock import Mock

import pytest
from runs import CommandLine

from reference_model.cli.app import main
from reference_model.paper import PROTOCOLS
from reference_model.reproduction.grid import Run


def test_several_values_one_by_one(
    monkeypatch: pytest.MonkeyPatch, command_line: CommandLine, corpus: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("reference_model.reproduction.workers.train_all", train_all := Mock())
    monkeypatch.setattr("reference_model.reproduction.cost.estimate", lambda *_, **__: "")
    start = ["reproduce", "--data", corpus, "--dataset", "Synthetic", "--model", "tiny", "--out", tmp_path / "results"]
    rows = ["--tables", 1, "--tables", 2, "--losses", "nt_xent", "--losses", "triplet_sum"]
    command_line(*start, *rows, "--seeds=4", "--seeds", 5, "--seeds", 6, "--jobs", 2)
    runs: list[Run] = train_all.call_args.args[0]
    assert list(dict.fromkeys(run.config.seed for run in runs)) == [4, 5, 6]
    assert {run.config.loss for run in runs} == {"nt_xent", "triplet_sum"}
    assert {run.config.batch_size for run in runs} == {32, 128}  # of table 1, and of table 2 as well
    for values, message in (([], "Option '--seeds' requires an argument"), ([4, 5], "unexpected extra argument (5)")):
        assert message in command_line(*start, "--seeds", *values, status=2).output


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_the_help_of_a_setting_says_its_value_in_both_protocols(command: str) -> None:
    helps = {option.name: getattr(option, "help", "") for option in main.commands[command].params}
    for name, value in PROTOCOLS["paper"].items():
        paper, released = (
            str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
            for value in (value, PROTOCOLS["released"][name])
        )
        assert helps[name].endswith(f" paper: {paper}, released: {released}.")


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_the_factor_of_the_decay_is_no_option(command: str, command_line: CommandLine) -> None:
    assert "No such option" in command_line(command, "--decay-factor", 0.5, status=2).output
