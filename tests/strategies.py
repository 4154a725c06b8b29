"""Inputs that hypothesis draws.

Similarities, margins and coefficients lie on a dyadic grid, so that sums and differences are exact in float64, and
ties and kinks are hit exactly, by a loss and by its oracle.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from crossmodal_losses import LOSSES
from crossmodal_losses.checks import Batch

GRID = 64

sizes = st.integers(1, 8)
losses = st.sampled_from(sorted(LOSSES))
reductions = st.sampled_from(["mean", "sum", "none"])


def _from_grid(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.float64) / GRID)


@st.composite
def similarities(draw: st.DrawFn, size: st.SearchStrategy[int] = sizes) -> Tensor:
    """Draw S, float64 [B, B]: any values in [-1, 1], few distinct ones (many ties), or one; positives may all be 1."""
    B = draw(size)
    values = draw(
        st.sampled_from(
            [st.integers(-GRID, GRID), st.sampled_from([-GRID, 0, GRID // 2]), st.just(GRID // 2), st.just(0)]
        )
    )
    S = _from_grid(draw(hnp.arrays(np.int64, (B, B), elements=values)))
    if draw(st.booleans()):
        S.fill_diagonal_(1)
    return S


@st.composite
def ids_for(draw: st.DrawFn, size: int) -> Tensor | None:
    """Draw ids: None, all distinct, all equal, or some equal, in every integer dtype."""
    kind = draw(st.sampled_from(["none", "distinct", "equal", "some"]))
    if kind == "none":
        return None
    dtype = draw(st.sampled_from([torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]))
    if kind == "distinct":
        return torch.tensor(draw(st.permutations(range(size))), dtype=dtype)
    highest = 0 if kind == "equal" else max(1, size // 2)
    return torch.tensor(draw(st.lists(st.integers(0, highest), min_size=size, max_size=size)), dtype=dtype)


@st.composite
def embeddings(draw: st.DrawFn, size: st.SearchStrategy[int] = sizes) -> tuple[Tensor, Tensor]:
    """Draw x and y, float64 [B, D], with duplicates and rows of zeros; the scale of each may be extreme."""
    B, D = draw(size), draw(st.integers(1, 6))
    pair = []
    for _ in range(2):
        x = _from_grid(draw(hnp.arrays(np.int64, (B, D), elements=st.integers(-GRID, GRID))))
        if draw(st.booleans()):
            x[draw(st.integers(0, B - 1))] = x[draw(st.integers(0, B - 1))].clone()
        if draw(st.booleans()):
            x[draw(st.integers(0, B - 1))] = 0
        pair.append(x * draw(st.sampled_from([1.0, 2.0**-40, 2.0**40])))
    return pair[0], pair[1]


# Keyed by the name of the setting, so that a new loss with settings of these names needs nothing here.
_margins = st.one_of(st.just(0.2), st.integers(0, 16).map(lambda k: k / 8))
_temperatures = st.sampled_from([0.005, 0.01, 0.07, 0.5, 1.0, 10.0])
_coefficients = st.lists(st.integers(-16, 16).map(lambda k: k / 8), min_size=1, max_size=4).map(tuple)
SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "margin": _margins,
    "temperature": _temperatures,
    "bias": st.sampled_from([-10.0, -1.0, 0.0, 2.5]),
    "direction_weights": st.sampled_from([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.25, 2.0)]),
    "positive_coefficients": st.one_of(st.just((0.5, -0.7, 0.2)), _coefficients),
    "negative_coefficients": st.one_of(st.just((0.03, -0.4, 0.9)), _coefficients),
}


@st.composite
def settings_of(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Draw settings of the loss called name, besides its reduction and its tile size."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    settings = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"reduction", "tile_size"}
    return {setting: draw(SETTINGS[setting]) for setting in sorted(settings) if not setting.startswith("learn_")}


@st.composite
def batches(draw: st.DrawFn, t: int, make: Callable[[int, int], tuple[Tensor, Tensor]]) -> Batch:
    """Draw a batch whose sizes lie around the edges of tiles of t, of rows that are made from a seed and a number.

    There are candidates without a partner on both sides, on one, or on none, and perhaps ids of them.
    """
    B = draw(st.sampled_from([1, 2, max(1, t - 1), t, t + 1, 2 * t, 2 * t + 1]))
    M, N = (draw(st.sampled_from([None, 0, 1, t - 1, t, t + 1])) for _ in range(2))
    x, y = make(draw(st.integers(0, 2**31)), B + max(M or 0, N or 0))
    negatives_x, negatives_y = (
        None if count is None else rows[B : B + count].detach().requires_grad_() for count, rows in ((M, x), (N, y))
    )
    ids = draw(ids_for(B))

    def ids_of(count: int | None) -> Tensor | None:
        if ids is None or count is None or draw(st.booleans()):
            return None
        return torch.tensor(
            draw(st.lists(st.integers(0, max(1, B // 2)), min_size=count, max_size=count)), dtype=torch.int64
        )

    pairs = x[:B].detach().requires_grad_(), y[:B].detach().requires_grad_()
    return Batch(*pairs, negatives_x, negatives_y, ids, ids_of(M), ids_of(N))
