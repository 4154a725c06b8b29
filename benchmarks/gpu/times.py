"""Times on a device: medians of calls in turn, eager or as replayed CUDA graphs."""

import statistics
import time
from collections.abc import Callable, Mapping

from benchmarks.gpu.behaviour import captured
from benchmarks.gpu.setting import Setting

Call = Callable[[], object]


def seconds(setting: Setting, call: Call, count: int = 1) -> float:
    """Return the seconds that calls in a row take."""
    setting.wait()
    before = time.perf_counter()
    for _ in range(count):
        call()
    setting.wait()
    return time.perf_counter() - before


def milliseconds(setting: Setting, calls: Mapping[str, Call], least: float = 0.01) -> dict[str, float]:
    """Time calls in turn; return the median of each, in ms. A repetition is as many calls as take the least seconds."""
    counts = {}
    for name, call in calls.items():
        seconds(setting, call, 2)
        counts[name] = max(1, int(least / max(seconds(setting, call), 1e-6)))
    rounds = [
        {name: 1e3 * seconds(setting, call, counts[name]) / counts[name] for name, call in calls.items()}
        for _ in range(setting.rounds if least else 2)
    ]
    return {name: statistics.median(ms[name] for ms in rounds) for name in calls}


def graphed(setting: Setting, call: Call) -> Call:
    """Return the call as a replayed CUDA graph; on a CPU as it is."""
    if not setting.is_cuda:
        return call
    graph, _ = captured(call)
    return graph.replay  # type: ignore[no-any-return]


def graphed_where_possible(setting: Setting, calls: Mapping[str, Call]) -> dict[str, Call]:
    """Return those of the calls that can be captured, as CUDA graphs; print which cannot."""
    found: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            found[f"{name}, graphed"] = graphed(setting, call)
        except RuntimeError as error:
            print(f"{name} is not captured: {str(error)[:200]}")
    return found
