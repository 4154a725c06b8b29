"""Which form of Adam trains the heads of the paper's frozen runs in the least time a step?

The heads have the paper's sizes, and features are drawn at random. Two runs in one process, their weights stacked, are
counted as two steps. ``python -m benchmarks.training.adam`` writes adam.csv and .md.
"""

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Adam

from benchmarks import options
from benchmarks.frozen import AUDIO, TEXT
from benchmarks.measure import interleaved
from benchmarks.results import Record, write_table
from crossmodal_losses import NTXent
from reference_model.models.dual_encoder import Heads

LEARNING_RATE = 1e-4
FUSED = "fused"  # as in the reference model


def new_heads() -> Heads:
    """Return heads of the paper's sizes."""
    return Heads(AUDIO, TEXT, hidden_size=2048, embedding_size=1024)


def on_one_buffer(module: nn.Module) -> nn.Parameter:
    """Move the parameters of a module, and their gradients, into one vector each; return that of the parameters."""
    parameters = list(module.parameters())
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    sizes = [p.numel() for p in parameters]
    for p, values, grad in zip(parameters, flat.detach().split(sizes), flat.grad.split(sizes), strict=True):
        p.data, p.grad = values.view_as(p), grad.view_as(p)
    return flat


def step_of(optimizer: Adam, loss: Callable[[], Tensor], *, keep_grads: bool = False) -> Callable[[], Tensor]:
    """Return a call that updates the weights and gives the loss; gradients that are kept are set to 0, not freed."""

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=not keep_grads)
        value = loss()
        value.backward()
        optimizer.step()
        return value

    return step


def steps(batch_size: int) -> dict[str, tuple[Callable[[], Tensor], int]]:
    """Return for each form a call, and the number of steps that it takes."""
    audio, text, loss = torch.randn(batch_size, AUDIO), torch.randn(batch_size, TEXT), NTXent()

    def of_heads(heads: Heads) -> Callable[[], Tensor]:
        return lambda: loss(*heads(audio, text))

    found: dict[str, tuple[Callable[[], Tensor], int]] = {}
    for form in ("loop", "foreach", FUSED):
        heads = new_heads()
        adam = Adam(heads.parameters(), lr=LEARNING_RATE, foreach=form == "foreach", fused=form == FUSED)
        found[form] = step_of(adam, of_heads(heads)), 1
    flat = on_one_buffer(heads := new_heads())
    one = Adam([flat], lr=LEARNING_RATE, fused=True)
    found["fused, one buffer"] = step_of(one, of_heads(heads), keep_grads=True), 1

    weights, _ = stack_module_state([new_heads(), new_heads()])
    pair = Adam(weights.values(), lr=LEARNING_RATE, fused=True)
    embed = vmap(lambda of_one: functional_call(heads, of_one, (audio, text)))

    def of_both() -> Tensor:
        x, y = embed(weights)
        return loss(x[0], y[0]) + loss(x[1], y[1])

    found["fused, two runs in one process"] = step_of(pair, of_both), 2
    return found


@click.command()
@click.option("--batch-size", type=click.IntRange(2), default=32, help="Pairs; the paper's AudioCaps has 32.")
@options.seconds(3.0)
@options.rounds(5)
@options.out
def main(batch_size: int, seconds: float, rounds: int, folder: Path) -> None:
    """Time a training step of the heads with every form of Adam, in one interleaved run."""
    calls = steps(batch_size)
    timings = interleaved({form: call for form, (call, _) in calls.items()}, seconds=seconds, rounds=rounds)
    records: list[Record] = []
    for form, timing in timings.items():
        count = calls[form][1]
        columns = {name: round(ms / count, 3) for name, ms in timing.columns().items()}
        faster = count * timings[FUSED].median / timing.median
        records.append({"Adam": form, **columns, "times as fast as fused": round(faster, 2)})
    number = sum(p.numel() for p in new_heads().parameters())
    about = f"a step of one run: forward, backward, update of {number / 1e6:.1f} million weights; B = {batch_size}, cpu"
    write_table(folder, "adam", records, about)


if __name__ == "__main__":
    main()
