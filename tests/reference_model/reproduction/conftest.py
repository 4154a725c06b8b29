"""Four runs of a grid, and light jobs in place of theirs."""

from pathlib import Path

import pytest
from grids import settings
from light_jobs import Acts, use_light_jobs

from reference_model.config import Config
from reference_model.paper import select_rows
from reference_model.reproduction.grid import Grid, Run


@pytest.fixture
def runs(config: Config, tmp_path: Path) -> list[Run]:
    """Four runs."""
    rows = select_rows(("1",), datasets=("Synthetic",), encoders=("frozen",))
    return Grid.from_rows(rows, (0,), settings(config)).runs(tmp_path)


@pytest.fixture
def acts(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> Acts:
    """Say what the jobs of the runs do, in their order."""

    def set_acts(*acts: str) -> None:
        use_light_jobs(monkeypatch, dict(zip((run.name for run in runs), acts, strict=False)))

    set_acts()
    return set_acts
