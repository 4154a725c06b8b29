"""Every setting of a run, with its meaning and its source. A run is made again from this alone."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crossmodal_losses import LOSSES
from reference_model import InputError
from reference_model.data.audio import SAMPLE_RATE, SHORTEST
from reference_model.protocol import Protocol, check_choice

Encoders = Literal["frozen", "fine-tuned"]
Size = Literal["full", "tiny"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of the experiment. Nothing has a default: what is not said is refused."""

    data: str  # the folder that holds a folder for each data set
    dataset: str  # AudioCaps, Clotho, Synthetic, or another folder in the same layout
    clip_seconds: float  # the fixed length of a clip; see DATA_SETS in data/layouts.py
    loss: str  # a name of LOSSES, with the settings of section 3.2, which are its defaults
    encoders: Encoders  # table 1, column "Fine-tune"
    protocol: Protocol  # where the paper's text and its published code differ
    model: Size  # full: ResNet-38 of PANNs and BERT; tiny: small ones, for two CPU cores
    audio_checkpoint: str | None  # ResNet38_mAP=0.434.pth (Zenodo 3987831); None: new weights, for the tiny model alone
    bert: str | None  # a name, or a local folder; None: as above
    batch_size: int  # section 3.2: AudioCaps 32, Clotho 24; the last incomplete batch of an epoch is dropped
    learning_rate: float  # Adam; section 3.2: 1e-4; table 1: 5e-5 where triplet losses do not converge on Clotho
    epochs: int  # section 3.2: 50
    decay_every: int  # epochs; section 3.2: 20
    decay_factor: float  # section 3.2: 1/10
    gradient_cache_micro_batch: int | None  # pairs embedded at a time and process, to save memory; None: all
    seed: int  # section 3.3: three runs with different seeds
    precision: Precision  # mixed precision: no is float32; the losses are computed in float32 always
    workers: int  # processes that read audio

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"expected loss to be one of {', '.join(LOSSES)}, got {self.loss}")
        for name, kind in (("encoders", Encoders), ("model", Size), ("precision", Precision)):
            check_choice(name, getattr(self, name), kind)
        for name in ("audio_checkpoint", "bert"):
            if getattr(self, name) is None and self.model == "full":
                raise InputError(f"expected {name} for the full model, got none; only the tiny one can begin anew")
        for name in ("clip_seconds", "batch_size", "learning_rate", "epochs", "decay_every", "decay_factor"):
            if not getattr(self, name) > 0:
                raise InputError(f"expected {name} > 0, got {getattr(self, name)}")
        if self.gradient_cache_micro_batch is not None and self.gradient_cache_micro_batch < 1:
            raise InputError(f"expected gradient_cache_micro_batch >= 1, got {self.gradient_cache_micro_batch}")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise InputError(f"expected {name} >= 0, got {getattr(self, name)}")
        if round(self.clip_seconds * SAMPLE_RATE) < SHORTEST:
            raise InputError(
                f"expected clip_seconds >= {SHORTEST / SAMPLE_RATE}, the least that ResNet-38 can pool, "
                f"got {self.clip_seconds}"
            )
        if self.batch_size < 2:
            raise InputError(f"expected batch_size >= 2, because negatives come from the batch, got {self.batch_size}")

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """The settings that decide the result and differ, with both values; those of the protocol one by one."""
        ours, theirs = (_flat(config.as_dict()) for config in (self, other))
        return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}

    @classmethod
    def read(cls, path: Path) -> "Config":
        """The config that a run has left; every field must be there, and no other."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"expected the settings of a run as JSON in {path}, got {error}") from error
        _require_fields(cls, stored, path)
        _require_fields(Protocol, stored["protocol"], path)
        try:
            return cls(**{**stored, "protocol": Protocol(**stored["protocol"])})
        except TypeError as error:  # a text where a number should be
            raise InputError(f"expected the settings of a run in {path}, got: {error}") from error


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what changes nothing in the result: where the data is, and how many processes read it."""
    flat = {**settings, **settings["protocol"]}
    return {name: value for name, value in flat.items() if name not in ("data", "workers", "protocol")}


def _require_fields(of: type[Config] | type[Protocol], stored: Any, path: Path) -> None:
    fields = {field.name for field in dataclasses.fields(of)}
    found = stored.keys() if isinstance(stored, dict) else {type(stored).__name__}
    if found != fields:
        raise InputError(
            f"expected the settings of this version in {path}, got these that differ: "
            f"{', '.join(sorted(found ^ fields))}"
        )
