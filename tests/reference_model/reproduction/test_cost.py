"""The estimates of time and disk space follow from the settings."""

from dataclasses import replace
from pathlib import Path

import pytest
from grids import settings

from reference_model.config import Config
from reference_model.paper import select_rows
from reference_model.reproduction.cost import duration, estimate, measure_costs
from reference_model.reproduction.grid import Grid


def test_estimates_follow_from_the_settings(config: Config) -> None:
    """Ten times the epochs take more seconds; losses and seeds are measured once."""
    frozen = replace(config, encoders="frozen")
    more = [replace(frozen, epochs=20), replace(frozen, loss="triplet_max", seed=3)]
    costs = measure_costs([frozen, *more, config])
    assert costs[frozen] is costs[more[1]]
    assert costs[more[0]].seconds > 3 * costs[frozen].seconds
    assert costs[frozen].features_seconds > 0
    assert costs[config].features_seconds == 0
    assert costs[config].gigabytes == pytest.approx(costs[frozen].gigabytes)
    assert costs[config].temporary_gigabytes > costs[frozen].temporary_gigabytes > 0


def test_finished_runs_cost_nothing(config: Config, tmp_path: Path) -> None:
    rows = select_rows(("1",), datasets=("Synthetic",), encoders=("frozen",))
    runs = Grid.from_rows(rows, (0, 1), settings(config)).runs(tmp_path)
    for run in runs:
        run.record_failure("enough")
    assert estimate(runs, jobs=1, out=tmp_path) == "nothing is left to train"


@pytest.mark.parametrize(
    "seconds, words",
    [(59, "less than a minute"), (60, "about 1.0 minutes"), (720, "about 12.0 minutes"), (12600, "about 3.5 hours")],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
