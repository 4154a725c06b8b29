"""Part 3: microseconds of small batches, time over that of the products, memory, peers, a million pairs, a step.

Several processes compile first what is compiled: the time of a compiler is no result.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import torch

from benchmarks.baselines import BASELINES, SIGLIP_KERNEL, TO_COMPILE
from benchmarks.batch import Loss
from benchmarks.gpu.behaviour import Step
from benchmarks.gpu.launches import TILE
from benchmarks.gpu.report import Check, Report, Results
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.times import Call, graphed_where_possible, milliseconds, seconds
from benchmarks.gpu.training import training
from crossmodal_losses import LOSSES

# Products of B x B x D that forward and backward cannot do without, as long as S is not kept.
PRODUCTS = dict.fromkeys(LOSSES, 3) | dict.fromkeys(("triplet_max", "triplet_weighted", "triplet_weighted_mined"), 1)
PRODUCTS |= {"nt_xent": 4, "sup_con": 4}

# The time allowed over that of the products; of a column count that is odd, or of embeddings that are all alike, over
# that of others.
OVER_PRODUCTS, OVER_USUAL = 1.5, 2.0

# The time of ours allowed over that of the fastest rival, up to this B: eager beside eager, compiled beside compiled,
# graph beside graph; and compiled over eager, as a call is no more exact than this.
OVER_RIVALS, OVER_OURS, FASTER_UP_TO = 1 / 1.1, 1.05, 128

# Columns of an epilogue's largest tile of TILE rows, whose products are float32, and their gradients no larger.
COLUMNS, TILES = 16384, 2
# Matrices of B x D beyond the inputs, in float32: gradients of both sides as sums and as results, and gathered rows.
MATRICES = 6

# siglip-kernel's time on a GH200 or an H100, of the same batch, in ms; names of cards of the kind.
SIGLIP_MS, SIGLIP_CARDS = 48.8, ("H100 80GB HBM3", "H200")


def inductor(setting: Setting, loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Compile a loss for one size."""
    return torch.compile(loss, dynamic=False, backend="inductor" if setting.is_cuda else "eager")


def compiled_steps(setting: Setting, name: str, B: int) -> dict[str, Call]:
    """Return ours and the best form by hand, compiled."""
    x, y = setting.embeddings(B, setting.D, torch.float32)
    torch.compiler.reset()
    losses: dict[str, Callable[..., torch.Tensor]] = {
        "ours, compiled": LOSSES[name](),
        "autograd, compiled": TO_COMPILE[name],
    }
    return {label: Step(inductor(setting, loss), x, y) for label, loss in losses.items()}


def compile_before(_: Results, setting: Setting, name: str, B: int) -> None:
    """Run what is compiled once: torch keeps its code on disk, for the process that times it."""
    for step in compiled_steps(setting, name, B).values():
        step()


def small_batches(results: Results, setting: Setting, name: str, B: int) -> None:
    """Time ours and forms by hand, eager, compiled, and each in a graph, in microseconds."""
    x, y = setting.embeddings(B, setting.D, torch.float32)
    eager: dict[str, Call] = {"ours": Step(LOSSES[name](), x, y)}
    forms = {label: baseline.loss for label, baseline in BASELINES[name].items() if label.startswith("autograd")}
    eager |= {label: Step(loss, x, y) for label, loss in forms.items()}
    calls = eager | compiled_steps(setting, name, B)
    calls |= graphed_where_possible(setting, calls)
    us = {label: 1e3 * ms for label, ms in milliseconds(setting, calls).items()}
    for label, found in us.items():
        results.add(f"us, B = {B}: {name}, {label}", round(found, 1))
    bounded = setting.is_cuda and B <= FASTER_UP_TO
    for kind, suffix in (("eager", ""), ("in a graph", ", graphed")):
        rivals = [found for label, found in us.items() if label.startswith("autograd") and _is_of_kind(label, suffix)]
        times = us[f"ours{suffix}"] / min(rivals)
        results.add(
            f"times the fastest rival, {kind}, B = {B}: {name}", round(times, 2), OVER_RIVALS if bounded else None
        )
    times = us["ours, compiled"] / us["ours"]
    results.add(f"times ours, compiled, B = {B}: {name}", round(times, 2), OVER_OURS if bounded else None)


def _is_of_kind(label: str, suffix: str) -> bool:
    """Return whether a time is of this kind: in a graph, compiled or not; or eager."""
    return label.endswith(suffix) if suffix else not label.endswith((", graphed", ", compiled"))


def product(setting: Setting, t: int, dtype: torch.dtype, count: int = 1) -> Call:
    """Return a call that computes products of t x t x D."""
    a, b = (torch.randn(t, setting.D, device=setting.device).to(dtype) for _ in range(2))
    tile = torch.empty(t, t, dtype=dtype, device=setting.device)

    def call() -> None:
        for _ in range(count):
            torch.mm(a, b.T, out=tile)

    return call


def seconds_of_product(setting: Setting, B: int) -> float:
    """Return the seconds of one product of B x B x D, from that of so many tiles."""
    t = min(B, TILE)
    call = product(setting, t, torch.bfloat16, 64)
    return milliseconds(setting, {"": call}, least=0.0)[""] / 1e3 / 64 * (B / t) ** 2


def memory_allowed(B: int, D: int) -> int:
    """Return the bytes that a step may take beyond its inputs: of tiles, which do not grow with B, and O(B D)."""
    return 4 * (TILES * TILE * COLUMNS + MATRICES * B * D)


def large_batch(results: Results, setting: Setting, name: str, B: int) -> None:
    """Compare with the time of the products, and measure the memory beyond inputs."""
    x, y = setting.on_device(B, setting.D, torch.bfloat16)
    ours = Step(LOSSES[name](), x, y)
    t = min(B, TILE)
    calls: dict[str, Call] = {"ours": ours, "product": product(setting, t, torch.bfloat16, (B // t) ** 2)}
    found = milliseconds(setting, calls, least=0.0)
    results.add(f"ms, B = {B}: {name}", round(found["ours"], 2))
    times = found["ours"] / (PRODUCTS[name] * found["product"])
    results.add(f"times the products, B = {B}: {name}", round(times, 2), OVER_PRODUCTS if setting.is_cuda else None)
    if setting.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ours()
        beyond = torch.cuda.max_memory_allocated() - before
        allowed = memory_allowed(B, setting.D) / 2**20
        results.add(f"MiB beyond inputs, B = {B}: {name}", round(beyond / 2**20), allowed)


def unusual_batches(results: Results, setting: Setting, name: str) -> None:
    """Compare a number of columns that is odd, and embeddings that are all alike, with usual ones."""
    B = setting.large[0]
    loss = LOSSES[name]()
    x, y = setting.on_device(B + 1, setting.D, torch.bfloat16)
    x, y = x.detach(), y.detach()
    batches = {"usual": (x[:B], y[:B]), "odd": (x, y), "collapsed": (x[:1].expand(B, -1), y[:1].expand(B, -1))}
    calls: dict[str, Call] = {
        label: Step(loss, *(side.clone().requires_grad_() for side in sides)) for label, sides in batches.items()
    }
    found = milliseconds(setting, calls, least=0.0)
    for label in ("odd", "collapsed"):
        times = found[label] / found["usual"]
        results.add(f"times usual, {label}: {name}", round(times, 2), OVER_USUAL if setting.is_cuda else None)


def siglip(results: Results, setting: Setting) -> None:
    """Time the losses of three products, NT-Xent and siglip-kernel, where the latter publishes its time of one card."""
    B, D = setting.siglip
    x, y = setting.on_device(B, D, torch.bfloat16)
    losses: dict[str, Loss] = {name: LOSSES[name]() for name in ("sigmoid", "triplet_sum", "nt_xent")}
    if SIGLIP_KERNEL in BASELINES["sigmoid"] and setting.is_cuda:
        losses[SIGLIP_KERNEL] = BASELINES["sigmoid"][SIGLIP_KERNEL].loss
    card = torch.cuda.get_device_name() if setting.is_cuda else "a CPU"
    is_of_card = any(name in card for name in SIGLIP_CARDS)
    mark = f"{SIGLIP_MS} ms published for an H100 {'is the bound' if is_of_card else f'is no bound on {card}'}"
    for name, loss in losses.items():
        (ms,) = milliseconds(setting, {name: Step(loss, x, y)}, least=0.0).values()
        allowed = SIGLIP_MS if is_of_card and name in ("sigmoid", "triplet_sum") else None
        results.add(f"ms, B = {B}, D = {D}: {name}; {mark}", round(ms, 2), allowed)


def million(results: Results, setting: Setting, name: str) -> None:
    """Time one step of a million pairs; it may take as long over its products as a smaller batch."""
    x, y = setting.on_device(setting.million, setting.D, torch.bfloat16)
    found = seconds(setting, Step(LOSSES[name](), x, y))
    allowed = OVER_PRODUCTS * PRODUCTS[name] * seconds_of_product(setting, setting.million)
    results.add(f"s, B = {setting.million}: {name}", round(found, 2), round(allowed, 2) if setting.is_cuda else None)


def checks(setting: Setting) -> Iterator[tuple[str, Check]]:
    """Yield all checks of this part, by name."""
    yield "siglip", functools.partial(siglip, setting=setting)
    for name, B in itertools.product(LOSSES, setting.small):
        yield f"small, B = {B}: {name}", functools.partial(small_batches, setting=setting, name=name, B=B)
    for B, name in itertools.product(setting.large, LOSSES):
        yield f"large, B = {B}: {name}", functools.partial(large_batch, setting=setting, name=name, B=B)
    for name in LOSSES:
        yield f"unusual: {name}", functools.partial(unusual_batches, setting=setting, name=name)
    yield "a training step", functools.partial(training, setting=setting)
    for name in ("triplet_max", "sigmoid", "nt_xent"):
        yield f"a million pairs: {name}", functools.partial(million, setting=setting, name=name)


def compilations(setting: Setting) -> Iterator[tuple[str, Check]]:
    """Yield what is compiled, by name."""
    for name, B in itertools.product(LOSSES, setting.small):
        yield f"compiled, B = {B}: {name}", functools.partial(compile_before, setting=setting, name=name, B=B)


def run(report: Report, setting: Setting) -> None:
    """Run all of this part."""
    if setting.processes:
        report.run_all(compilations(setting), setting.processes)
    report.run_all(checks(setting), 0)
