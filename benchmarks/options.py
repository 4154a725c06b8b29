"""Command-line options that several benchmarks share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.batch import Conditions
from benchmarks.results import RESULTS
from crossmodal_losses import LOSSES

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

option = functools.partial(click.option, show_default=True)
TIMES = "give it several times for several"
several = functools.partial(option, multiple=True)

folder = click.Path(file_okay=False, path_type=Path)
out = option("--out", "folder", type=folder, default=RESULTS, help="The folder to write results into.")
suffix = click.option(
    "--suffix",
    default="",
    callback=lambda _context, _parameter, value: value and f"-{value}",
    help="Suffix of the files' names: newest-torch writes losses-newest-torch.md.",
)
AUTO = "cuda" if torch.cuda.is_available() else "cpu"
device = option("--device", type=click.Choice(["cpu", "cuda"]), default=AUTO, help="Where to measure.")


def batch_sizes(*default: int) -> Decorator:
    """Add --batch-sizes."""
    return several("--batch-sizes", "-b", type=click.IntRange(2), default=default, help=f"B; {TIMES}.")


def seconds(default: float) -> Decorator:
    """Add --seconds."""
    return option("--seconds", type=float, default=default, help="Least time of repetitions, per call and size.")


def rounds(default: int) -> Decorator:
    """Add --rounds."""
    return option("--rounds", type=click.IntRange(2), default=default, help="Least number of repetitions.")


def conditions(*others: Decorator, dimension: int, dtype: str = "float32") -> Decorator:
    """Add the options of a measurement's conditions, which the command receives as ``conditions``.

    Args:
        others: those of ``device``, ``seconds(...)`` and ``rounds(...)`` that the command has.
        dimension, dtype: defaults of --dimension and --dtype.
    """
    losses, dtypes = list(LOSSES), click.Choice(["float32", "bfloat16"])
    decorators: list[Decorator] = [
        several("--loss", "losses", type=click.Choice(losses), default=losses, help=f"A loss to measure; {TIMES}."),
        option("--dimension", type=click.IntRange(1), default=dimension, help="D."),
        option("--dtype", type=dtypes, default=dtype, help="Dtype of the embeddings."),
        *others,
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_conditions(losses: tuple[str, ...], dimension: int, dtype: str, **given: Any) -> Any:
            optional = {name: given.pop(name) for name in ("device", "seconds", "rounds") if name in given}
            return command(conditions=Conditions(losses, dimension, getattr(torch, dtype), **optional), **given)

        decorated: Callable[..., Any] = with_conditions
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        return decorated

    return decorate
