"""Which tests can see a change of a line: those that execute it, by one run of all of them under coverage."""

import ast
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import coverage
from mutants.draw import Mutant
from mutants.worker import run_tests

DISTRIBUTED = "tests/crossmodal_losses/test_distributed.py::"
# Tests on several processes, of which coverage sees nothing; the quickest first.
ON_RANKS = tuple(
    DISTRIBUTED + name
    for name in (
        "test_on_ranks[2-refusals]", "test_on_ranks[2-awkward_inputs]", "test_on_ranks[3-subgroups]",
        "test_every_loss_equals_that_of_one_process[2]", "test_the_memory_of_the_ring_does_not_grow_with_the_ranks[2]",
        "test_the_work_is_divided_and_embeddings_are_sent_twice[2]", "test_on_ranks[3-with_ddp]",
        "test_every_loss_equals_that_of_one_process[3]",
    )
)  # fmt: skip
# Too slow for hundreds of mutants, or about the installed package.
LEFT_OUT = (
    "test_on_ranks", "test_every_loss_equals", "test_the_work_is_divided", "test_the_memory_of_the_ring",
    "test_a_killed_rank", "test_the_wheel", "test_the_default_compiler", "reduces_each_bucket_once",
    "test_kernels_as_launched",
)  # fmt: skip
QUICK_ON_RANKS = (ON_RANKS[1], ON_RANKS[3])
COMPUTES_ON_RANKS = "crossmodal_losses/engine/"
SERVE_RANKS = ("crossmodal_losses/distributed.py", "crossmodal_losses/engine/communication.py")

# Tests of one mutant take no longer than this together, in seconds, as measured without it.
LONGEST = 45.0


@dataclass
class Measured:
    """The tests that execute each line, and how long each takes."""

    seconds: dict[str, float] = field(default_factory=dict)
    by_line: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # file, line as a text, tests
    hashes: dict[str, str] = field(default_factory=dict)  # of the files of tests that were run

    def save(self, path: Path) -> None:
        """Write to a file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "Measured":
        """Read from a file; with nothing in it if there is none."""
        return Measured(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Measured()

    def update(self, folder: Path, hashes: dict[str, str]) -> None:
        """Run the files of tests that changed, without a mutant."""
        kept = {file for file, found in hashes.items() if self.hashes.get(file) == found}
        if kept == set(hashes):
            return
        self.seconds = {test: seconds for test, seconds in self.seconds.items() if file_of(test) in kept}
        for lines in self.by_line.values():
            lines.update({line: [test for test in tests if file_of(test) in kept] for line, tests in lines.items()})
        seconds, by_line = measure(folder, sorted(set(hashes) - kept))
        self.seconds.update(seconds)
        for file, lines in by_line.items():
            for line, tests in lines.items():
                of_line = self.by_line.setdefault(file, {})
                of_line[line] = sorted({*of_line.get(line, []), *tests})
        self.hashes = hashes

    def hash_of(self, tests: Sequence[str]) -> str:
        """A text that changes with the files of some tests."""
        files = sorted({file_of(test) for test in tests})
        return hashlib.sha256(" ".join(self.hashes.get(file, "") for file in files).encode()).hexdigest()[:12]

    def tests_that_see(self, mutant: Mutant, source: str) -> list[str]:
        """The tests to run for a mutant: the module's own, then others, the quickest first.

        What is executed at import, as constants are, every test of the module may see; and what no test of this
        process executes, the tests on several processes may. These run the engine, too.
        """
        name = f"test_{PurePosixPath(mutant.file).name}"
        own = {test for test in self.seconds if PurePosixPath(file_of(test)).name == name}
        by_line = self.by_line.get(mutant.file, {})
        executing = {test for line in statement(source, mutant.line) for test in by_line.get(str(line), [])}
        unseen = not executing
        if unseen:
            executing = own.union(*by_line.values())
        ordered = sorted(executing, key=lambda test: (test not in own, self.seconds.get(test, 0), test))
        chosen, total = [], 0.0
        for test in ordered:
            total += self.seconds.get(test, 0)
            if total <= LONGEST:
                chosen.append(test)
        if mutant.file in SERVE_RANKS:
            return [*ON_RANKS, *chosen]
        if unseen and mutant.function:
            return [*chosen, *ON_RANKS]
        return [*chosen, *QUICK_ON_RANKS] if mutant.file.startswith(COMPUTES_ON_RANKS) else chosen


def file_of(test: str) -> str:
    """The file of a test."""
    return test.partition("::")[0]


def measure(folder: Path, files: Sequence[str]) -> tuple[dict[str, float], dict[str, dict[str, list[str]]]]:
    """Run files of tests in a checkout, and return the time of each test and the tests that execute each line.

    Raises:
        RuntimeError: a test fails.
    """
    left_out = " and ".join(f"not {name}" for name in LEFT_OUT)
    options = ["--cov=crossmodal_losses", "--cov-context=test", "--cov-report=", "-k", left_out]
    runs = [run_tests(folder, [*files, *options])]
    on_ranks = [test for test in ON_RANKS if file_of(test) in files]
    if on_ranks:
        runs.append(run_tests(folder, sorted({file_of(test) for test in on_ranks}), on_ranks))
    if any(run.code != 0 for run in runs):
        raise RuntimeError(
            f"expected all tests to pass without a mutant, got {[(run.code, run.failed) for run in runs]}"
        )
    data = coverage.CoverageData(str(folder / ".coverage"))
    data.read()
    by_line: dict[str, dict[str, list[str]]] = {}
    for path in data.measured_files():
        lines = {
            str(line): sorted({context.rpartition("|")[0] for context in contexts} - {""})
            for line, contexts in data.contexts_by_lineno(path).items()
        }
        by_line[str(Path(path).relative_to(folder.resolve()))] = {line: tests for line, tests in lines.items() if tests}
    return {test: seconds for run in runs for test, seconds in run.seconds.items()}, by_line


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
