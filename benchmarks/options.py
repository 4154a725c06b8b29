"""Command-line options that several benchmarks share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from benchmarks.batch import Conditions
from benchmarks.results import RESULTS
from crossmodal_losses import LOSSES

Command = TypeVar("Command", bound=Callable[..., Any])

out = click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    help="The folder to write results into.",
)
device = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cuda" if torch.cuda.is_available() else "cpu",
    show_default=True,
    help="Where to measure.",
)


def several(*names: str, help: str, **settings: Any) -> Callable[[Command], Command]:
    """Add an option that may be given several times."""
    help = f"{help}; give it several times for several."
    return click.option(*names, multiple=True, show_default=True, help=help, **settings)


def number(*names: str, minimum: int, default: int, help: str) -> Callable[[Command], Command]:
    """Add an option that is a whole number."""
    return click.option(*names, type=click.IntRange(minimum), default=default, show_default=True, help=help)


def batch_sizes(*default: int) -> Callable[[Command], Command]:
    """Add --batch-sizes."""
    return several("--batch-sizes", "-b", type=click.IntRange(2), default=default, help="B")


def seconds(default: float) -> Callable[[Command], Command]:
    """Add --seconds."""
    return click.option(
        "--seconds",
        type=float,
        default=default,
        show_default=True,
        help="Least time of repetitions, per call and size.",
    )


def rounds(default: int) -> Callable[[Command], Command]:
    """Add --rounds."""
    return number("--rounds", minimum=2, default=default, help="Least number of repetitions.")


def conditions(
    *added: Callable[[Callable[..., Any]], Callable[..., Any]], dimension: int, dtype: str = "float32"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of a benchmark's conditions; the command receives them as its first argument.

    Args:
        added: those of ``device``, ``seconds(...)`` and ``rounds(...)`` that the benchmark has.
        dimension, dtype: defaults of --dimension and --dtype.
    """
    decorators = [
        several("--loss", "losses", type=click.Choice(list(LOSSES)), default=list(LOSSES), help="A loss to measure"),
        number("--dimension", minimum=1, default=dimension, help="D."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16"]),
            default=dtype,
            show_default=True,
            help="Dtype of the embeddings.",
        ),
        *added,
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_conditions(
            losses: tuple[str, ...],
            dimension: int,
            dtype: str,
            device: str = "cpu",
            seconds: float = 0.0,
            rounds: int = 2,
            **others: Any,
        ) -> Any:
            shared = Conditions(losses, dimension, getattr(torch, dtype), device, seconds, rounds)
            return command(shared, **others)

        decorated: Callable[..., Any] = with_conditions
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        return decorated

    return decorate
