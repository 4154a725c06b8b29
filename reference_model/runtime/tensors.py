"""Safetensors files with arrays and, in the header, a JSON record. Nothing is ever unpickled."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reference_model import InputError
from reference_model.runtime.files import atomic_write


def load_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Read a file into arrays of the same names and shapes."""
    copy_weights(path, load_tensors(path)[0], weights)


@torch.no_grad()
def copy_weights(path: Path, saved: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copy arrays that were read from a file into arrays of the same names and shapes; refuse others."""
    wrong = sorted(saved.keys() ^ weights.keys())
    wrong = wrong or [name for name, tensor in weights.items() if saved[name].shape != tensor.shape]
    if wrong:
        raise InputError(
            f"expected the {len(weights)} arrays of this run's model in {path}, got {len(saved)}; "
            f"{len(wrong)} do not fit, such as {wrong[0]}"
        )
    for name, tensor in weights.items():
        tensor.copy_(saved[name])


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
        return {name: file.get_tensor(name) for name in file.keys()}, _record(file)  # noqa: SIM118


def load_record(path: Path) -> dict[str, Any]:
    """Read the record of a file of :func:`save_tensors` without its arrays."""
    with _opened(path) as file:
        return _record(file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"expected a safetensors file at {path}, got {error}") from error


def _record(file: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((file.metadata() or {}).get("record", "{}"))
    return record
