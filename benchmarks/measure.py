"""How a benchmark measures: warm-up, interleaved repetitions, medians with quartiles, and on which machine."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one candidate: the median of its repetitions, and their quartiles."""

    median: float
    lower: float
    upper: float


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(candidates: Mapping[str, Callable[[], object]], *, seconds: float = 2.0) -> dict[str, Timing]:
    """Time candidates in turn, A B C A B C ..., so that what slows the machine down slows all of them down.

    Each is run twice first; then there are as many rounds as fit into ``seconds`` per candidate, at least 7.
    """
    for run in candidates.values():
        for _ in range(2):
            run()
    synchronise()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    started = time.perf_counter()
    while len(next(iter(times.values()))) < 7 or time.perf_counter() - started < seconds * len(candidates):
        for name, run in candidates.items():
            synchronise()
            before = time.perf_counter()
            run()
            synchronise()
            times[name].append(1e3 * (time.perf_counter() - before))
    return {name: Timing(*(statistics.quantiles(t, n=4)[k] for k in (1, 0, 2))) for name, t in times.items()}


def machine() -> str:
    """What a figure was measured on, and of which commit."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return (
        f"{model}, {torch.get_num_threads()} threads, {device}; torch {torch.__version__}, "
        f"Python {platform.python_version()}; commit {commit.stdout.strip() or 'unknown'}"
    )
