"""Which tests can see a change of a line: those that execute it, by one run of all of them under coverage."""

import ast
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import coverage
from mutants.draw import Mutant
from mutants.worker import run_tests

# The tests of crossmodal_losses that run in this process. Coverage sees none of what runs in others.
IN_THIS_PROCESS = ("tests/crossmodal_losses",)
DISTRIBUTED = "tests/crossmodal_losses/test_distributed.py::"
# Tests on several processes, the quickest first.
ON_RANKS = tuple(
    DISTRIBUTED + name
    for name in (
        "test_on_ranks[2-refusals]", "test_on_ranks[2-awkward_inputs]", "test_on_ranks[3-subgroups]",
        "test_every_loss_equals_that_of_one_process[2]", "test_the_memory_of_the_ring_does_not_grow_with_the_ranks[2]",
        "test_the_work_is_divided_and_embeddings_are_sent_twice[2]", "test_on_ranks[2-with_ddp]",
        "test_every_loss_equals_that_of_one_process[3]",
    )
)  # fmt: skip
# Too slow for hundreds of mutants, or about the installed package.
LEFT_OUT = (
    "test_on_ranks", "test_every_loss_equals", "test_the_work_is_divided", "test_the_memory_of_the_ring",
    "test_a_killed_rank", "test_the_wheel", "test_the_default_compiler", "reduces_each_bucket_once",
    "test_compiles_for_a_device",
)  # fmt: skip
SERVE_RANKS = ("crossmodal_losses/distributed.py", "crossmodal_losses/engine/communication.py")

# Tests of one mutant take no longer than this together, in seconds, as measured without it.
LONGEST = 45.0


@dataclass
class Measured:
    """The tests that execute each line, and how long each takes."""

    seconds: dict[str, float]
    by_line: dict[str, dict[str, list[str]]]  # file, line (a string, as JSON has it), tests

    def save(self, path: Path) -> None:
        """Write to a file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "Measured":
        """Read from a file."""
        return Measured(**json.loads(path.read_text(encoding="utf-8")))

    def tests_that_see(self, mutant: Mutant, source: str) -> list[str]:
        """The tests to run for a mutant: the module's own, then others, the quickest first.

        What is executed at import, as constants are, every test of the module may see; and what no test of this
        process executes, the tests on several processes may.
        """
        by_line = self.by_line.get(mutant.file, {})
        executing = {test for line in statement(source, mutant.line) for test in by_line.get(str(line), [])}
        unseen = not executing
        if unseen:
            executing = {test for tests in by_line.values() for test in tests}
        own = f"test_{PurePosixPath(mutant.file).name}"
        ordered = sorted(executing, key=lambda test: (f"/{own}::" not in test, self.seconds.get(test, 0), test))
        chosen, total = [], 0.0
        for test in ordered:
            total += self.seconds.get(test, 0)
            if total <= LONGEST:
                chosen.append(test)
        if mutant.file in SERVE_RANKS:
            return [*ON_RANKS, *chosen]
        return [*chosen, *ON_RANKS] if unseen and mutant.function else chosen


def measure(folder: Path) -> Measured:
    """Run all tests of a checkout without a mutant.

    Raises:
        RuntimeError: a test fails.
    """
    data_file = folder / ".coverage"
    tests = run_tests(
        folder,
        [
            *IN_THIS_PROCESS, "--cov=crossmodal_losses", "--cov-context=test", "--cov-report=",
            "-k", " and ".join(f"not {name}" for name in LEFT_OUT),
        ],
    )  # fmt: skip
    ranks = run_tests(folder, sorted({test.partition("::")[0] for test in ON_RANKS}), ON_RANKS)
    if tests.code != 0 or ranks.code != 0:
        raise RuntimeError(f"expected no test to fail without a mutant, got {tests} and {ranks}")
    data = coverage.CoverageData(str(data_file))
    data.read()
    by_line: dict[str, dict[str, list[str]]] = {}
    for path in data.measured_files():
        lines: dict[str, list[str]] = {}
        for line, contexts in data.contexts_by_lineno(path).items():
            names = {context.rpartition("|")[0] for context in contexts} - {""}
            if names:
                lines[str(line)] = sorted(names)
        by_line[str(Path(path).relative_to(folder.resolve()))] = lines
    return Measured({**tests.seconds, **ranks.seconds}, by_line)


def statement(source: str, line: int) -> range:
    """The lines of the innermost statement around a line; of one with a body, the lines before the body."""
    found = range(line, line + 1)
    spans: dict[int, range] = defaultdict(lambda: found)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else (node.end_lineno or node.lineno)
            if node.lineno <= line <= last:
                spans[node.lineno] = range(node.lineno, last + 1)
    return spans[max(spans)] if spans else found
