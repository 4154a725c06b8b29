"""Part 1: values and gradients of every loss, path, dtype and reduction, beside float64 on a CPU."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import PATHS, Setting
from crossmodal_losses import LOSSES, cosine_similarity
from crossmodal_losses.checks import REDUCTIONS

# The deviation of values, relative to the largest, and that of gradients, relative in the Frobenius norm. Half
# precision rounds the gradients themselves, and in tiles the weights of the pairs.
ALLOWED = {
    torch.float64: (1e-9, 1e-8),
    torch.float32: (2e-5, 1e-4),
    torch.bfloat16: (2e-5, 1e-2),
    torch.float16: (2e-5, 2e-3),
}

# From this B on a hinge or a hardest negative may be so close that rounding decides: one anchor of 2 B.
MANY = 100


# Gradients are of a loss times this, by its reduction, lest float16 underflows. At B = 2 they may be tiny, and where
# D = 1 they are 0, the difference of large terms: errors are relative to entries of at least this size.
UPSTREAM = {"mean": 1024.0, "sum": 8.0, "none": 8.0}
LEAST, LEAST_OF_1 = 1e-4, 100.0


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor], least: float = LEAST) -> float:
    """Return the relative error in the Frobenius norm, where expected entries are at least of this size."""
    error = sum(float((f.double() - e).square().sum()) for f, e in zip(found, expected, strict=True))
    norm = sum(float(e.square().sum()) for e in expected)
    return math.sqrt(error / max(norm, least**2 * sum(e.numel() for e in expected)))


def sizes_and_dimensions(setting: Setting) -> Iterator[tuple[int, int]]:
    """Yield every size with the last dimension, and the others with a small size and with a large one."""
    *others, D = setting.dimensions
    yield from ((B, D) for B in setting.sizes)
    yield from itertools.product((setting.sizes[len(setting.sizes) // 3], setting.sizes[-1]), others)


def compare(report: Report, setting: Setting, name: str, B: int, D: int, with_ids: bool) -> None:
    """Compare all paths, dtypes and reductions of one loss at one size; add the largest deviation of each dtype."""
    ids = torch.arange(B) // 2 if with_ids else None
    ids_there = None if ids is None else ids.to(setting.device)
    wide = [rows.detach().cpu() for rows in setting.embeddings(B, D, torch.float64)]
    worst: dict[tuple[str, torch.dtype], list[float]] = {}
    for reduction in REDUCTIONS:
        inputs = [rows.clone().requires_grad_() for rows in wide]
        value = LOSSES[name](reduction=reduction).of_similarities(cosine_similarity(*inputs), ids=ids)
        upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).reshape(value.shape) * UPSTREAM[reduction]
        expected = [grad.to(setting.device) for grad in torch.autograd.grad(value, inputs, upstream)]
        value = value.detach().to(setting.device)
        for path, dtype in itertools.product(PATHS, ALLOWED):
            rows = setting.embeddings(B, D, dtype)
            found = setting.loss(name, path, B, reduction=reduction)(*rows, ids_there)
            grads = torch.autograd.grad(found, rows, upstream.to(found))
            scale = max(1.0, float(value.abs().max()))
            errors = (
                float((found.detach().double() - value).abs().max()) / scale,
                deviation(grads, expected, LEAST_OF_1 if D == 1 else LEAST),
            )
            so_far = worst.setdefault((path, dtype), [0.0, 0.0])
            worst[path, dtype] = [max(a, b) if b == b else b for a, b in zip(so_far, errors, strict=True)]
    for (path, dtype), errors_of in worst.items():
        where = f"{name}, {path}, {str(dtype)[6:]}, {'ids' if with_ids else 'no ids'}, B = {B}, D = {D}"
        of_value, of_gradient = ALLOWED[dtype]
        if name.startswith("triplet") and B > MANY:
            of_gradient += 1 / math.sqrt(B)
        report.add(f"value: {where}", errors_of[0], of_value)
        report.add(f"gradient: {where}", errors_of[1], of_gradient)


def run(report: Report, setting: Setting) -> None:
    """Run all of this part."""
    for (B, D), name, with_ids in itertools.product(sizes_and_dimensions(setting), LOSSES, (False, True)):
        check = functools.partial(compare, report, setting, name, B, D, with_ids)
        report.run(f"{name}, B = {B}, D = {D}, ids {with_ids}", check)
