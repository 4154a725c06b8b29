"""The mutation tool tells a change that a test sees from one that none sees."""

import ast
from pathlib import Path

import pytest
from mutants.__main__ import copy_checkout, outcome_of
from mutants.draw import Mutant, changed_lines, draw, functions_of, without_values
from mutants.results import KILLED, SURVIVED, TIMEOUT, Explanation, page, percent_killed, unexplained
from mutants.seeing import Measured, statement

ROOT = Path(__file__).parents[2]
MODULE = '''"""A module."""
Names = dict[str, int | None]


def larger(a: int | None, b: int) -> int | None:
    if a is not None and a > b:
        return a
    return b


class Loop:
    def count(self) -> int:
        number = 0
        while number < 3:
            number += 1
        return number
'''
TEST = """from toy import Loop, larger


def test_larger() -> None:
    assert larger(1, 2) == 2
    assert larger(None, 2) == 2


def test_count() -> None:
    assert Loop().count() == 3
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "test_toy.py").write_text(TEST, encoding="utf-8")
    (tmp_path / "setup.cfg").write_text("[tool:pytest]\npythonpath = .\n", encoding="utf-8")
    return tmp_path


def mutant(before: str, after: str) -> Mutant:
    source = MODULE.replace(before, after)
    assert source != MODULE
    return Mutant("toy.py", "", before, after, MODULE[: MODULE.index(before)].count("\n") + 1, source)


BOTH = ["test_toy.py::test_larger", "test_toy.py::test_count"]


@pytest.mark.parametrize(
    ("before", "after", "tests", "expected"),
    [
        ("is not None", "is None", BOTH, (KILLED, "test_toy.py::test_larger")),
        ("a > b", "a >= b", BOTH, (SURVIVED, "2 tests passed")),
        ("number < 3", "number < 4", BOTH, (KILLED, "test_toy.py::test_count")),
        ("number < 3", "number < 4", BOTH[:1], (SURVIVED, "1 tests passed")),
    ],
)
def test_what_a_test_sees_is_killed(
    checkout: Path, before: str, after: str, tests: list[str], expected: tuple[str, str]
) -> None:
    assert outcome_of(checkout, mutant(before, after), tests, 60) == expected
    assert (checkout / "toy.py").read_text(encoding="utf-8") == MODULE


def test_a_test_that_does_not_end_is_stopped(checkout: Path) -> None:
    assert outcome_of(checkout, mutant("number += 1", "number -= 1"), BOTH, 2) == (TIMEOUT, "")


def test_an_error_of_the_tool_kills_no_mutant(checkout: Path) -> None:
    (checkout / "test_toy.py").unlink()
    with pytest.raises(RuntimeError, match="expected tests to run"):
        outcome_of(checkout, mutant("a > b", "a >= b"), BOTH, 60)


def test_the_tests_that_execute_a_line_are_run_the_quickest_first() -> None:
    seconds = {"test_a.py::slow": 2.0, "test_a.py::quick": 1.0, "test_toy.py::own": 3.0, "test_a.py::other": 0.5}
    lines = {"6": list(seconds), "14": ["test_a.py::other"]}
    measured = Measured({**seconds, "test_toy.py::refusal": 4.0}, {"toy.py": lines})
    seen = ["test_toy.py::own", "test_a.py::other", "test_a.py::quick", "test_a.py::slow"]
    assert measured.tests_that_see(mutant("a > b", "a >= b"), MODULE) == seen
    assert measured.tests_that_see(mutant("number < 3", "number < 4"), MODULE) == ["test_a.py::other"]
    # Nothing executes the class's line after the import; a test of its own file may see it without executing anything.
    at_import = mutant("class Loop:", "class Loop: ...")
    assert measured.tests_that_see(at_import, MODULE) == [seen[0], "test_toy.py::refusal", *seen[1:]]


def test_the_draw_follows_from_the_seed_and_changes_no_types(checkout: Path) -> None:
    mutants = draw(checkout, ["toy.py"], 100, 0)
    assert mutants == draw(checkout, ["toy.py"], 100, 0)
    assert {mutant.line for mutant in mutants} == {6, 13, 14, 15}
    for mutant in mutants:
        assert mutant.before in MODULE
        assert mutant.line > 5
        assert ast.dump(ast.parse(mutant.source)) != ast.dump(ast.parse(MODULE))
        assert mutant.function in ("larger", "Loop.count")
    few = draw(checkout, ["toy.py"], 3, 0)
    assert len(few) == 3
    assert set(few) < set(mutants)
    # Another line above moves the mutants, and draws no others.
    (checkout / "toy.py").write_text("\n" + MODULE, encoding="utf-8")
    assert [mutant.key for mutant in draw(checkout, ["toy.py"], 3, 0)] == [mutant.key for mutant in few]


def test_lines_and_statements() -> None:
    assert changed_lines("a\n  b\nc", "a\n  d\nc") == ("b", "d")
    assert changed_lines("a\n@b\nc", "a\nc") == ("@b", "")
    assert functions_of(MODULE)[6] == "larger"
    assert functions_of(MODULE)[13] == "Loop.count"
    assert functions_of(MODULE)[2] == ""
    assert statement("x = (\n1 +\n2)\n", 2) == range(1, 4)
    assert statement(MODULE, 6) == range(6, 7)
    assert ((2, 8), (2, 29)) in without_values(MODULE)


def test_each_survivor_needs_an_explanation() -> None:
    killed, equal, open_ = mutant("a > b", "a < b"), mutant("a > b", "a >= b"), mutant("number < 3", "number != 3")
    outcomes = [(killed, KILLED), (equal, SURVIVED), (open_, SURVIVED)]
    explained = {equal.key: Explanation(same=True, reason="Equal numbers are equal.")}
    assert unexplained(outcomes, explained) == [open_]
    assert percent_killed(outcomes, explained) == 50
    text = page(outcomes, explained, "abc", 0, ["x.py"])
    assert "Equal numbers are equal." in text
    assert "| `toy.py` | 3 | 1 | 0 | 2 |" in text
    assert "not explained" in text
    assert percent_killed(outcomes, {**explained, open_.key: Explanation(same=False, reason="It is slow.")}) == 50


def test_a_copy_holds_what_git_does_not_ignore(tmp_path: Path) -> None:
    copy_checkout(ROOT, tmp_path / "copy")
    assert (tmp_path / "copy" / "setup.cfg").read_bytes() == (ROOT / "setup.cfg").read_bytes()
    assert not (tmp_path / "copy" / ".git").exists()
