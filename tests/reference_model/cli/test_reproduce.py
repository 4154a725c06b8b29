"""The commands reproduce and report: from files to a table, and the defaults."""

import json
from pathlib import Path

from runs import CommandLine

from reference_model.cli.app import main


def test_from_files_to_the_table(tmp_path: Path, command_line: CommandLine) -> None:
    data, out, run = tmp_path / "data", tmp_path / "results", tmp_path / "run"
    command_line("synthesize", "--out", data, "--train", 10, "--val", 4, "--test", 4, "--seconds", 0.5)
    settings = ["--data", data, "--dataset", "Synthetic", "--model", "tiny", "--clip-seconds", 0.5, "--epochs", 1,
                "--encoders", "frozen", "--batch-size", 16, "--learning-rate", 1e-3, "--workers", 0]  # fmt: skip
    trained = command_line("train", *settings, "--loss", "nt_xent", "--out", run)
    assert "test, 4 clips: text to audio R@1/5/10" in trained.output
    evaluated = command_line("evaluate", "--run", run)
    assert json.loads(evaluated.stdout) == json.loads((run / "metrics.json").read_text())["test"]
    of_all = [*settings[: settings.index("--batch-size")], "--learning-rate", 0.001, "--workers", 0, "--out", out]
    rows = ["--tables", 1, "--losses", "triplet_sum", "--losses", "nt_xent", "--seeds", 3]
    table = command_line("reproduce", *of_all, *rows)
    assert "\n| Synthetic | No | Triplet-sum | " in table.output
    assert "Learning rate 0.001." in table.output
    assert f"{out}/report.html shows it all" in table.output
    assert json.loads((out / "runs/synthetic-frozen-nt_xent-seed-3/metrics.json").read_text())["clips"]["test"] == 4
    before = (out / "report.html").read_text()
    again = command_line("report", "--results", out)
    assert "report.html opens in any browser" in again.output
    assert (out / "report.html").read_text() == before
    command_line("report", "--results", run, status=1)


def test_by_default_both_tables_with_three_seeds() -> None:
    """Section 3.3: all experiments are repeated three times."""
    defaults = {option.name: option.default for option in main.commands["reproduce"].params}
    assert defaults["seeds"] == (0, 1, 2)
    assert defaults["tables"] == ("1", "2")


def test_a_learning_rate_of_0_is_refused(corpus: Path, tmp_path: Path, command_line: CommandLine) -> None:
    result = command_line("reproduce", "--data", corpus, "--dataset", "Synthetic", "--model", "tiny", "--learning-rate",
                          0, "--out", tmp_path / "out", status=1)  # fmt: skip
    assert "Error: expected learning_rate > 0, got 0.0" in result.output
