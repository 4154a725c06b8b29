"""Safetensors files with arrays and, in the header, a JSON record. Nothing is ever unpickled."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reference_model import InputError, reason_of
from reference_model.runtime.files import atomic_write, require_file
from reference_model.runtime.records import parse_json


def load_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Read a file into arrays of the same names and shapes; refuse others, and numbers that are not finite."""
    saved, _ = load_tensors(path)
    if bad := next((name for name, tensor in saved.items() if not tensor.isfinite().all()), None):
        raise InputError(f"expected finite weights in {path}, got NaN or inf in {bad}")
    copy_weights(path, saved, weights)


@torch.no_grad()
def copy_weights(path: Path, saved: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copy arrays that were read from a file into arrays of the same names and shapes; refuse others."""
    wrong = sorted(saved.keys() ^ weights.keys())
    wrong = wrong or [name for name, tensor in weights.items() if not _fits(saved[name], tensor)]
    if wrong:
        raise InputError(
            f"expected the {len(weights)} arrays of this run's model in {path}, got {len(saved)}; "
            f"{len(wrong)} do not fit, such as {wrong[0]}"
        )
    for name, tensor in weights.items():
        tensor.copy_(saved[name])


def _fits(saved: Tensor, tensor: Tensor) -> bool:
    return saved.shape == tensor.shape and saved.dtype == tensor.dtype


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: dict[str, Any] | None = None) -> None:
    """Write arrays and a record in one file, whole or not at all."""
    metadata = None if record is None else {"record": json.dumps(record)}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    atomic_write(path, lambda beside: save_file(contiguous, beside, metadata=metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the arrays and the record of a file of :func:`save_tensors`.

    Raises:
        InputError: the file is missing, damaged, or of another kind.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, _record(path, file)


def load_record(path: Path) -> dict[str, Any]:
    """Read the record of a file of :func:`save_tensors` without its arrays."""
    with _opened(path) as file:
        return _record(path, file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # a damaged file makes the library raise errors of many kinds
        raise InputError(f"expected a safetensors file at {path}, got {reason_of(error)}") from error


def _record(path: Path, file: Any) -> dict[str, Any]:
    record = parse_json((file.metadata() or {}).get("record", "{}"), "a record of its arrays", path)
    if not isinstance(record, dict):
        raise InputError(f"expected a record with names in {path}, got {reprlib.repr(record)}")
    return record
