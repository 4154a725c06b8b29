"""Runs from the command line, and runs in which something goes wrong at a chosen step."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from torch import Tensor

from crossmodal_losses import LOSSES, PairLoss
from reference_model.config import Config

CommandLine = Callable[..., Result]  # the fixture command_line: python -m reference_model, in this process


def train_arguments(config: Config, folder: Path) -> list[str]:
    """Return the arguments of ``python`` that train a run of the paper's protocol."""
    settings = ["data", "dataset", "clip_seconds", "model", "encoders", "loss", "epochs", "batch_size"]
    settings += ["learning_rate", "workers", "seed"]
    options = {f"--{name.replace('_', '-')}": getattr(config, name) for name in settings} | {"--out": folder}
    return ["-m", "reference_model", "train", *(str(value) for pair in options.items() for value in pair)]


class Interrupted(Exception):
    """Stands for a process that ends."""


@contextmanager
def at_step(number: int, act: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Apply ``act`` to the audio embeddings of a step, counted from 1 over all epochs, before their NT-Xent loss."""
    original, calls = LOSSES["nt_xent"].forward, 0

    def forward(self: PairLoss, x: Tensor, y: Tensor, ids: Tensor | None = None, **negatives: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return original(self, act(x) if calls == number else x, y, ids, **negatives)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOSSES["nt_xent"], "forward", forward)
        yield


def interrupt(_: Tensor) -> Tensor:
    """End the run without a checkpoint of its last steps."""
    raise Interrupted


def make_nan(x: Tensor) -> Tensor:
    """Replace embeddings by NaN."""
    return x * math.nan
