"""The options that the commands of this folder share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from benchmarks.results import RESULTS
from crossmodal_losses import LOSSES

F = TypeVar("F", bound=Callable[..., Any])


def batch_sizes(*default: int) -> Callable[[F], F]:
    return click.option(
        "--batch-sizes", "-b", multiple=True, type=click.IntRange(2), default=default, show_default=True,
        help="B; give it several times for several.",
    )  # fmt: skip


def dimension(default: int) -> Callable[[F], F]:
    return click.option("--dimension", type=click.IntRange(1), default=default, show_default=True, help="D.")


def losses(command: F) -> F:
    return click.option(
        "--loss", "names", multiple=True, type=click.Choice(list(LOSSES)), default=list(LOSSES), show_default=True,
        help="What to measure; give it several times for several.",
    )(command)  # fmt: skip


def repetitions(seconds: float, rounds: int) -> Callable[[F], F]:
    """--seconds and --rounds."""

    def add(command: F) -> F:
        command = click.option(
            "--rounds", type=click.IntRange(2), default=rounds, show_default=True, help="Repetitions, at least."
        )(command)
        return click.option(
            "--seconds", type=float, default=seconds, show_default=True, help="Of repetitions, per candidate and size."
        )(command)

    return add


def device(command: F) -> F:
    return click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), default="cuda" if torch.cuda.is_available() else "cpu",
        show_default=True, help="Where to measure.",
    )(command)  # fmt: skip


def dtype(default: str = "float32") -> Callable[[F], F]:
    return click.option(
        "--dtype", type=click.Choice(["float32", "bfloat16"]), default=default, show_default=True,
        callback=lambda context, parameter, value: getattr(torch, value), help="Of the embeddings.",
    )  # fmt: skip


def out(command: F) -> F:
    return click.option(
        "--out", "folder", type=click.Path(file_okay=False, path_type=Path), default=RESULTS, show_default=True,
        help="The folder to write results into.",
    )(command)  # fmt: skip
