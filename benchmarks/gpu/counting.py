"""The launches that a GPU sees, which have to be those that tests count without one."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.launches import DTYPES, LAUNCHES, MAKE, launches, of_small_batch
from benchmarks.gpu.report import Check, Results
from benchmarks.gpu.setting import Setting
from crossmodal_losses import LOSSES
from crossmodal_losses.checks import REDUCTIONS

# The largest number of kernels of a small batch, beside the upstream gradient of 1: one product may be split in D,
# which takes a kernel that adds its parts.
LARGEST_SMALL = 6


class Operators(TorchDispatchMode):
    """Counts the operators of torch that launch something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += launches(func)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_kernels() -> Iterator[list[Any]]:
    """Collect the launches of Triton kernels."""
    launched: list[Any] = []
    try:
        from triton.runtime.jit import JITFunction
    except ImportError:  # a trial on a CPU
        yield launched
        return
    run = JITFunction.run

    def counting(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        launched.append(kernel)
        return run(kernel, *args, **kwargs)

    JITFunction.run = counting
    try:
        yield launched
    finally:
        JITFunction.run = run


def step_of(
    setting: Setting, name: str, B: int, dtype: torch.dtype, with_ids: bool, **settings: Any
) -> Callable[[], Any]:
    """Return forward and backward of a loss, and of what it learns, after a first run, which compiles."""
    loss = MAKE[name](**settings).to(setting.device)
    inputs = [*setting.embeddings(B, setting.counted.D, dtype), *loss.parameters()]
    ids = torch.arange(B, device=setting.device) // 2 if with_ids else None

    def step() -> None:
        value = loss(*inputs[:2], ids)
        torch.autograd.grad(value, inputs, torch.ones_like(value))

    step()
    return step


def count_operators(step: Callable[[], Any]) -> int:
    """Count operators that launch something, and Triton kernels. Backward runs in this thread, where it is counted."""
    with counted_kernels() as kernels, Operators() as operators, torch.autograd.set_multithreading_enabled(False):
        step()
    count: int = operators.count
    return count + len(kernels)


def on_the_device(events: Iterable[Any]) -> list[str]:
    """Return the names of what the device ran, of the events of a profile."""
    return [event.name for event in events if event.device_type == DeviceType.CUDA]


def count_kernels(setting: Setting, step: Callable[[], Any]) -> int:
    """Count what the device runs; print it."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        setting.wait()
    names = on_the_device(profiler.events())
    print(*(name[:60] for name in names), sep=", ")
    return len(names)


def small_batch(results: Results, setting: Setting, name: str, reduction: str) -> None:
    """Count the launches of a small batch with ids, and what the device runs."""
    step = step_of(setting, name, setting.counted.dense, torch.bfloat16, True, reduction=reduction)
    expected = of_small_batch(name, reduction) if setting.is_cuda else None
    results.equal(f"launches, small: {name}, {reduction}", count_operators(step), expected)
    if name in LOSSES and setting.is_cuda:
        found = count_kernels(setting, step)
        passed = of_small_batch(name, reduction) <= found <= 1 + LARGEST_SMALL
        results.add(f"kernels, small: {name}, {reduction}", found, 1 + LARGEST_SMALL, passed)


def at_sizes_of_the_table(results: Results, setting: Setting, name: str) -> None:
    """Count the launches at the sizes of the table."""
    counted = setting.counted
    for i, B in enumerate((counted.dense, counted.tiled)):
        for j, dtype in enumerate(DTYPES):
            for with_ids in (False, True):
                step = step_of(setting, name, B, dtype, with_ids, tile_size=counted.tile_size)
                expected = LAUNCHES[name][len(DTYPES) * i + j][with_ids] if setting.is_cuda else None
                where = f"{name}, {str(dtype)[6:]}, {'ids' if with_ids else 'no ids'}, B = {B}"
                results.equal(f"launches: {where}", count_operators(step), expected)


def checks(setting: Setting) -> Iterator[tuple[str, Check]]:
    """Yield the counts, by name."""
    for name, reduction in itertools.product(MAKE, REDUCTIONS):
        check = functools.partial(small_batch, setting=setting, name=name, reduction=reduction)
        yield f"launches, small: {name}, {reduction}", check
    for name in MAKE:
        yield f"launches: {name}", functools.partial(at_sizes_of_the_table, setting=setting, name=name)
