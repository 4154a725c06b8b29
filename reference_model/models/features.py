"""Features: the output of both encoders for a split, before the heads. Those of constant encoders are cached on disk.

Frozen encoders in eval mode compute the same features of a clip or a caption every time. So they are computed once for
all runs and saved in parts of 256, each written completely or not at all: an interrupted computation continues with the
next part, and several processes, of one run or of many, share the work.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.batches import DistributedBatchSampler, WaveformBatches, Waveforms
from reference_model.data.dataset import Clip, clip_of_caption
from reference_model.models.dual_encoder import DualEncoder
from reference_model.models.encode import BatchEncoder, unique
from reference_model.runtime.files import NotWritten
from reference_model.runtime.tensors import load_tensors, save_tensors

PART = 256  # clips, or captions


@dataclass(frozen=True)
class Features:
    """Features of one split; equal captions share a row."""

    audio: Tensor  # [N, audio_size], one row for each clip
    text: Tensor  # [T, text_size], one row for each unique caption
    text_of_caption: Tensor  # integers [M]: for every caption its row of text
    clip_of_caption: Tensor  # integers [M]: for every caption its row of audio

    def to(self, device: torch.device) -> "Features":
        """Return a copy on the device."""
        return Features(*(rows.to(device) for rows in vars(self).values()))

    def pairs(self, captions: Tensor) -> dict[str, Any]:
        """Return the inputs of the heads for these captions and their clips, and the ids of the clips."""
        return {
            "audio": {"audio": self.audio[self.clip_of_caption[captions]]},
            "text": {"text": self.text[self.text_of_caption[captions]]},
            "ids": self.clip_of_caption[captions],
        }


def compute_features(
    model: DualEncoder,
    clips: list[Clip],
    token_ids: list[list[int]],
    config: Config,
    accelerator: Accelerator,
    known: Mapping[str, Tensor] | None = None,
) -> Features:
    """Compute the features of clips and of all their captions in eval mode, on the accelerator's device.

    Those of constant encoders are taken from ``known``, if it has them: see :func:`cached_features`.
    """
    encoder = BatchEncoder(model.eval(), accelerator.device, accelerator.autocast, config.workers)
    sentences, text_of_caption = unique(token_ids)
    rows = dict(known or {})
    if "audio" not in rows:
        rows["audio"] = torch.cat(_encode_clips(encoder, clips, config))
    if "text" not in rows:
        rows["text"] = torch.cat(list(encoder.captions(sentences)))
    return Features(rows["audio"], rows["text"], text_of_caption, clip_of_caption(clips)).to(accelerator.device)


def cached_features(
    folder: Path,
    model: DualEncoder,
    clips: list[Clip],
    checksums: list[str],
    token_ids: list[list[int]],
    config: Config,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Read the features of constant encoders from the cache ``folder``; compute what it lacks, and save that there.

    The checksums are the SHA-256 of the audio files. Features of other data sets and encoders may lie there too.

    Returns:
        For "audio" and "text", where that encoder is constant: a row for each clip, or for each unique caption.
    """
    encoder = BatchEncoder(model.eval(), accelerator.device, accelerator.autocast, config.workers)
    sentences, _ = unique(token_ids)
    machine = [config.precision, accelerator.device.type]
    settings = [model.audio_encoder.settings, config.clip_seconds, *machine]
    works: dict[str, tuple[list[object], int, Callable[[slice], list[Tensor]]]] = {
        "audio": ([settings, checksums], len(clips), lambda part: _encode_clips(encoder, clips[part], config)),
        "text": (
            [[*model.text_encoder.settings, *machine], sentences],
            len(sentences),
            lambda part: list(encoder.captions(sentences[part])),
        ),
    }
    known = {}
    for modality in model.constant:
        depends_on, number, encode = works[modality]
        key = cache_key(checksum(model.encoder(modality).state_dict()), *depends_on)
        width = model.encoder(modality).output_size
        rows = _cached(folder / f"{modality}-{key}", number, width, encode, accelerator)
        known[modality] = rows.to(accelerator.device)
    return known


def _encode_clips(encoder: BatchEncoder, clips: list[Clip], config: Config) -> list[Tensor]:
    rate = encoder.model.audio_encoder.front_end.rate
    return [features for features, _ in encoder.clips(Waveforms(clips, config.clip_seconds, rate))]


def _cached(
    folder: Path, number: int, width: int, encode: Callable[[slice], list[Tensor]], accelerator: Accelerator
) -> Tensor:
    """Read features ``[number, width]``; every process first computes its share of the parts that are missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected to write features, got: {error}; --features names another folder") from error
    parts = [slice(start, min(start + PART, number)) for start in range(0, number, PART)]
    paths = [folder / f"{part.start:06d}.safetensors" for part in parts]
    # A process takes its share of all parts, not of the missing ones, which become fewer while others compute.
    share = list(zip(parts, paths, strict=True))[accelerator.process_index :: accelerator.num_processes]
    missing = [(part, path) for part, path in share if not path.exists()]
    description = f"features in {folder.parent.name}/{folder.name}"
    for part, path in tqdm(missing, description, leave=False, unit="part", disable=not missing):
        with FileLock(path.with_suffix(".lock")):  # another run may compute the same part
            if not path.exists():
                try:
                    save_tensors(path, {"features": torch.cat(encode(part))})
                except NotWritten as error:
                    raise InputError(f"{error}; --features names another folder") from error
    accelerator.wait_for_everyone()
    return torch.cat(
        [_read_part(path, [part.stop - part.start, width]) for part, path in zip(parts, paths, strict=True)]
    )


def _read_part(path: Path, shape: list[int]) -> Tensor:
    features = load_tensors(path)[0].get("features")
    if features is None or features.dtype != torch.float32 or list(features.shape) != shape:
        got = "none" if features is None else f"{features.dtype} {list(features.shape)}"
        raise InputError(
            f"expected features in float32 {shape} in {path}, got {got}; without that file they are made again"
        )
    return features


def checksum(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names and contents of arrays."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_key(*parts: object) -> str:
    """Return a file name for values that depend on these JSON objects, and on nothing else."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class FeatureBatches:
    """Batches of pairs of features, on the device of the features."""

    def __init__(self, features: Features, sampler: DistributedBatchSampler) -> None:
        self.features, self.sampler = features, sampler

    def from_step(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch without the first ``step``."""
        self.sampler.first = step
        order = torch.tensor(list(self.sampler), device=self.features.audio.device)  # one copy to the device an epoch
        for captions in order:
            yield self.features.pairs(captions)


class MixedBatches:
    """Batches of pairs of which one encoder is constant: its features, and the inputs of the other."""

    def __init__(self, batches: WaveformBatches, known: Mapping[str, Tensor], token_ids: list[list[int]]) -> None:
        self.batches, self.known = batches, known
        self.text_of_caption = unique(token_ids)[1].to(batches.device)

    def from_step(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch without the first ``step``."""
        for batch in self.batches.from_step(step):
            rows = {"audio": batch["ids"], "text": self.text_of_caption[batch["captions"]]}
            yield batch | {name: {name: features[rows[name]]} for name, features in self.known.items()}
