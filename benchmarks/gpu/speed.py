"""Part 3: microseconds of small batches, time over that of the products, memory, peers, a million pairs, a step."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.baselines import BASELINES, TO_COMPILE
from benchmarks.gpu.behaviour import gradients
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from crossmodal_losses import LOSSES, NTXent, TripletMax

Call = Callable[[], object]

# Products of B x B x D that forward and backward cannot do without, as long as S is not kept.
PRODUCTS = dict.fromkeys(LOSSES, 3) | dict.fromkeys(("triplet_max", "triplet_weighted", "triplet_weighted_mined"), 1)
PRODUCTS |= {"nt_xent": 4, "sup_con": 4}

# The time allowed over that of the products; of a column count that is odd, or of embeddings that are all alike, over
# that of others; of ours over the fastest form by hand; and bytes beyond inputs, for each pair of S.
OVER_PRODUCTS, OVER_USUAL, OVER_HAND_WRITTEN, BYTES_OF_A_PAIR = 2.0, 2.0, 1.0, 1.0

# B at which a form by hand is compiled, which takes seconds; and up to which ours must be faster than all by hand.
COMPILED_AT, FASTER_UP_TO = (32, 128), 128

# siglip-kernel's time on an H100, of the same batch, in ms; compute capability from which it is the mark.
SIGLIP_MS, SIGLIP_CAPABILITY = 48.8, (9, 0)


def milliseconds(setting: Setting, calls: Mapping[str, Call], least: float = 0.01) -> dict[str, float]:
    """Time calls in turn; return the median of each, in ms. A repetition is as many calls as take the least seconds."""

    def repeated(call: Call, count: int) -> float:
        setting.wait()
        before = time.perf_counter()
        for _ in range(count):
            call()
        setting.wait()
        return time.perf_counter() - before

    counts = {}
    for name, call in calls.items():
        repeated(call, 2)
        counts[name] = max(1, int(least / max(repeated(call, 1), 1e-6)))
    rounds = [
        {name: 1e3 * repeated(call, counts[name]) / counts[name] for name, call in calls.items()}
        for _ in range(setting.rounds if least else 2)
    ]
    return {name: statistics.median(ms[name] for ms in rounds) for name in calls}


def graphed(setting: Setting, call: Call) -> Call:
    """Return the call as a replayed CUDA graph; on a CPU as it is."""
    if not setting.is_cuda:
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def small_batches(report: Report, setting: Setting, name: str, B: int) -> None:
    """Time ours, ours in a graph, forms by hand, and the best of these compiled, in microseconds."""
    x, y = setting.embeddings(B, setting.D, torch.float32)
    ours: Call = functools.partial(gradients, LOSSES[name](), x, y)
    calls = {"ours": ours, "ours, graphed": graphed(setting, ours)}
    forms = {label: baseline.loss for label, baseline in BASELINES[name].items() if label.startswith("autograd")}
    by_hand: dict[str, Call] = {label: functools.partial(gradients, loss, x, y) for label, loss in forms.items()}
    compiled: dict[str, Call] = {}
    if setting.is_cuda and B in COMPILED_AT:
        torch.compiler.reset()
        compiled["compiled"] = functools.partial(gradients, torch.compile(TO_COMPILE[name], dynamic=False), x, y)
    found = milliseconds(setting, {**calls, **by_hand, **compiled})
    for label, ms in found.items():
        report.add(f"us, B = {B}: {name}, {label}", round(1e3 * ms, 1))
    times = found["ours"] / min(found[label] for label in by_hand)
    allowed = OVER_HAND_WRITTEN if setting.is_cuda and B <= FASTER_UP_TO else None
    report.add(f"times eager autograd, B = {B}: {name}", round(times, 2), allowed)


def product(setting: Setting, B: int, dtype: torch.dtype) -> Call:
    """Return a call that computes one product of B x B x D, in tiles."""
    t = min(B, 4096)
    a, b = (torch.randn(t, setting.D, device=setting.device).to(dtype) for _ in range(2))
    tile = torch.empty(t, t, dtype=dtype, device=setting.device)

    def call() -> None:
        for _ in range((B // t) ** 2):
            torch.mm(a, b.T, out=tile)

    return call


def large_batch(report: Report, setting: Setting, name: str, B: int) -> None:
    """Compare with the time of the products, and measure the memory beyond inputs."""
    x, y = setting.on_device(B, setting.D, torch.bfloat16)
    ours: Call = functools.partial(gradients, LOSSES[name](), x, y)
    found = milliseconds(setting, {"ours": ours, "product": product(setting, B, torch.bfloat16)}, least=0.0)
    report.add(f"ms, B = {B}: {name}", round(found["ours"], 2))
    times = found["ours"] / (PRODUCTS[name] * found["product"])
    report.add(f"times the products, B = {B}: {name}", round(times, 2), OVER_PRODUCTS if setting.is_cuda else None)
    if setting.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ours()
        beyond = torch.cuda.max_memory_allocated() - before
        report.add(f"MiB beyond inputs, B = {B}: {name}", round(beyond / 2**20))
        report.add(f"bytes of a pair, B = {B}: {name}", round(beyond / B**2, 3), BYTES_OF_A_PAIR if B > 50000 else None)


def unusual_batches(report: Report, setting: Setting, name: str) -> None:
    """Compare a number of columns that is odd, and embeddings that are all alike, with usual ones."""
    B = setting.large[0]
    loss = LOSSES[name]()
    x, y = setting.on_device(B + 1, setting.D, torch.bfloat16)
    x, y = x.detach(), y.detach()
    batches = {"usual": (x[:B], y[:B]), "odd": (x, y), "collapsed": (x[:1].expand(B, -1), y[:1].expand(B, -1))}
    calls = {
        label: functools.partial(gradients, loss, *(side.clone().requires_grad_() for side in sides))
        for label, sides in batches.items()
    }
    found = milliseconds(setting, calls, least=0.0)
    for label in ("odd", "collapsed"):
        times = found[label] / found["usual"]
        report.add(f"times usual, {label}: {name}", round(times, 2), OVER_USUAL if setting.is_cuda else None)


def siglip(report: Report, setting: Setting) -> None:
    """Time the losses of three products and NT-Xent where siglip-kernel publishes its time."""
    B, D = setting.siglip
    x, y = setting.on_device(B, D, torch.bfloat16)
    is_mark = setting.is_cuda and torch.cuda.get_device_capability() >= SIGLIP_CAPABILITY
    for name in ("sigmoid", "triplet_sum", "nt_xent"):
        call: Call = functools.partial(gradients, LOSSES[name](), x, y)
        (ms,) = milliseconds(setting, {name: call}, least=0.0).values()
        allowed = SIGLIP_MS if is_mark and name != "nt_xent" else None
        report.add(f"ms, B = {B}, D = {D}: {name}", round(ms, 2), allowed)


def million(report: Report, setting: Setting, name: str) -> None:
    """Time one step of a million pairs."""
    x, y = setting.on_device(setting.million, setting.D, torch.bfloat16)
    setting.wait()
    before = time.perf_counter()
    gradients(LOSSES[name](), x, y)
    setting.wait()
    report.add(f"s, B = {setting.million}: {name}", round(time.perf_counter() - before, 2))


def training_step(report: Report, setting: Setting) -> None:
    """Time a step of the paper's heads on features of frozen encoders, with Adam, eager and in a graph."""
    B, D = 32, setting.D
    heads = nn.ModuleList(
        nn.Sequential(nn.Linear(inputs, D), nn.ReLU(), nn.Linear(D, D)) for inputs in (2 * D, 3 * D // 4)
    ).to(setting.device)
    features = [torch.randn(B, inputs, device=setting.device) for inputs in (2 * D, 3 * D // 4)]
    for loss in (NTXent(), TripletMax()):
        options: dict[str, Any] = {"fused": True, "capturable": True} if setting.is_cuda else {}
        optimiser = torch.optim.Adam(heads.parameters(), lr=1e-4, **options)

        def step(loss: nn.Module = loss, optimiser: torch.optim.Optimizer = optimiser) -> None:
            optimiser.zero_grad(set_to_none=False)
            loss(*(head(part) for head, part in zip(heads, features, strict=True))).backward()
            optimiser.step()

        for _ in range(3):
            step()
        found = milliseconds(setting, {"eager": step, "graphed": graphed(setting, step)})
        for label, ms in found.items():
            report.add(f"us of a training step, B = {B}: {type(loss).__name__}, {label}", round(1e3 * ms, 1))


def run(report: Report, setting: Setting) -> None:
    """Run all of this part."""
    report.run("siglip", functools.partial(siglip, report, setting))
    for name, B in itertools.product(LOSSES, setting.small):
        report.run(f"small, B = {B}: {name}", functools.partial(small_batches, report, setting, name, B))
    for B, name in itertools.product(setting.large, LOSSES):
        report.run(f"large, B = {B}: {name}", functools.partial(large_batch, report, setting, name, B))
    for name in LOSSES:
        report.run(f"unusual: {name}", functools.partial(unusual_batches, report, setting, name))
    report.run("a training step", functools.partial(training_step, report, setting))
    for name in ("triplet_max", "sigmoid", "nt_xent"):
        report.run(f"a million pairs: {name}", functools.partial(million, report, setting, name))
