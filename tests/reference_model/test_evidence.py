"""The evidence as a whole: its command line, what `make evidence` calls, and the results that are kept."""

import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import click
import pytest
from click.testing import CliRunner
from grids import settings

from reference_model import InputError
from reference_model.cli.app import main as model
from reference_model.config import Config
from reference_model.evidence import recordings
from reference_model.evidence.commands import main
from reference_model.reproduction.grid import Grid
from reference_model.reproduction.report import write_report

ROOT = Path(__file__).parents[2]
PROGRAMS: dict[str, click.Group] = {"reference_model": model, "reference_model.evidence": main}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_programs_understand_what_make_evidence_calls_them_with() -> None:
    made = subprocess.run(
        ["make", "-n", "evidence", "minilm=a/folder"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    called = []
    for line in made.stdout.replace("\\\n", " ").splitlines():
        if " -m reference_model" in line:
            program, command, *arguments = shlex.split(line.partition(" -m ")[2])
            PROGRAMS[program].commands[command].make_context(command, arguments)
            called.append(command)
    assert called == ["recordings", *["synthesize"] * 3, *["pretrain"] * 2, *["reproduce"] * 6, "keep"]


def test_the_command_that_makes_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "make_recordings", made := Mock(return_value=tmp_path))
    arguments = ["recordings", "--out", f"{tmp_path}/a", "--packages", f"{tmp_path}/b"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    made.assert_called_once_with(tmp_path / "a", tmp_path / "b")
    assert f"--sounds {tmp_path}/recordings --phrases {tmp_path}/phrases.csv" in result.output
    made.side_effect = InputError("expected a package")
    refused = CliRunner().invoke(main, arguments)
    assert (refused.exit_code, refused.output) == (1, "Error: expected a package\n")


def test_results_are_kept_without_sounds(config: Config, trained: Path, tmp_path: Path) -> None:
    row = {"dataset": "Synthetic", "encoders": "fine-tuned", "loss": "nt_xent", "batch_size": 16, "learning_rate": 1e-3}
    grid, folder, sources = (
        Grid.from_rows({"1": [row]}, (0,), settings(replace(config, epochs=1))),
        tmp_path / "a",
        tmp_path / "s.csv",
    )
    grid.write(folder / "grid")
    shutil.copytree(trained, grid.runs(folder / "grid")[0].folder)
    shutil.copytree(folder / "grid", folder / "rates" / "rate-0.001")
    arguments = ["keep", "--results", str(folder), "--sources", str(sources), "--out", str(tmp_path / "kept")]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert refused.output == f"Error: expected folders of reproduce in {folder}, and {sources}, got none\n"
    sources.write_text("label\n")
    assert CliRunner().invoke(main, arguments).exit_code == 0
    kept = tmp_path / "kept"
    assert {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()} == {
        "s.csv", "grid/made.md", "grid/report.html", "grid/claims.md", "grid/claims.json",
        *(f"grid/table_1.{suffix}" for suffix in ("md", "tex", "json", "png")),
        "rates/made.md", *(f"rates/learning_rates.{suffix}" for suffix in ("md", "json", "png")),
    }  # fmt: skip
    machine = json.loads((trained / "time.json").read_text())["machine"]
    assert (kept / "grid/made.md").read_text().startswith(f"Made by `make evidence` on {machine}: 1 runs of 0.0")
    assert CliRunner().invoke(main, arguments).exit_code == 0  # which are replaced
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    refused = CliRunner().invoke(main, [*arguments[:-1], f"{tmp_path}/mine"])
    expected = f"expected {tmp_path}/mine to be new or results that were kept, got one without */made.md"
    assert (refused.exit_code, refused.output) == (1, f"Error: {expected}\n")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"
    assert "audio/mpeg" not in (kept / "grid/report.html").read_text()
    assert "audio/mpeg" in write_report(grid, folder / "grid").read_text()
