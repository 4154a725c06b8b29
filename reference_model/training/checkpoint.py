"""The checkpoint of a run under way: a run that continues from it ends as if it had not been interrupted."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import TypedDict

from reference_model import InputError
from reference_model.data.dataset import SPLITS, Clip
from reference_model.run_folder import Epoch
from reference_model.runtime.files import NotWritten
from reference_model.runtime.records import check_form
from reference_model.runtime.tensors import copy_weights, load_tensors, save_tensors


class CheckpointRecord(TypedDict):
    """The record in a checkpoint."""

    epoch: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=0)]
    total: FiniteFloat
    history: list[Epoch]
    seconds: FiniteFloat
    scaler: dict[str, FiniteFloat] | None
    data: str
    frozen: str
    versions: dict[str, str]


@dataclass
class Progress:
    """How far a run is. The random numbers of a step follow from seed, epoch and step: no state of them is kept."""

    epoch: int = 1  # the epoch under way
    step: int = 0  # the last finished step of this epoch
    total: float = 0.0  # sum of the losses of the finished steps of this epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # a record of each finished epoch


def fingerprint(clips: dict[str, list[Clip]]) -> str:
    """Return the SHA-256 of all file names and captions in their order, without the folder that they are in."""
    content = [[split, [[clip.path.name, *clip.captions] for clip in clips[split]]] for split in SPLITS]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers of a run depend on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "torchaudio", "transformers")}


def save_checkpoint(path: Path, weights: Mapping[str, Tensor], optimizer: Optimizer, record: dict[str, Any]) -> None:
    """Write weights, optimiser and a record in one file, whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    try:
        save_tensors(path, tensors, record)
    except NotWritten as error:
        raise InputError(
            f"expected to write a checkpoint, got: {error.reason}, in {path.parent}. The last one is as it was: "
            "once there is room, or permission, the same command goes on from there"
        ) from error


def load_checkpoint(path: Path, weights: Mapping[str, Tensor], optimizer: Optimizer) -> dict[str, Any]:
    """Read weights and optimiser in place, and return the record that was saved with them; refuse another run's."""
    tensors, record = load_tensors(path)
    check_form(record, CheckpointRecord, "the record of a checkpoint", path)
    if len(record["history"]) != record["epoch"] - 1:
        finished = len(record["history"])
        raise InputError(
            f"expected a record of each finished epoch in {path}, got {finished} in epoch {record['epoch']}"
        )
    saved: dict[str, Tensor] = {}
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            saved[rest] = tensor
        else:
            index, _, entry = rest.partition(".")
            states.setdefault(int(index) if index.isdecimal() else -1, {})[entry] = tensor
    copy_weights(path, saved, weights)
    _check_states(path, states, optimizer)
    try:
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, state in optimizer.state.items():  # a fused optimiser relies on the layout of its parameter
            for name, tensor in state.items():
                if tensor.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(tensor)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"expected a checkpoint of this run in {path}, got another's: {error}") from error
    return record


def _check_states(path: Path, states: dict[int, dict[str, Tensor]], optimizer: Optimizer) -> None:
    """Refuse a state of Adam that does not fit the parameters of the optimiser."""
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for index, state in states.items():
        shapes = {name: tensor.shape for name, tensor in state.items()}
        shape = parameters[index].shape if index in parameters else None
        if shapes != {"step": torch.Size([]), "exp_avg": shape, "exp_avg_sq": shape}:
            raise InputError(
                f"expected a checkpoint of this run in {path}, got another's: the state of parameter {index}"
            )
