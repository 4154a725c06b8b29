"""Part 2: nothing waits, everything can be captured, replayed, compiled and repeated to the bit, on any stream."""

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from benchmarks.gpu import counting
from benchmarks.gpu.report import Check, Report, Results
from benchmarks.gpu.setting import PATHS, Setting
from benchmarks.gpu.values import deviation
from crossmodal_losses import LOSSES, GatheredLoss, RingLoss

# A covering choice of dtypes, ids and reductions.
Variant = tuple[torch.dtype, bool, str]
VARIANTS: tuple[Variant, ...] = (
    (torch.float32, False, "mean"),
    (torch.float32, True, "none"),
    (torch.bfloat16, False, "none"),
    (torch.bfloat16, True, "mean"),
    (torch.float16, False, "mean"),
    (torch.float16, True, "none"),
)

# Relative deviations that rounding in another order allows.
ALLOWED, ALLOWED_HALF = 1e-4, 1e-2


@dataclass(frozen=True)
class Step:
    """Forward and backward of a loss, of the same embeddings each time."""

    loss: Callable[..., Tensor]
    x: Tensor
    y: Tensor
    ids: Tensor | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        """Return the loss, and the gradients of its sum."""
        value = self.loss(self.x, self.y, *([] if self.ids is None else [self.ids]))
        return value.detach(), *torch.autograd.grad(value.sum(), (self.x, self.y))


def differing(found: Sequence[Tensor], expected: Sequence[Tensor]) -> int:
    """Return how many parts differ in a bit."""
    return sum(not torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def step_of(setting: Setting, name: str, path: str, size: tuple[int, int], variant: Variant) -> Step:
    """Return the step of a loss of this size, dtype and reduction, with or without ids."""
    dtype, with_ids, reduction = variant
    ids = torch.arange(size[0], device=setting.device) // 2 if with_ids else None
    loss = setting.loss(name, path, size[0], reduction=reduction)
    return Step(loss, *setting.embeddings(*size, dtype), ids)


def of_every_step(setting: Setting, prefix: str, check: Callable[..., None]) -> Iterator[tuple[str, Check]]:
    """Yield a check of every loss, path, size and variant."""
    for name, path, size, variant in itertools.product(LOSSES, PATHS, setting.behaviour, VARIANTS):
        dtype, with_ids, reduction = variant
        about = f"{str(dtype)[6:]}, {'ids' if with_ids else 'no ids'}, {reduction}, B = {size[0]}, D = {size[1]}"
        where = f"{prefix}: {name}, {path}, {about}"
        yield where, functools.partial(_check_step, check, setting, where, (name, path, size, variant))


def _check_step(
    check: Callable[..., None], setting: Setting, where: str, of: tuple[Any, ...], results: Results
) -> None:
    check(results, setting, where, step_of(setting, *of))


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


def does_not_wait(results: Results, setting: Setting, where: str, step: Step) -> None:
    """Run once, to compile, and once more with waiting forbidden."""
    step()
    setting.wait()
    with waiting_is_an_error(setting):
        step()
    results.add(where, 0.0, 0.0)


def repeats_to_the_bit(results: Results, _: Setting, where: str, step: Step) -> None:
    """Run ten times; count the results that differ from the first."""
    first, *others = (step() for _ in range(10))
    results.add(where, sum(differing(other, first) > 0 for other in others), 0)


def captured(step: Callable[[], Any]) -> tuple[Any, Any]:
    """Capture a step in a CUDA graph; return the graph, and what the step returned, which a replay fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    return graph, found


def is_captured(results: Results, setting: Setting, where: str, step: Step) -> None:
    """Capture a CUDA graph, replay it on other embeddings, and compare with the same without a graph."""
    if not setting.is_cuda:
        return
    graph, found = captured(step)
    with torch.no_grad():
        step.x.copy_(step.x.flip(0))
    graph.replay()
    setting.wait()
    kept = [part.clone() for part in found]
    results.add(where, differing(kept, step()), 0)


def on_a_side_stream(results: Results, setting: Setting, where: str, step: Step) -> None:
    """Compare with the same on another stream, to the bit."""
    if not setting.is_cuda:
        return
    expected, stream = step(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = step()
    stream.synchronize()
    results.add(where, differing(found, expected), 0)


CHECKS: dict[str, Callable[..., None]] = {
    "does not wait": does_not_wait,
    "ten times the same bits": repeats_to_the_bit,
    "captured in a graph": is_captured,
    "on a side stream": on_a_side_stream,
}


def compiles(results: Results, setting: Setting, name: str, path: str) -> None:
    """Compile without a graph break, and compare with the same not compiled."""
    (B, D), *_ = setting.behaviour
    torch.compiler.reset()
    loss, (x, y) = setting.loss(name, path, B), setting.embeddings(B, D, torch.float32)
    compiled = torch.compile(loss, fullgraph=True, backend="inductor" if setting.is_cuda else "eager")
    deviations = deviation(Step(compiled, x, y)(), [part.double() for part in Step(loss, x, y)()])
    results.add(f"compiled: {name}, {path}", deviations, ALLOWED)


def beyond_2_to_the_31(results: Results, setting: Setting, name: str) -> None:
    """Compare one tile with more entries than 32 bits count with many tiles."""
    t = setting.whole_tile
    x, y = setting.on_device(t, 64, torch.bfloat16)
    expected = [part.double() for part in Step(LOSSES[name](tile_size=max(1, t // 12)), x, y)()]
    found = Step(LOSSES[name](tile_size=t - 1), x, y)()
    results.add(f"a tile of {(t - 1) ** 2} entries: {name}", deviation(found, expected), ALLOWED_HALF)


def one_rank(results: Results, setting: Setting) -> None:
    """Compare both losses of several processes, in a group of one, with the loss itself.

    A loss of one process does without its group. Here it goes the way of several, through the collectives.
    """
    (B, D), *_ = setting.behaviour
    x, y = setting.embeddings(B, D, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        place = (Path(folder) / "store").as_uri()
        distributed.init_process_group("nccl" if setting.is_cuda else "gloo", place, rank=0, world_size=1)
        group = distributed.group.WORLD
        assert group is not None
        try:
            for kind, name in itertools.product((GatheredLoss, RingLoss), LOSSES):
                loss = setting.loss(name, "tiles", B)
                expected = [part.double() for part in Step(loss, x, y)()]
                of_ranks = kind(loss, group)
                found = Step(lambda *sides, of=of_ranks: of._of_ranks(group, (*sides, *[None] * 5), {}), x, y)()
                results.add(f"one rank: {kind.__name__}, {name}", deviation(found, expected), ALLOWED)
        finally:
            distributed.destroy_process_group()


def checks(setting: Setting) -> Iterator[tuple[str, Check]]:
    """Yield the checks that several processes may share, by name."""
    for prefix, check in CHECKS.items():
        yield from of_every_step(setting, prefix, check)
    for name, path in itertools.product(LOSSES, ("default", "tiles")):
        yield f"compiled: {name}, {path}", functools.partial(compiles, setting=setting, name=name, path=path)


def run(report: Report, setting: Setting) -> None:
    """Run all of this part. Large tiles need the memory of other processes."""
    report.run_all(itertools.chain(checks(setting), counting.checks(setting)), setting.processes)
    report.run("one rank", functools.partial(one_rank, setting=setting))
    for name in ("triplet_max", "triplet_sum", "nt_xent"):
        report.run(f"a large tile: {name}", functools.partial(beyond_2_to_the_31, setting=setting, name=name))
