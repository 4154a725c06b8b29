"""How a benchmark measures: time, peak memory, deviation; and on which machine.

Times are medians, with quartiles, of interleaved repetitions after a warm-up. One repetition of a short call is many
calls in a row: thread pools fall asleep while other candidates have their turn, and waking them is not the call's cost.
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

Call = Callable[[], object]

# Seconds that one repetition lasts at least; and a first call that lasted so long is warm-up enough.
REPETITION, LONG = 0.01, 1.0

COLUMNS = ("ms", "lower quartile", "upper quartile")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median over repetitions, and the quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, ms: Sequence[float]) -> "Timing":
        """At least two repetitions."""
        lower, median, upper = statistics.quantiles(ms, n=4, method="inclusive")
        return cls(median, lower, upper)

    def columns(self) -> dict[str, float]:
        """As columns of a table."""
        return {name: round(ms, 3) for name, ms in zip(COLUMNS, (self.median, self.lower, self.upper), strict=True)}


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def repeated(run: Call, count: int) -> float:
    """Seconds that ``count`` calls in a row take."""
    synchronise()
    before = time.perf_counter()
    for _ in range(count):
        run()
    synchronise()
    return time.perf_counter() - before


def calls_per_repetition(run: Call) -> int:
    """Warm up, and find how many calls in a row last long enough."""
    if repeated(run, 1) >= LONG:
        return 1
    run()
    count = 1
    while (elapsed := repeated(run, count)) < REPETITION:
        count = max(count + 1, math.ceil(count * REPETITION / elapsed))
    return count


def interleaved(candidates: Mapping[str, Call], *, seconds: float = 1.0, rounds: int = 5) -> dict[str, Timing]:
    """Time candidates in turn, A B C A B C ..., so that what slows the machine down slows all of them down.

    There are as many rounds as fit into ``seconds`` per candidate, but at least ``rounds``, and at least 2.
    """
    counts = {name: calls_per_repetition(run) for name, run in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    done, started = 0, time.perf_counter()
    while done < max(rounds, 2) or time.perf_counter() - started < seconds * len(candidates):
        for name, run in candidates.items():
            times[name].append(1e3 * repeated(run, counts[name]) / counts[name])
        done += 1
    return {name: Timing.of(ms) for name, ms in times.items()}


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest error of gradients, relative to the largest entry of the expected ones."""
    scale = max(float(e.abs().max()) for e in expected)
    error = max(float((f.double() - e).abs().max()) for f, e in zip(found, expected, strict=True))
    return error / (scale or 1)


def peak_memory(make: Callable[..., Call], *arguments: object, device: str) -> int:
    """The bytes by which one call raises memory above what was in use just before it, at the highest.

    ``make(*arguments)`` prepares the call: inputs, warm-up. What the call returns counts. On a CPU both happen in a
    fresh process, so ``make`` is a function of a module.
    """
    if device == "cuda":
        return peak_here(make, *arguments, device=device)
    if sys.platform != "linux":
        raise RuntimeError(f"expected Linux, whose /proc tells the peak memory of a process, got {sys.platform}")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(functools.partial(peak_here, make, *arguments, device=device)).result()


def peak_here(make: Callable[..., Call], *arguments: object, device: str) -> int:
    """The same in this process, which on a CPU has not allocated much before, and measures no times afterwards."""
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
    """Bytes; VmRSS: now, VmHWM: at the highest."""
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
