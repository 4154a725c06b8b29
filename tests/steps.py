"""Runs in which something goes wrong at a chosen step."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

from crossmodal_losses import LOSSES, PairLoss


class Interrupted(Exception):
    """Stands for a process that ends."""


@contextmanager
def at_step(number: int, act: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Apply ``act`` to the audio embeddings of a step, counted from 1 over all epochs, before their NT-Xent loss."""
    original, calls = LOSSES["nt_xent"].forward, 0

    def forward(self: PairLoss, x: Tensor, y: Tensor, ids: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return original(self, act(x) if calls == number else x, y, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOSSES["nt_xent"], "forward", forward)
        yield


def interrupt(_: Tensor) -> Tensor:
    """End the run without a checkpoint of its last steps."""
    raise Interrupted


def make_nan(x: Tensor) -> Tensor:
    """Replace embeddings by NaN."""
    return x * math.nan
