"""The folder of a run: whose it is, whether the run is finished, and that one process at a time works in it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reference_model import InputError
from reference_model.config import Config

CONFIG = "config.json"
CHECKPOINT = "checkpoint.safetensors"  # while it is under way
METRICS = "metrics.json"  # when it is finished
DIVERGED = "diverged.json"
LOG = "log.txt"
LOCK = ".lock"


class Diverged(InputError):
    """The loss, or an embedding, is no longer finite."""


def open_run(config: Config, run: Path) -> dict[str, Any] | None:
    """Make the run's folder, or find it: its metrics if it is finished, None if there is work to do.

    Raises:
        InputError: the folder holds something else, or a run of another configuration.
        Diverged: the folder holds this run, and it has diverged.
    """
    if (run / CONFIG).exists():
        stored = Config.read(run / CONFIG)
        different = [f"{name} {there} there, {here} here" for name, (there, here) in stored.differences(config).items()]
        if different:
            raise InputError(
                f"expected {run} to be new or a run of this configuration, got a run of another "
                f"({'; '.join(different)}); choose another --out"
            )
        if (run / DIVERGED).exists():
            raise Diverged(json.loads((run / DIVERGED).read_text(encoding="utf-8"))["reason"])
        if not (run / METRICS).exists():
            return None
        (run / CHECKPOINT).unlink(missing_ok=True)  # it was killed just before that
        return stored_metrics(run)
    if run.exists() and (not run.is_dir() or {path.name for path in run.iterdir()} - {LOG, LOCK, f".{CONFIG}.part"}):
        raise InputError(
            f"expected {run} to be new or a run's folder, got something without {CONFIG}; choose another --out"
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected to write a run in {run}, got: {error}; --out names another folder") from error
    return None


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Two at work in one folder would spoil what the other writes. The lock ends with its process, in any case."""
    try:
        with FileLock(run / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"expected {run} for this run alone, got one that is under way there") from error


def stored_metrics(run: Path) -> dict[str, Any]:
    """What a finished run has left in ``metrics.json``."""
    content: dict[str, Any] = json.loads((run / METRICS).read_text(encoding="utf-8"))
    return content
