"""The checkpoint of a run under way: a run that continues from it ends as if it had not been interrupted."""

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.dataset import SPLITS, Clip
from reference_model.models.dual_encoder import DualEncoder
from reference_model.models.features import checksum
from reference_model.run_folder import CHECKPOINT
from reference_model.runtime.lease import Busy, lost_lock
from reference_model.runtime.tensors import copy_weights, load_record, load_tensors, save_tensors

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is.

    It holds no state of random numbers: those of a step follow from seed, epoch and step.
    """

    epoch: int = 1  # the epoch under way
    step: int = 0  # the last finished step of this epoch
    total: float = 0.0  # sum of the losses of the finished steps of this epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # a record of each finished epoch
    seconds: float = 0.0  # of work, in all processes that worked on the run one after another

    def __post_init__(self) -> None:
        self.counted = time.monotonic()

    def count_seconds(self) -> None:
        """Add the seconds since the last call, or since the start of this process's work."""
        now = time.monotonic()
        self.seconds += now - self.counted
        self.counted = now


class RunState:
    """Everything that the next step depends on: weights, optimiser, loss scaler and progress.

    Args:
        config: the settings of the run.
        folder: the folder of the run.
        clips: the clips of every split, to refuse others when the run continues.
        model: the model in training.
        optimizer: its optimiser.
        scaler: the loss scaler, with fp16.
        progress: how far the run is; ``restore`` changes it in place.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        clips: dict[str, list[Clip]],
        model: DualEncoder,
        optimizer: torch.optim.Optimizer,
        scaler: GradScaler | None,
        progress: Progress,
    ) -> None:
        self.config, self.folder, self.model, self.optimizer = config, folder, model, optimizer
        self.scaler, self.progress = scaler, progress
        self.data, self.frozen = fingerprint(clips), checksum(model.frozen_parameters())

    def save(self) -> None:
        """Write the checkpoint of the run.

        Raises:
            Busy: another process took the lock of the folder.
            InputError: the file cannot be written.
        """
        if lost_lock(self.folder):
            raise Busy(f"expected {self.folder} for this run alone, got it taken over while this process was suspended")
        self.progress.count_seconds()
        record = {
            **asdict(self.progress),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "data": self.data,
            "frozen": self.frozen,
            "config": self.config.as_dict(),
            "versions": versions(),
        }
        save_checkpoint(self.folder / CHECKPOINT, self.model.trainable_state_dict(), self.optimizer, record)

    def restore(self) -> None:
        """Read the checkpoint of the run.

        Raises:
            InputError: the file is damaged, or the frozen encoders are others than at the beginning.
        """
        record = load_checkpoint(self.folder / CHECKPOINT, self.model.trainable_state_dict(), self.optimizer)
        if record["frozen"] != self.frozen:
            raise InputError(
                f"expected the frozen encoders that {self.folder} was begun with, got others in "
                f"{self.config.audio_checkpoint} or {self.config.bert}; choose another --out"
            )
        if record["versions"] != versions():
            log.warning("begun with %s, continued with %s: not to the bit the same", record["versions"], versions())
        if self.scaler is not None:
            self.scaler.load_state_dict(record["scaler"])
        for name in asdict(self.progress):
            setattr(self.progress, name, record[name])


def require_same_data(config: Config, folder: Path, clips: dict[str, list[Clip]]) -> None:
    """Refuse clips or captions other than those that the run was trained on so far.

    Raises:
        InputError: they are others.
    """
    if load_record(folder / CHECKPOINT)["data"] != fingerprint(clips):
        raise InputError(
            f"expected the clips and captions that {folder} was trained on so far, got others in "
            f"{Path(config.data) / config.dataset}; choose another --out"
        )


def fingerprint(clips: dict[str, list[Clip]]) -> str:
    """Return the SHA-256 of all file names and captions in their order, without the folder that they are in."""
    content = [[split, [[clip.path.name, *clip.captions] for clip in clips[split]]] for split in SPLITS]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers of a run depend on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "torchaudio", "transformers")}


def save_checkpoint(
    path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    """Write weights, optimiser and a record in one file.

    Raises:
        InputError: the file cannot be written; the last one is as it was.
    """
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    try:
        save_tensors(path, tensors, record)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"expected to write a checkpoint, got: {error}. The last one is as it was: "
            "once there is room, or permission, the same command goes on from there"
        ) from error


def load_checkpoint(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Read weights and optimiser in place, and return the record that was saved with them.

    Raises:
        InputError: the file is missing or damaged, or does not fit the model.
    """
    tensors, record = load_tensors(path)
    states: dict[int, dict[str, Tensor]] = {}
    saved = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            saved[rest] = tensor
        else:
            index, _, entry = rest.partition(".")
            states.setdefault(int(index), {})[entry] = tensor
    copy_weights(path, saved, weights)
    try:
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, state in optimizer.state.items():  # a fused optimiser relies on the layout of its parameter
            for name, tensor in state.items():
                if tensor.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(tensor)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"expected a checkpoint of this run in {path}, got another's: {error}") from error
    return record
