"""How long does a loss over candidates without a partner take, and how much memory, beside packages that have them?

``python -m benchmarks.negatives`` writes negatives.csv and .md, of one direction, x to y, which is what others compute:

* hard negatives: N = 7 B further candidates, all with gradients, beside the ranking losses of sentence-transformers;
* queue: N earlier embeddings, beside CrossBatchMemory of pytorch-metric-learning. It takes y from the memory as well,
  without a gradient. Hence only x has one, in every implementation.

All are given embeddings and normalise them, unless their name says that it was done before. Memory is the peak of one
forward and backward pass above the level just before it, less the bytes of the gradients. Nothing is measured unless
value and gradients are those of ours in float64.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm

from benchmarks import options
from benchmarks.autograd import TEMPERATURE
from benchmarks.baselines import compile_at_one_size
from benchmarks.batch import OURS, Conditions
from benchmarks.measure import deviation, interleaved, peak_memory
from benchmarks.ranks import TOLERANCE
from benchmarks.results import Record, write_table
from crossmodal_losses import NTXent

HARD, QUEUE = "hard negatives", "queue"
# Hard negatives of a pair.
HARDEST = 7
# Forward and backward: value and gradients of the embeddings that require them, in the order x, y, negatives.
Step = Callable[[], tuple[Tensor, Sequence[Tensor]]]
# x and y, [B, D], and negatives, [N, D] -> the step of an implementation.
Prepare = Callable[[Tensor, Tensor, Tensor], Step]


def differentiated(loss: Callable[..., Tensor], *embeddings: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """Run forward and backward of a loss with torch.autograd."""
    value = loss(*embeddings)
    return value.detach(), torch.autograd.grad(value, [e for e in embeddings if e.requires_grad])


def by_autograd(loss: Callable[..., Tensor]) -> Prepare:
    """Return an implementation whose step is forward and backward of a loss."""
    return lambda *embeddings: functools.partial(differentiated, loss, *embeddings)


def ours(x: Tensor, y: Tensor, negatives: Tensor) -> Tensor:
    """Compute NT-Xent from x to y."""
    return NTXent(temperature=TEMPERATURE, direction_weights=(1, 0))(x, y, negatives_y=negatives)


def by_cross_entropy(x: Tensor, y: Tensor, negatives: Tensor) -> Tensor:
    """Compute the same as one would write it: the cross-entropy of the rows, ``[B, B + N]``."""
    S = (normalize(x) / TEMPERATURE) @ normalize(torch.cat([y, negatives])).T
    return cross_entropy(S, torch.arange(len(x), device=x.device))


def of_normalised(x: Tensor, y: Tensor, negatives: Tensor) -> Tensor:
    """Compute the same of normalised negatives, in two products: no embeddings and no similarities are copied."""
    x = normalize(x) / TEMPERATURE
    S = x @ normalize(y).T
    return (torch.logaddexp(S.logsumexp(1), (x @ negatives.T).logsumexp(1)) - S.diagonal()).mean()


def by_logsumexp(x: Tensor, y: Tensor, negatives: Tensor) -> Tensor:
    """Compute the same of all embeddings as they are."""
    return of_normalised(x, y, normalize(negatives))


def normalised_before(x: Tensor, y: Tensor, negatives: Tensor) -> Step:
    """Prepare the loss with negatives that are normalised before: once, when they join the queue."""
    return functools.partial(differentiated, of_normalised, x, y, normalize(negatives))


def by_compiler(x: Tensor, y: Tensor, negatives: Tensor) -> Step:
    """Prepare the form that copies least, under torch.compile."""
    torch.compiler.reset()  # torch keeps only so many compiled sizes of a function
    return by_autograd(compile_at_one_size(by_logsumexp))(x, y, negatives)


def _parts(x: Tensor, y: Tensor, negatives: Tensor) -> list[Tensor]:
    """Return the columns of sentence-transformers, ``[B, D]`` each: x, y, all first negatives, all second ones, ..."""
    return [x, y, *(part.requires_grad_() for part in negatives.detach().chunk(HARDEST))]


def _ranking_loss(name: str, **settings: object) -> Any:
    model = torch.nn.Sequential(torch.nn.Identity())  # computing from embeddings does not use it
    return getattr(import_module("sentence_transformers.sentence_transformer.losses"), name)(
        model, scale=1 / TEMPERATURE, **settings
    )


def ranking_loss(x: Tensor, y: Tensor, negatives: Tensor) -> Step:
    """Prepare MultipleNegativesRankingLoss."""
    loss = _ranking_loss("MultipleNegativesRankingLoss")

    def value(*embeddings: Tensor) -> Tensor:
        return loss.compute_loss_from_embeddings([*embeddings], None)  # type: ignore[no-any-return]

    return functools.partial(differentiated, value, *_parts(x, y, negatives))


def cached_ranking_loss(mini_batch_size: int) -> Prepare:
    """Return CachedMultipleNegativesRankingLoss, without the passes through the encoders around it.

    Args:
        mini_batch_size: rows whose similarities are computed, and differentiated, at a time.
    """

    def prepare(x: Tensor, y: Tensor, negatives: Tensor) -> Step:
        loss = _ranking_loss("CachedMultipleNegativesRankingLoss", mini_batch_size=mini_batch_size)
        parts = _parts(x.detach().requires_grad_(), y.detach().requires_grad_(), negatives)

        def step() -> tuple[Tensor, Sequence[Tensor]]:
            value = loss.calculate_loss([[part] for part in parts], with_backward=True)
            gradients = [part.grad for part in parts if part.grad is not None]
            for part in parts:
                part.grad = None
            return value, gradients

        return step

    return prepare


def cross_batch_memory(name: str) -> Prepare:
    """Return CrossBatchMemory around a loss of pytorch-metric-learning, with a memory that is full of the negatives.

    Every step writes y over the same rows of the memory: B of B + N. Anchors and partners are one batch of 2 B.
    """

    def prepare(x: Tensor, y: Tensor, negatives: Tensor) -> Step:
        losses = import_module("pytorch_metric_learning.losses")
        (B, D), N = x.shape, len(negatives)
        loss = getattr(losses, name)(temperature=TEMPERATURE)
        memory = losses.CrossBatchMemory(loss, D, memory_size=N + B).to(x.device, x.dtype)
        memory.add_to_memory(negatives, torch.arange(B, B + N, device=x.device), N)
        labels = torch.arange(B, device=x.device).repeat(2)
        enqueued = torch.arange(2 * B, device=x.device) >= B

        def value(x: Tensor) -> Tensor:
            memory.queue_idx = N
            return memory(torch.cat([x, y]), labels, enqueue_mask=enqueued)  # type: ignore[no-any-return]

        return functools.partial(differentiated, value, x)

    return prepare


ANY = 1 << 20


class Implementation(NamedTuple):
    """An implementation, and the largest B that it is measured at.

    Attributes:
        prepare: makes its step for given embeddings.
        largest: largest B, where memory or time would be too much beyond.
        needs: the package that it imports.
    """

    prepare: Prepare
    largest: int = ANY
    needs: str = "torch"


BY_HAND = {
    "autograd, cross_entropy": Implementation(by_autograd(by_cross_entropy)),
    "autograd, logsumexp": Implementation(by_autograd(by_logsumexp)),
}
COMPILED = "autograd, compiled"
SENTENCE_TRANSFORMERS, METRIC_LEARNING = "sentence_transformers", "pytorch_metric_learning"
# Case -> name of an implementation -> the implementation. In a queue NTXentLoss makes tensors of B x B (N + B) numbers.
CASES: dict[str, dict[str, Implementation]] = {
    HARD: {
        OURS: Implementation(by_autograd(ours)),
        "MultipleNegativesRankingLoss": Implementation(ranking_loss, needs=SENTENCE_TRANSFORMERS),
        **{
            f"CachedMultipleNegativesRankingLoss, {rows} rows": Implementation(
                cached_ranking_loss(rows), largest, SENTENCE_TRANSFORMERS
            )
            for rows, largest in ((32, 256), (512, ANY))  # 32 is its default
        },
        **BY_HAND,
        COMPILED: Implementation(by_compiler),
    },
    QUEUE: {
        OURS: Implementation(by_autograd(ours)),
        "CrossBatchMemory(NTXentLoss)": Implementation(cross_batch_memory("NTXentLoss"), 32, METRIC_LEARNING),
        "CrossBatchMemory(SupConLoss)": Implementation(cross_batch_memory("SupConLoss"), 256, METRIC_LEARNING),
        **BY_HAND,
        "autograd, logsumexp, queue normalised before": Implementation(normalised_before),
        COMPILED: Implementation(by_compiler),
    },
}


def embeddings(case: str, B: int, N: int, conditions: Conditions) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y and negatives, the same in every call; those that a case has gradients of require them."""
    x, y = conditions.embeddings(B)
    generator = torch.Generator(conditions.device).manual_seed(N)
    negatives = torch.randn(N, conditions.D, generator=generator, dtype=conditions.dtype, device=conditions.device)
    return x, y.requires_grad_(case == HARD), negatives.requires_grad_(case == HARD)


def check(steps: dict[str, Step], x: Tensor, y: Tensor, negatives: Tensor) -> dict[str, str]:
    """Return the errors of the gradients, against those of ours in float64.

    Raises:
        click.ClickException: a value or a gradient is further away than ``ranks.TOLERANCE`` allows for this dtype.
    """
    exact = [e.detach().double().requires_grad_(e.requires_grad) for e in (x, y, negatives)]
    expected, expected_gradients = by_autograd(ours)(*exact)()
    allowed, errors = TOLERANCE[x.dtype], {}
    for name, step in steps.items():
        value, gradients = step()
        of_value = deviation([value], [expected])
        of_gradients = deviation([torch.cat([*gradients])], [torch.cat([*expected_gradients])])
        if not max(of_value, of_gradients) <= allowed:
            raise click.ClickException(
                f"expected {name} at B = {len(x)} within {allowed:g} of ours in float64, "
                f"got {of_value:.1e} away in the value and {of_gradients:.1e} in the gradients"
            )
        errors[name] = f"{of_gradients:.0e}"
    return errors


def prepared(case: str, name: str, B: int, N: int, conditions: Conditions) -> Step:
    """Return the step of an implementation, after one has loaded code and buffers."""
    step = CASES[case][name].prepare(*embeddings(case, B, N, conditions))
    step()
    return step


def extra_memory(case: str, name: str, B: int, N: int, conditions: Conditions) -> float:
    """Return the MiB that a step takes at its peak beyond embeddings and gradients."""
    peak = peak_memory(prepared, case, name, B, N, conditions, device=conditions.device)
    rows = 2 * B + N if case == HARD else B
    return (peak - rows * conditions.D * conditions.dtype.itemsize) / 2**20


def measure(case: str, B: int, N: int, names: Sequence[str], conditions: Conditions) -> Iterator[Record]:
    """Yield a record for every implementation, without its memory."""
    given = embeddings(case, B, N, conditions)
    steps = {name: CASES[case][name].prepare(*given) for name in names}
    errors = check(steps, *given)
    timings = interleaved(steps, seconds=conditions.seconds, rounds=conditions.rounds)
    base = timings[OURS]

    def ratio(its: float, of_ours: float) -> str:
        return f"{its / of_ours:.2f}"

    for name, its in timings.items():
        spread = f"{ratio(its.lower, base.upper)} to {ratio(its.upper, base.lower)}" if name != OURS else ""
        times = {"times ours": ratio(its.median, base.median), "range": spread}
        record = {"case": case, "B": B, "N": N, "D": conditions.D, "implementation": name}
        yield {**record, **its.columns(), **times, "error": errors[name]}


def installed(case: str, B: int, *, compiled: bool) -> list[str]:
    """Return the names of the implementations of a case that are measured here at this B."""
    return [
        name
        for name, implementation in CASES[case].items()
        if implementation.largest >= B and find_spec(implementation.needs) and (compiled or name != COMPILED)
    ]


@click.command()
@options.batch_sizes(32, 256, 1536)
@options.several("--queue-batch-sizes", "-q", type=click.IntRange(2), default=(32, 256), help=f"B; {options.TIMES}.")
@options.option("--queue", type=click.IntRange(1), default=65536, help="N, the embeddings in the queue.")
@options.option("--dimension", type=click.IntRange(1), default=1024, help="D.")
@options.device
@options.seconds(0.3)
@options.rounds(5)
@options.option("--compile/--no-compile", "compiled", default=True, help="Measure what torch.compile makes.")
@options.option("--memory-from", type=int, default=256, help="The smallest B at which memory is measured.")
@options.suffix
@options.out
def main(
    batch_sizes: tuple[int, ...],
    queue_batch_sizes: tuple[int, ...],
    queue: int,
    dimension: int,
    device: str,
    seconds: float,
    rounds: int,
    compiled: bool,
    memory_from: int,
    suffix: str,
    folder: Path,
) -> None:
    """Time hard negatives and a queue beside sentence-transformers and pytorch-metric-learning, and weigh them."""
    conditions = Conditions(("nt_xent",), dimension, torch.float32, device, seconds, rounds)
    sizes = [(HARD, B, HARDEST * B) for B in batch_sizes] + [(QUEUE, B, queue) for B in queue_batch_sizes]
    records: list[Record] = []
    for case, B, N in tqdm(sizes, "cases and sizes"):
        for record in measure(case, B, N, installed(case, B, compiled=compiled), conditions):
            extra = extra_memory(case, record["implementation"], B, N, conditions) if memory_from <= B else None
            records.append({**record, "extra MiB": "" if extra is None else round(extra, 1)})
    about = (
        f"forward and backward, {conditions}; range: quartiles over those of ours; memory beyond inputs and gradients"
    )
    write_table(folder, f"negatives{suffix}", records, about)


if __name__ == "__main__":
    main()
