"""The command line of the evidence."""

from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from reference_model import InputError
from reference_model.evidence import recordings
from reference_model.evidence.commands import main


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
