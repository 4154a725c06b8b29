"""Part 1: values and gradients of every loss, path, dtype and reduction, beside float64 on a CPU.

Triton compiles a variant of its kernels for every dtype, path and kind of size. Several processes share them.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.launches import MAKE
from benchmarks.gpu.report import Check, Report, Results
from benchmarks.gpu.setting import PATHS, Setting
from crossmodal_losses import LOSSES, PairLoss, cosine_similarity
from crossmodal_losses.checks import REDUCTIONS, Reduction

# The deviation of values, relative to the largest, and that of gradients, relative in the Frobenius norm. Half
# precision rounds the gradients themselves, and in tiles the weights of the pairs.
ALLOWED = {
    torch.float64: (1e-9, 1e-8),
    torch.float32: (2e-5, 1e-4),
    torch.bfloat16: (2e-5, 1e-2),
    torch.float16: (2e-5, 2e-3),
}
DTYPES = tuple(ALLOWED)
FUSED = torch.float32, torch.bfloat16, torch.float16  # the dtypes that have kernels

# From this B on a hinge or a hardest negative may be so close that rounding decides, unless similarities are exact.
MANY = 100

# Gradients are of a loss times this, by its reduction, lest float16 underflows. At B = 2 they may be tiny, and where
# D = 1 they are 0, the difference of large terms: errors are relative to entries of at least this size.
UPSTREAM = {"mean": 1024.0, "sum": 8.0, "none": 8.0}
LEAST, LEAST_OF_1 = 1e-4, 100.0

# Weights of the two directions, where they are compared.
WEIGHTS = 0.75, 0.25


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor], least: float = 0.0) -> float:
    """Return the largest relative error of a part in the Frobenius norm, where entries are at least of this size."""
    errors = [0.0]
    for f, e in zip(found, expected, strict=True):
        error, norm = float((f.double() - e).norm()), float(e.norm())
        bound = max(norm, least * math.sqrt(e.numel()))
        errors.append(error / bound if bound else math.inf if error else 0.0)
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def sizes_and_dimensions(setting: Setting) -> Iterator[tuple[int, int]]:
    """Yield every size with the last dimension, and the others with a small size and with a large one."""
    *others, D = setting.dimensions
    yield from ((B, D) for B in setting.sizes)
    yield from itertools.product((setting.sizes[len(setting.sizes) // 3], setting.sizes[-1]), others)


def rows(setting: Setting, name: str, B: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x and y, [B, D]: those of a loss that decides, of many rows, have exact similarities."""
    exact = name.startswith("triplet") and B > MANY
    return (setting.signs if exact else setting.embeddings)(B, D, dtype)


def upstream_of(value: Tensor, reduction: str) -> Tensor:
    """Return a gradient of the value, float64."""
    weights = torch.linspace(0.5, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
    return weights * UPSTREAM[reduction]


def add_errors(results: Results, where: str, dtype: torch.dtype, of_value: float, of_gradient: float) -> None:
    """Add the deviation of values, and that of gradients."""
    for what, error, allowed in zip(("value", "gradient"), (of_value, of_gradient), ALLOWED[dtype], strict=True):
        results.add(f"{what}: {where}", error, allowed)


def of_value(found: Tensor, expected: Tensor) -> float:
    """Return the largest deviation of values, relative to the largest of them, or to 1."""
    return float((found.detach().double() - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def compare(
    results: Results,
    setting: Setting,
    name: str,
    B: int,
    D: int,
    with_ids: bool,
    paths: Sequence[str] = PATHS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    reductions: Sequence[Reduction] = REDUCTIONS,
) -> None:
    """Compare all paths, dtypes and reductions of one loss at one size; add the largest deviation of each dtype."""
    ids = torch.arange(B) // 2 if with_ids else None
    ids_there = None if ids is None else ids.to(setting.device)
    wide = [side.detach().cpu() for side in rows(setting, name, B, D, torch.float64)]
    worst: dict[tuple[str, torch.dtype], list[float]] = {}
    for reduction in reductions:
        inputs = [side.clone().requires_grad_() for side in wide]
        value = LOSSES[name](reduction=reduction).of_similarities(cosine_similarity(*inputs), ids=ids)
        upstream = upstream_of(value, reduction)
        expected = [grad.to(setting.device) for grad in torch.autograd.grad(value, inputs, upstream)]
        value = value.detach().to(setting.device)
        for path, dtype in itertools.product(paths, dtypes):
            sides = rows(setting, name, B, D, dtype)
            found = setting.loss(name, path, B, reduction=reduction)(*sides, ids_there)
            grads = torch.autograd.grad(found, sides, upstream.to(found))
            errors = of_value(found, value), deviation(grads, expected, LEAST_OF_1 if D == 1 else LEAST)
            so_far = worst.setdefault((path, dtype), [0.0, 0.0])
            worst[path, dtype] = [max(a, b) if b == b else b for a, b in zip(so_far, errors, strict=True)]
    for (path, dtype), errors_of in worst.items():
        where = f"{name}, {path}, {str(dtype)[6:]}, {'ids' if with_ids else 'no ids'}, B = {B}, D = {D}"
        add_errors(results, where, dtype, *errors_of)


def compare_others(results: Results, setting: Setting, name: str, path: str, weights: tuple[float, float]) -> None:
    """Compare a loss with candidates without a partner, what it learns, and weights of the directions."""
    (B, of_x, of_y), D = setting.others, setting.dimensions[-1]
    tile_size = {"default": None, "dense": B, "tiles": max(1, min(setting.tile_size, B - 1)) // 2 + 1}[path]
    loss = MAKE[name](tile_size=tile_size, **{} if weights == (1, 1) else {"direction_weights": weights})
    of_everyone = [torch.arange(count) // 3 for count in (B, of_x, of_y)]

    def run(loss: PairLoss, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the value and the gradients of x, y, the candidates, and the parameters."""
        sides = rows(setting, name, B + max(of_x, of_y), D, dtype)
        parts = [side[:B] for side in sides] + [sides[0][B : B + of_x], sides[1][B : B + of_y]]
        inputs = [part.detach().to(device).clone().requires_grad_() for part in parts]
        ids, ids_x, ids_y = (values.to(device) for values in of_everyone)
        further = {"negatives_x": inputs[2], "negatives_y": inputs[3]}
        value = loss(*inputs[:2], ids, **further, negative_ids_x=ids_x, negative_ids_y=ids_y)
        upstream = value.new_tensor(UPSTREAM["mean"])
        return value.detach(), torch.autograd.grad(value, [*inputs, *loss.parameters()], upstream)

    expected = run(copy.deepcopy(loss).double(), torch.device("cpu"), torch.float64)
    expected_there = [part.to(setting.device) for part in expected[1]]
    for dtype in FUSED:
        value, grads = run(loss.to(setting.device), setting.device, dtype)
        where = f"{name}, {path}, {str(dtype)[6:]}, others, weights {weights}"
        errors = of_value(value, expected[0].to(setting.device)), deviation(grads, expected_there, LEAST)
        add_errors(results, where, dtype, *errors)


def checks(setting: Setting) -> Iterator[tuple[str, Check]]:
    """Yield all checks of this part, by name."""
    for (B, D), name, with_ids in itertools.product(sizes_and_dimensions(setting), LOSSES, (False, True)):
        check: Callable[..., None] = functools.partial(compare, setting=setting, name=name, B=B, D=D, with_ids=with_ids)
        yield f"{name}, B = {B}, D = {D}, ids {with_ids}", check
    for (B, D), name in itertools.product(setting.wide, LOSSES):
        once: dict[str, Any] = {"paths": PATHS[:1], "dtypes": FUSED, "reductions": REDUCTIONS[:1]}
        check = functools.partial(compare, setting=setting, name=name, B=B, D=D, with_ids=B % 2 > 0, **once)
        yield f"wide: {name}, B = {B}, D = {D}", check
    weights = [(name, pair) for name in MAKE for pair in ((1, 1), WEIGHTS) if pair == (1, 1) or "sigmoid" not in name]
    for (name, pair), path in itertools.product(weights, PATHS):
        check = functools.partial(compare_others, setting=setting, name=name, path=path, weights=pair)
        yield f"others: {name}, {path}, weights {pair}", check


def run(report: Report, setting: Setting) -> None:
    """Run all of this part."""
    report.run_all(checks(setting), setting.processes)
