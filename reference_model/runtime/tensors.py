"""The state of a run in safetensors files: arrays, and the rest as JSON in the header. Nothing is ever unpickled."""

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
    """Into arrays of the same names and shapes, strictly."""
    tensors, _ = load_tensors(path)
    _copy(path, tensors, weights)


def save_checkpoint(
    path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Everything that the next step depends on; ``progress`` is what is no array."""
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    try:
        save_tensors(path, tensors, progress)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"expected to write a checkpoint, got: {error}. The last one is as it was: "
            "once there is room, or permission, the same command goes on from there"
        ) from error


def load_checkpoint(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights and optimizer back; returns the progress that was saved with them."""
    tensors, progress = load_tensors(path)
    states: dict[int, dict[str, Tensor]] = {}
    saved = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            saved[rest] = tensor
        else:
            index, _, entry = rest.partition(".")
            states.setdefault(int(index), {})[entry] = tensor
    _copy(path, saved, weights)
    try:
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, state in optimizer.state.items():  # a fused optimiser relies on the layout of its parameter
            for name, tensor in state.items():
                if tensor.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(tensor)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"expected a checkpoint of this run in {path}, got another's: {error}") from error
    return progress


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: dict[str, Any] | None = None) -> None:
    """Arrays and a record in one file, whole or not at all."""
    metadata = None if record is None else {"record": json.dumps(record)}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    atomic_write(path, lambda beside: save_file(contiguous, beside, metadata=metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_tensors` wrote.

    Raises:
        InputError: the file is missing, damaged, or of another kind.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _record(file)  # noqa: SIM118


def load_record(path: Path) -> dict[str, Any]:
    """The record alone."""
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


@torch.no_grad()
def _copy(path: Path, saved: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    wrong = sorted(saved.keys() ^ weights.keys()) or [
        name for name, tensor in weights.items() if saved[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(
            f"expected the {len(weights)} arrays of this run's model in {path}, got {len(saved)}; "
            f"{len(wrong)} do not fit, such as {wrong[0]}"
        )
    for name, tensor in weights.items():
        tensor.copy_(saved[name])
