"""Jobs that train nothing, in place of those of a grid: each does one thing, in a process of its own.

The processes of jobs import this module, so it imports nothing large.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference_model.reproduction.job import TrainRun
from reference_model.runtime.lease import lock_folder
from reference_model.runtime.signals import Stopped, raise_if_stop_requested

if TYPE_CHECKING:
    import pytest

    from reference_model.reproduction.grid import Run
    from reference_model.reproduction.launchers import Ended, Launcher

ROOT = Path(__file__).parents[1]
Acts = Callable[..., None]  # the fixture acts: say what the jobs of the runs do, in their order
SEEN = ("CUDA_VISIBLE_DEVICES", "TQDM_DISABLE")  # variables that a job writes down


@dataclass(frozen=True)
class LightJob(TrainRun):
    """Does what ``settings["act"]`` says."""

    def train(self) -> None:
        """Write down that the job has begun, and act."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "begun").open("a") as file:
            seen = {name: os.environ.get(name) for name in SEEN}
            file.write(json.dumps({"process": os.getpid(), "shared by": self.shared_by, **seen}) + "\n")
        act = self.settings["act"]
        if act == "finish" or (act == "leave" and len((self.folder / "begun").read_text().splitlines()) > 1):
            (self.folder / "metrics.json").write_text("{}")
        elif act == "wait":  # until there is a file "go", or the job is stopped
            self.wait()
        elif act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif act == "abort":
            os.abort()
        elif act == "exit":
            print("the driver is too old", file=sys.stderr)
            sys.exit(9)
        elif act == "raise":
            raise RuntimeError("no such module")

    def wait(self) -> None:
        """Hold the run's lock until there is a file "go" in its folder."""
        with lock_folder(self.folder):
            try:
                while not (self.folder / "go").exists():
                    raise_if_stop_requested()
                    time.sleep(0.02)
            except Stopped:
                (self.folder / "saved").touch()
                raise
            (self.folder / "metrics.json").write_text("{}")


def use_light_jobs(patch: "pytest.MonkeyPatch", acts: Mapping[str, str]) -> None:
    """Have launchers start light jobs, with the act of each run's name, or else "finish"."""

    def light(run: "Run", **options: Any) -> LightJob:
        settings = {"act": acts.get(run.name, "finish")}
        return LightJob(run.experiment, settings, run.folder.absolute(), run.failure_file.absolute(), **options)

    patch.setattr(TrainRun, "of", light)
    patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")  # where jobs find this module


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds, for a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def all_ends(launcher: "Launcher") -> "list[Ended]":
    """Wait for the jobs of a launcher, and return the ends of those whose runs are not finished."""
    found: list[Ended] = []
    until = time.monotonic() + 60
    while launcher.at_work:
        assert time.monotonic() < until
        found += launcher.ended()
        time.sleep(0.02)
    return found


def begun(run: "Run") -> list[dict[str, Any]]:
    """Return what the jobs of a run wrote down, one for each time that it was begun."""
    path = run.folder / "begun"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
