"""Argument checks of the public functions, with errors of the form *expected ... got ...*.

They run before anything is computed. They look at shapes, dtypes, devices and Python numbers, never at the values of a
tensor, so no check synchronises with a device. All raise TypeError or ValueError.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _check_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"expected {name} to be of a floating dtype ({_names(FLOATING)}), got {value.dtype}")


def check_embeddings(x: Tensor, y: Tensor) -> None:
    """Require x and y to be floating ``[B, D]`` on one device, with B >= 1 and D >= 1."""
    for name, value in (("x", x), ("y", y)):
        _check_floating(name, value)
        if value.dim() != 2 or 0 in value.shape:
            raise ValueError(f"expected {name} of shape [B, D] with B >= 1 and D >= 1, got {list(value.shape)}")
    if x.shape != y.shape:
        raise ValueError(f"expected x and y of one shape [B, D], got {list(x.shape)} and {list(y.shape)}")
    if x.device != y.device:
        raise ValueError(f"expected x and y on one device, got {x.device} and {y.device}")


def check_similarities(S: Tensor) -> None:
    """Require S to be floating ``[B, B]`` with B >= 1."""
    _check_floating("S", S)
    if S.dim() != 2 or S.shape[0] != S.shape[1] or S.shape[0] == 0:
        raise ValueError(f"expected S of shape [B, B] with B >= 1, got {list(S.shape)}")


def check_ids(ids: Tensor | None, like: Tensor) -> None:
    """Require ids to be None, or integers ``[B]`` on the device of ``like``, whose first dimension is B."""
    if ids is None:
        return
    if not isinstance(ids, Tensor):
        raise TypeError(f"expected ids to be None or an integer tensor [B], got {type(ids).__name__}")
    if ids.dtype not in INTEGER:  # float32 holds whole numbers exactly only up to 2^24
        raise TypeError(f"expected ids of an integer dtype ({_names(INTEGER)}), got {ids.dtype}")
    if ids.shape != like.shape[:1]:
        raise ValueError(f"expected ids of shape [{like.shape[0]}], one for each pair, got {list(ids.shape)}")
    if ids.device != like.device:
        raise ValueError(f"expected ids on the device of the pairs, {like.device}, got {ids.device}")


def check_reduction(reduction: str) -> None:
    """Require reduction to be "mean", "sum" or "none"."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"expected reduction to be 'mean', 'sum' or 'none', got {reduction!r}")


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a number, got {type(value).__name__}")


def check_margin(margin: float) -> None:
    """Require margin to be a finite number >= 0."""
    _check_number("margin", margin)
    if not 0 <= margin < math.inf:
        raise ValueError(f"expected margin to be finite and >= 0, got {margin}")


def check_tile_size(tile_size: int | None) -> None:
    """Require tile_size to be None or a whole number >= 1."""
    if tile_size is None:
        return
    if not isinstance(tile_size, int) or isinstance(tile_size, bool):
        raise TypeError(f"expected tile_size to be None or a whole number, got {type(tile_size).__name__}")
    if tile_size < 1:
        raise ValueError(f"expected tile_size to be >= 1, got {tile_size}")


def check_temperature(temperature: float | Tensor) -> None:
    """Require temperature to be a number between 1e-6 and 1e6, or a floating ``[]`` tensor, whose value is not read."""
    if isinstance(temperature, Tensor):
        _check_floating("temperature", temperature)
        if temperature.dim() != 0:
            raise ValueError(f"expected temperature to be one number, got a tensor of shape {list(temperature.shape)}")
        return
    _check_number("temperature", temperature)
    if not 0 < temperature < math.inf:
        raise ValueError(f"expected temperature to be finite and > 0, got {temperature}")
    if not 1e-6 <= temperature <= 1e6:  # beyond these, exponents of float32 do not suffice
        raise ValueError(f"expected temperature between 1e-6 and 1e6, got {temperature}")


def check_coefficients(name: str, coefficients: Sequence[float]) -> None:
    """Require coefficients to be at least one finite number, the constant term first."""
    if isinstance(coefficients, str) or not isinstance(coefficients, Sequence):
        raise TypeError(f"expected {name} to be a sequence of numbers, got {type(coefficients).__name__}")
    if len(coefficients) == 0:
        raise ValueError(f"expected {name} to hold at least the constant term, got {coefficients!r}")
    for power, coefficient in enumerate(coefficients):
        _check_number(f"{name}[{power}]", coefficient)
        if not -math.inf < coefficient < math.inf:
            raise ValueError(f"expected {name}[{power}] to be finite, got {coefficient}")
