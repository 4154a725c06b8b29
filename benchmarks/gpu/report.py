"""The report of all parts: one JSON file, written whole after every check, with what was allowed and what was found."""

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Result = dict[str, Any]


def environment(device: torch.device) -> dict[str, Any]:
    """Return the card, its memory, and the versions."""
    versions = {"torch": torch.__version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    try:
        import triton
    except ImportError:
        versions["triton"] = None
    else:
        versions["triton"] = triton.__version__
    if device.type != "cuda":
        return {"card": "none", **versions}
    card = torch.cuda.get_device_properties(device)
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return {"card": card.name, "capability": capability, "GiB": round(card.total_memory / 2**30), **versions}


def passes(part: dict[str, Any]) -> bool:
    """Return whether a part is complete and nothing in it failed."""
    return part["complete"] is True and all(result["passed"] for result in part["results"])


class OutOfTime(Exception):
    """A part has used its time."""


class Report:
    """Results of one part, in the file of all parts.

    Args:
        path: the JSON file; other parts in it stay as they are, if they are of the same environment.
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

    def add(self, name: str, found: float | str, allowed: float | None = None, passed: bool | None = None) -> None:
        """Add a result: it passes if it is at most what is allowed, or as told; without either, it is only recorded."""
        if passed is None:
            passed = allowed is None or (isinstance(found, int | float) and found <= allowed)
        self.results.append({"name": name, "found": found, "allowed": allowed, "passed": passed})
        if not passed:
            print(f"FAILED {name}: expected at most {allowed}, got {found}", file=sys.stderr)
        elif allowed is None:
            print(f"{name}: {found}")

    def run(self, name: str, check: Callable[[], None]) -> None:
        """Run one check, which adds results. If it raises, that is a failed result of the name.

        Raises:
            OutOfTime: the part has used its time.
        """
        if time.monotonic() - self.started > self.seconds:
            raise OutOfTime(f"expected {self.name} within {self.seconds:.0f} s, got as far as {name}")
        try:
            check()
        except Exception as error:
            traceback.print_exc()
            self.add(name, f"{type(error).__name__}: {error}", passed=False)
        self.write()

    @property
    def passed(self) -> bool:
        """Whether this part is complete and nothing failed."""
        return passes(self.part)

    def finish(self) -> None:
        """Note that all checks have run."""
        self.part["complete"] = True
        self.write()

    def write(self) -> None:
        """Write the file beside its place, then move it there."""
        self.part["seconds"] = round(time.monotonic() - self.started, 1)
        passed = all(map(passes, self.parts.values()))
        whole = {"environment": self.environment, "passed": passed, "parts": self.parts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}")
        beside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self.path)
