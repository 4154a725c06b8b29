"""Part 2: nothing waits, everything can be captured, replayed, compiled and repeated to the bit, on any stream."""

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import PATHS, Setting
from benchmarks.gpu.values import deviation
from crossmodal_losses import LOSSES, GatheredLoss, NTXent, PairLoss, RingLoss

# Launches of forward and backward of a small batch, which tests count without a GPU; one more for reduction="none".
SMALL = {"mean": 5, "sum": 5, "none": 6}

# Operators that launch nothing, beside views; and the gradient of 1, which autograd makes.
NO_LAUNCH = "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "ones_like"

# Relative deviations that rounding in another order allows.
ALLOWED, ALLOWED_HALF = 1e-4, 1e-2


def gradients(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Run forward and backward; return the loss and its gradients."""
    value = loss(x, y)
    return value.detach(), *torch.autograd.grad(value.sum(), (x, y))


def runs(report: Report, setting: Setting, prefix: str, check: Callable[..., None]) -> None:
    """Run a check of every loss, path, and of single and half precision, in the size for it."""
    for name, path, dtype in itertools.product(LOSSES, PATHS, (torch.float32, torch.bfloat16)):
        B, D = setting.behaviour
        arguments = setting.loss(name, path, B), *setting.embeddings(B, D, dtype)
        where = f"{prefix}: {name}, {path}, {str(dtype)[6:]}"
        report.run(where, functools.partial(check, report, setting, where, *arguments))


@contextmanager
def waiting_is_an_error(setting: Setting) -> Iterator[None]:
    """Let torch refuse what waits for the device."""
    if setting.is_cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if setting.is_cuda:
            torch.cuda.set_sync_debug_mode("default")


def does_not_wait(report: Report, setting: Setting, where: str, loss: PairLoss, x: Tensor, y: Tensor) -> None:
    """Run once, to compile, and once more with waiting forbidden."""
    gradients(loss, x, y)
    setting.wait()
    with waiting_is_an_error(setting):
        gradients(loss, x, y)
    report.add(where, 0.0, 0.0)


def repeats_to_the_bit(report: Report, _: Setting, where: str, loss: PairLoss, x: Tensor, y: Tensor) -> None:
    """Run ten times; count the results that differ from the first."""
    first, *others = (gradients(loss, x, y) for _ in range(10))
    differ = sum(not all(torch.equal(a, b) for a, b in zip(first, other, strict=True)) for other in others)
    report.add(where, differ, 0)


def is_captured(report: Report, setting: Setting, where: str, loss: PairLoss, x: Tensor, y: Tensor) -> None:
    """Capture a CUDA graph, replay it on other embeddings, and compare with the same without a graph."""
    if not setting.is_cuda:
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients(loss, x, y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gradients(loss, x, y)
    with torch.no_grad():
        x.copy_(x.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    kept = [part.clone() for part in found]
    report.add(where, sum(not torch.equal(a, b) for a, b in zip(kept, gradients(loss, x, y), strict=True)), 0)


def on_a_side_stream(report: Report, setting: Setting, where: str, loss: PairLoss, x: Tensor, y: Tensor) -> None:
    """Compare with the same on another stream, to the bit."""
    if not setting.is_cuda:
        return
    expected, stream = gradients(loss, x, y), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = gradients(loss, x, y)
    stream.synchronize()
    report.add(where, sum(not torch.equal(a, b) for a, b in zip(found, expected, strict=True)), 0)


class Operators(TorchDispatchMode):
    """Counts the operators of torch that launch something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and func.overloadpacket.__name__ not in NO_LAUNCH
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_kernels() -> Iterator[list[Any]]:
    """Collect the launches of Triton kernels."""
    from triton.runtime.jit import JITFunction

    launched: list[Any] = []
    run = JITFunction.run

    def counting(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        launched.append(kernel)
        return run(kernel, *args, **kwargs)

    JITFunction.run = counting
    try:
        yield launched
    finally:
        JITFunction.run = run


def launches(report: Report, setting: Setting, name: str, reduction: str) -> None:
    """Count the launches of a small batch, with ids; backward runs in this thread, lest they go uncounted."""
    B, D = setting.behaviour
    x, y = setting.embeddings(B, D, torch.bfloat16)
    loss, ids = setting.loss(name, "default", B, reduction=reduction), torch.arange(B, device=setting.device) // 2
    value = loss(x, y, ids)
    upstream = torch.ones_like(value)
    torch.autograd.grad(value, (x, y), upstream)
    with counted_kernels() as kernels, Operators() as operators, torch.autograd.set_multithreading_enabled(False):
        torch.autograd.grad(loss(x, y, ids), (x, y), upstream)
    allowed = SMALL[reduction] if setting.is_cuda else None
    report.add(f"launches: {name}, {reduction}", operators.count + len(kernels), allowed)


def compiles(report: Report, setting: Setting, name: str, path: str) -> None:
    """Compile without a graph break, and compare with the same not compiled."""
    B, D = setting.behaviour
    torch.compiler.reset()
    loss, (x, y) = setting.loss(name, path, B), setting.embeddings(B, D, torch.float32)
    compiled = torch.compile(loss, fullgraph=True, backend="inductor" if setting.is_cuda else "eager")
    deviations = deviation(gradients(compiled, x, y), [part.double() for part in gradients(loss, x, y)])
    report.add(f"compiled: {name}, {path}", deviations, ALLOWED)


def beyond_2_to_the_31(report: Report, setting: Setting, name: str) -> None:
    """Compare one tile with more entries than 32 bits count with many tiles."""
    t = setting.whole_tile
    x, y = setting.on_device(t, 64, torch.bfloat16)
    expected = [part.double() for part in gradients(LOSSES[name](tile_size=max(1, t // 12)), x, y)]
    found = gradients(LOSSES[name](tile_size=t - 1), x, y)
    report.add(f"a tile of {(t - 1) ** 2} entries: {name}", deviation(found, expected), ALLOWED_HALF)


def one_rank(report: Report, setting: Setting) -> None:
    """Compare both losses of several processes, in a group of one, with the loss itself."""
    B, D = setting.behaviour
    x, y = setting.embeddings(B, D, torch.float32)
    expected = [part.double() for part in gradients(NTXent(), x, y)]
    with tempfile.TemporaryDirectory() as folder:
        place = (Path(folder) / "store").as_uri()
        distributed.init_process_group("nccl" if setting.is_cuda else "gloo", place, rank=0, world_size=1)
        try:
            for kind in (GatheredLoss, RingLoss):
                found = gradients(kind(NTXent(tile_size=setting.tile_size)), x, y)
                report.add(f"one rank: {kind.__name__}", deviation(found, expected), ALLOWED)
        finally:
            distributed.destroy_process_group()


def run(report: Report, setting: Setting) -> None:
    """Run all of this part."""
    runs(report, setting, "does not wait", does_not_wait)
    runs(report, setting, "ten times the same bits", repeats_to_the_bit)
    runs(report, setting, "captured in a graph", is_captured)
    runs(report, setting, "on a side stream", on_a_side_stream)
    for name, reduction in itertools.product(LOSSES, SMALL):
        report.run(f"launches: {name}, {reduction}", functools.partial(launches, report, setting, name, reduction))
    report.run("one rank", functools.partial(one_rank, report, setting))
    for name in ("triplet_max", "triplet_sum", "nt_xent"):
        report.run(f"a large tile: {name}", functools.partial(beyond_2_to_the_31, report, setting, name))
    for name, path in itertools.product(LOSSES, ("default", "tiles")):
        report.run(f"compiled: {name}, {path}", functools.partial(compiles, report, setting, name, path))
