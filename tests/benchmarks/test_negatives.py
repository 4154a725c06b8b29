"""Candidates without a partner: ours equals the packages that it is measured beside, and the table says what was."""

import csv
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from benchmarks import negatives
from benchmarks.__main__ import SUITE
from benchmarks.batch import OURS, Conditions
from benchmarks.negatives import CASES, COMPILED, HARD, Step, check, embeddings, extra_memory, main
from benchmarks.results import RESULTS

TINY = Conditions(("nt_xent",), 6, torch.float64)
B, N = 40, 280  # 32 rows of the cached loss, and 8


@pytest.mark.parametrize(
    "case, name", [(case, name) for case in CASES for name in CASES[case] if name not in (OURS, COMPILED)]
)
def test_all_compute_the_same(case: str, name: str) -> None:
    """In a second step, too: gradients do not add up, and a queue does not move on."""
    if not find_spec(CASES[case][name].needs):
        pytest.skip(f"needs {CASES[case][name].needs}")
    given = embeddings(case, B, N, TINY)
    expected, expected_gradients = CASES[case][OURS].prepare(*given)()
    step = CASES[case][name].prepare(*given)
    for _ in range(2):
        value, gradients = step()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.cat([*gradients]), torch.cat([*expected_gradients]))


@pytest.mark.parametrize("case", CASES)
def test_memory_is_that_beyond_the_gradients(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_gradients(make: Callable[..., Step], *arguments: object, device: str) -> int:
        _, gradients = make(*arguments)()
        return sum(gradient.nbytes for gradient in gradients)

    monkeypatch.setattr(negatives, "peak_memory", of_gradients)
    assert extra_memory(case, OURS, B, N, TINY) == 0


def test_what_computes_something_else_is_not_measured() -> None:
    given = embeddings(HARD, 4, 28, Conditions(("nt_xent",), 6, torch.float32))
    right = CASES[HARD][OURS].prepare(*given)
    assert [*check({OURS: right}, *given)] == [OURS]

    def wrong() -> tuple[Tensor, Sequence[Tensor]]:
        value, (of_x, *others) = right()
        return value, (1.01 * of_x, *others)

    with pytest.raises(click.ClickException, match=r"^expected wrong at B = 4 within 0.001 of ours in float64, got"):
        check({OURS: right, "wrong": wrong}, *given)


def test_the_table_has_what_is_installed_and_the_columns_of_the_committed_one(tmp_path: Path) -> None:
    arguments = dict(SUITE)[main]
    result = CliRunner().invoke(main, [*arguments.split(), "--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    with (tmp_path / "negatives.csv").open() as new, (RESULTS / "negatives.csv").open() as old:
        rows, committed = csv.DictReader(new), csv.DictReader(old)
        assert rows.fieldnames == committed.fieldnames
        found = [(row["case"], row["implementation"]) for row in rows]
    expected = [(case, name) for case in CASES for name in CASES[case] if name != COMPILED]
    assert found == [(case, name) for case, name in expected if find_spec(CASES[case][name].needs)]


def test_the_packages_are_slower_and_take_more_memory_as_the_page_says() -> None:
    with (RESULTS / "negatives.csv").open() as file:
        rows = list(csv.DictReader(file))
    memory = {(row["case"], row["B"]): row["extra MiB"] for row in rows if row["implementation"] == OURS}
    packages = [row for row in rows if CASES[row["case"]][row["implementation"]].needs != "torch"]
    assert {row["case"] for row in packages} == {*CASES}
    assert all(float(row["times ours"]) > 1 for row in packages)
    assert all(float(row["extra MiB"]) > float(memory[row["case"], row["B"]]) for row in packages if row["extra MiB"])
