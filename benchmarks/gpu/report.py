"""The report of all parts: one JSON file, written whole after every check, with what was allowed and what was found."""

import functools
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.commit import commit
from crossmodal_losses import __version__

PARTS = "values", "behaviour", "speed"

Result = dict[str, Any]


def environment(device: torch.device) -> dict[str, Any]:
    """Return the card, its memory and driver, the versions, and the commit."""
    versions: dict[str, Any] = {"commit": commit(), "crossmodal_losses": __version__, "torch": torch.__version__}
    versions |= {"python": platform.python_version(), "cuda": torch.version.cuda}
    try:
        import triton
    except ImportError:
        versions["triton"] = None
    else:
        versions["triton"] = triton.__version__
    if device.type != "cuda":
        return {"card": "none", "driver": "none", **versions}
    card = torch.cuda.get_device_properties(device)
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    about = {"card": card.name, "capability": capability, "GiB": round(card.total_memory / 2**30), "driver": driver()}
    return {**about, **versions}


def driver() -> str:
    """Return the version of the driver, of which all cards of a machine have the same."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    except FileNotFoundError:
        return "unknown"
    return lines[0] if lines else "unknown"


def passes(part: dict[str, Any]) -> bool:
    """Return whether a part is complete and nothing in it failed."""
    return part["complete"] is True and all(result["passed"] for result in part["results"])


class Results:
    """The results of a check."""

    def __init__(self) -> None:
        self.found: list[Result] = []

    def add(self, name: str, found: float | str, allowed: float | None = None, passed: bool | None = None) -> None:
        """Add a result: it passes if it is at most what is allowed, or as told; without either, it is only recorded."""
        if passed is None:
            passed = allowed is None or (isinstance(found, int | float) and found <= allowed)
        self.found.append({"name": name, "found": found, "allowed": allowed, "passed": passed})

    def equal(self, name: str, found: int, expected: int | None) -> None:
        """Add a result that passes if it is what is expected; without that, it is only recorded."""
        self.found.append(
            {"name": name, "found": found, "expected": expected, "passed": expected is None or found == expected}
        )


Check = Callable[[Results], None]


def attempted(name: str, check: Check) -> list[Result]:
    """Return the results of a check. If it raises, the last one is a failed one of the name."""
    results = Results()
    try:
        check(results)
    except Exception as error:
        traceback.print_exc()
        results.add(name, f"{type(error).__name__}: {error}", passed=False)
    return results.found


def new_processes(count: int) -> Executor:
    """Return so many processes: each has a CUDA context of its own, which no fork can have."""
    threads = max(1, (os.cpu_count() or 1) // count)
    return ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (threads,))


class OutOfTime(Exception):
    """A part has used its time."""


class Report:
    """Results of one part, in the file of all parts.

    Args:
        path: the JSON file; other parts in it stay as they are, if they are of the same environment, commit included.
        part: the name of this part.
        device: where it runs.
        seconds: the time limit; what begins later fails.
    """

    def __init__(self, path: Path, part: str, device: torch.device, seconds: float) -> None:
        self.path, self.seconds, self.started = path, seconds, time.monotonic()
        about = environment(device)
        parts: dict[str, dict[str, Any]] = {}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            parts = before["parts"] if before["environment"] == about else {}
        self.results: list[Result] = []
        self.name = part
        self.part: dict[str, Any] = {"complete": False, "seconds": 0.0, "results": self.results}
        self.parts, self.environment = {**parts, part: self.part}, about

    def extend(self, results: Iterable[Result]) -> None:
        """Add results: print those that failed, and those that are only recorded."""
        for result in results:
            self.results.append(result)
            name, found, bound = result["name"], result["found"], result.get("expected", result.get("allowed"))
            if not result["passed"]:
                relation = "" if "expected" in result else "at most "
                print(f"FAILED {name}: expected {relation}{bound}, got {found}", file=sys.stderr)
            elif bound is None:
                print(f"{name}: {found}")
        self.write()

    def _in_time(self, name: str) -> None:
        if time.monotonic() - self.started > self.seconds:
            raise OutOfTime(f"expected {self.name} within {self.seconds:.0f} s, got as far as {name}")

    def run(self, name: str, check: Check) -> None:
        """Run one check.

        Raises:
            OutOfTime: the part has used its time.
        """
        self._in_time(name)
        self.extend(attempted(name, check))

    def run_all(self, checks: Iterable[tuple[str, Check]], processes: int) -> None:
        """Run checks in so many processes; none: in this one. What a process that ends should have found fails.

        Raises:
            OutOfTime: the part has used its time.
        """
        if not processes:
            for name, check in checks:
                self.run(name, check)
            return
        with new_processes(processes) as executor:
            futures = [(name, executor.submit(attempted, name, check)) for name, check in checks]
            try:
                for name, future in futures:
                    self._in_time(name)
                    self.extend(attempted(name, functools.partial(_take, future=future)))
            except OutOfTime:
                executor.shutdown(wait=False, cancel_futures=True)
                raise

    @property
    def passed(self) -> bool:
        """Whether this part is complete and nothing failed."""
        return passes(self.part)

    def finish(self) -> None:
        """Note that all checks have run."""
        self.part["complete"] = True
        self.write()

    def write(self) -> None:
        """Write the file beside its place, then move it there. All of it passes if every part is there, and passes."""
        self.part["seconds"] = round(time.monotonic() - self.started, 1)
        missing = [part for part in PARTS if part not in self.parts]
        passed = not missing and all(map(passes, self.parts.values()))
        whole = {"environment": self.environment, "passed": passed, "missing": missing, "parts": self.parts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}")
        beside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def _take(results: Results, future: Future[list[Result]]) -> None:
    """Take the results of a check in another process, or raise what ended it."""
    results.found += future.result()
