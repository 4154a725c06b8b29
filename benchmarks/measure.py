"""Measure time, peak memory and the deviation of gradients.

Times are medians, with quartiles, of interleaved repetitions after a warm-up. One repetition of a short call is many
calls in a row: thread pools fall asleep while other calls have their turn, and waking them is not the call's cost.
"""

import ctypes
import functools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.batch import Conditions, Loss, gradients

Call = Callable[[], object]

# Seconds: the least time of one repetition; and the time of a first call that is warm-up enough.
REPETITION, LONG = 0.01, 1.0


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median over repetitions, and the quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, ms: Sequence[float]) -> "Timing":
        """Summarise the milliseconds of two repetitions or more."""
        lower, median, upper = statistics.quantiles(ms, n=4, method="inclusive")
        return cls(median, lower, upper)

    def columns(self) -> dict[str, float]:
        """Return the timing as columns of a table."""
        of_column = {"ms": self.median, "lower quartile": self.lower, "upper quartile": self.upper}
        return {column: round(ms, 3) for column, ms in of_column.items()}

    @classmethod
    def of_columns(cls, record: Mapping[str, float]) -> "Timing":
        """Return the timing that these columns hold."""
        return cls(record["ms"], record["lower quartile"], record["upper quartile"])


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def repeated(call: Call, count: int) -> float:
    """Return the seconds that ``count`` calls in a row take."""
    synchronise()
    before = time.perf_counter()
    for _ in range(count):
        call()
    synchronise()
    return time.perf_counter() - before


def calls_per_repetition(call: Call) -> int:
    """Warm up; return the number of calls in a row that last as long as one repetition should."""
    if repeated(call, 1) >= LONG:
        return 1
    call()
    count = 1
    while (elapsed := repeated(call, count)) < REPETITION:
        count = max(count + 1, math.ceil(count * REPETITION / elapsed))
    return count


def interleaved(calls: Mapping[str, Call], *, seconds: float, rounds: int) -> dict[str, Timing]:
    """Time calls in turn, A B C A B C ..., so that what slows the machine down slows all of them down.

    There are as many rounds as fit into ``seconds`` per call, but at least ``rounds``, and at least 2.
    """
    counts = {name: calls_per_repetition(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    done, started = 0, time.perf_counter()
    while done < max(rounds, 2) or time.perf_counter() - started < seconds * len(calls):
        for name, call in calls.items():
            times[name].append(1e3 * repeated(call, counts[name]) / counts[name])
        done += 1
    return {name: Timing.of(ms) for name, ms in times.items()}


def time_losses(
    losses: Mapping[str, Loss], x: Tensor, y: Tensor, conditions: Conditions, **others: Call
) -> dict[str, Timing]:
    """Time forward and backward of losses, and other calls, in one interleaved run."""
    calls = {name: functools.partial(gradients, loss, x, y) for name, loss in losses.items()}
    return interleaved({**others, **calls}, seconds=conditions.seconds, rounds=conditions.rounds)


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest error of gradients, relative to the largest entry of the expected ones."""
    scale = max(float(e.abs().max()) for e in expected)
    error = max(float((f.double() - e).abs().max()) for f, e in zip(found, expected, strict=True))
    return error / (scale or 1)


def peak_memory(make: Callable[..., Call], *arguments: object, device: str) -> int:
    """Return the bytes by which one call, at its peak, raises memory above the level just before it.

    On a CPU this happens in a new process.

    Args:
        make: ``make(*arguments)`` prepares the call: inputs, warm-up. It is a function of a module, which another
            process can import. The memory of the call's result counts.
        *arguments: arguments of ``make``.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        return peak_here(make, *arguments, device=device)
    if sys.platform != "linux":
        raise RuntimeError(f"expected Linux, whose /proc tells the peak memory of a process, got {sys.platform}")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(functools.partial(peak_here, make, *arguments, device=device)).result()


def peak_here(make: Callable[..., Call], *arguments: object, device: str) -> int:
    """Return the same, measured in this process.

    On a CPU, it should have allocated little before, and should measure no times afterwards.
    """
    return _peak_allocated(make(*arguments)) if device == "cuda" else _peak_resident(make, arguments)


def _peak_allocated(call: Call) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def _resident(field: str) -> int:
    """Return the resident bytes of this process: VmRSS, now; VmHWM, at the highest."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def _peak_resident(make: Callable[..., Call], arguments: Sequence[object]) -> int:
    # Blocks of 64 KiB and more come from the system and return to it (M_MMAP_THRESHOLD, which is -3): what was freed
    # before the call is not resident any more, and cannot serve the call unseen.
    ctypes.CDLL(None).mallopt(-3, 1 << 16)
    call = make(*arguments)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        print("/proc/self/clear_refs is not to be written to: peaks may be those of the warm-up", file=sys.stderr)
    before = _resident("VmRSS")
    result = call()
    peak = _resident("VmHWM")
    del result
    return peak - before
