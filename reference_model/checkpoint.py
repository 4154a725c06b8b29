"""The state of a run after an epoch, in one safetensors file: arrays, and the rest as JSON in its header."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reference_model import InputError
from reference_model.files import write_whole


def save_weights(path: Path, model: nn.Module) -> None:
    """The model's state alone."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(path, lambda beside: save_file(tensors, beside))


def load_weights(path: Path, model: nn.Module) -> None:
    """Into a model of the same shape, strictly."""
    tensors, _ = _read(path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"expected the weights of this run's model in {path}, got others") from error


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Everything that the next epoch depends on. Random numbers do not: every epoch starts from a seed of its own."""
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor.contiguous() for name, tensor in state.items()}
    write_whole(path, lambda beside: save_file(tensors, beside, metadata={"progress": json.dumps(progress)}))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put model and optimizer back; returns the progress that was saved with them."""
    tensors, metadata = _read(path)
    states: dict[int, dict[str, Tensor]] = {}
    weights = {}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        if part == "model":
            weights[rest] = tensor
        else:
            index, entry = rest.split(".", 1)
            states.setdefault(int(index), {})[entry] = tensor
    try:
        model.load_state_dict(weights)
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, state in optimizer.state.items():  # a fused optimiser relies on the layout of its parameter
            for name, tensor in state.items():
                if tensor.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(tensor)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"expected a checkpoint of this run in {path}, got another's: {error}") from error
    progress: dict[str, Any] = json.loads(metadata["progress"])
    return progress


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"expected a safetensors file at {path}, got {error}") from error
