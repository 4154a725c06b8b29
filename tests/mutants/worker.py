"""Run pytest in a fork of this process, which has imported torch once for all mutants."""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import types
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

# Imported before the first fork, if they are there: what the tests import, except the package under test.
IMPORTED_ONCE = (
    "hypothesis.strategies", "numpy", "torch", "torch._dynamo", "torch._inductor", "torch.distributed",
    "torch.nn.parallel", "torch.testing", "torch.utils.flop_counter",
)  # fmt: skip


@dataclass
class Outcome:
    """How a run of pytest ended."""

    code: int | None  # the exit status of the process; None: it ran too long
    failed: list[str] = field(default_factory=list)  # the tests that failed
    seconds: dict[str, float] = field(default_factory=dict)  # of the tests that ran


def import_once() -> None:
    """Import what takes long to import."""
    for name in IMPORTED_ONCE:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


def run_tests(
    folder: Path, arguments: Sequence[str], tests: Sequence[str] | None = None, timeout: float | None = None
) -> Outcome:
    """Run pytest in a checkout, in a process of its own, and end all processes that it started.

    Args:
        folder: the checkout.
        arguments: of pytest.
        tests: the ids of the tests to run, in this order; None: all that the arguments select.
        timeout: the longest time, in seconds.
    """
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(folder, arguments, tests, report))
    process.start()
    process.join(timeout)
    code = process.exitcode
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return Outcome(code, **json.loads(report.read_text(encoding="utf-8"))) if report.exists() else Outcome(code)


def _run(folder: Path, arguments: Sequence[str], tests: Sequence[str] | None, report: Path) -> None:
    os.setsid()
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # This checkout is not seen by the tests; processes that they spawn do not import this program.
    here = Path(__file__).resolve().parents[2]
    sys.path[:] = [entry for entry in sys.path if entry and here not in (Path(entry), *Path(entry).parents)]
    os.environ.pop("PYTHONPATH", None)
    sys.modules["__main__"] = types.ModuleType("__main__")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mutants"]:
        del sys.modules[name]
    plugin = _Chosen(tests, report)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*options, *arguments], plugins=[plugin])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))


class _Chosen:
    """Plugin of pytest: runs the chosen tests in their order, and notes which fail and how long they take."""

    def __init__(self, tests: Sequence[str] | None, report: Path) -> None:
        self.order = None if tests is None else {test: place for place, test in enumerate(tests)}
        self.report = report
        self.failed: list[str] = []
        self.seconds: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.order is not None:
            items[:] = sorted(
                (item for item in items if item.nodeid in self.order), key=lambda item: (self.order or {})[item.nodeid]
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.report.write_text(json.dumps({"failed": self.failed, "seconds": self.seconds}), encoding="utf-8")
