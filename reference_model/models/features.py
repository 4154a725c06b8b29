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
from reference_model.data.batches import DistributedBatchSampler, Waveforms
from reference_model.data.dataset import Clip, clip_of_caption
from reference_model.models.dual_encoder import DualEncoder
from reference_model.models.encode import BatchEncoder, unique
from reference_model.models.encoders import MODELS
from reference_model.runtime.files import NotWritten
from reference_model.runtime.tensors import load_tensors, save_tensors

PART = 256  # clips, or captions


@dataclass(frozen=True)
class Features:
    """Features of one split; equal captions share a row."""

    audio: Tensor  # [N, 2048], one row for each clip
    text: Tensor  # [T, 768], one row for each unique caption
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
    model: DualEncoder, clips: list[Clip], token_ids: list[list[int]], config: Config, accelerator: Accelerator
) -> Features:
    """Compute the features of clips and of all their captions in eval mode, on the accelerator's device."""
    encoder = BatchEncoder(model.eval(), accelerator.device, accelerator.autocast, config.workers)
    sentences, text_of_caption = unique(token_ids)
    audio, text = torch.cat(_encode_clips(encoder, clips, config)), torch.cat(list(encoder.captions(sentences)))
    return Features(audio, text, text_of_caption, clip_of_caption(clips)).to(accelerator.device)


def cached_features(
    folder: Path,
    model: DualEncoder,
    clips: list[Clip],
    checksums: list[str],
    token_ids: list[list[int]],
    config: Config,
    accelerator: Accelerator,
) -> Features:
    """Read the features of constant encoders from the cache ``folder``; compute what it lacks, and save that there.

    The checksums are the SHA-256 of the audio files. Features of other data sets and encoders may lie there too.
    """
    encoder = BatchEncoder(model.eval(), accelerator.device, accelerator.autocast, config.workers)
    sentences, text_of_caption = unique(token_ids)
    machine = [config.precision, accelerator.device.type]
    settings = [MODELS[config.model].audio.front_end, config.clip_seconds, *machine]
    rows = folder / f"audio-{cache_key(checksum(model.audio_encoder.state_dict()), settings, checksums)}"
    width = model.audio_encoder.output_size
    audio = _cached(rows, len(clips), width, lambda part: _encode_clips(encoder, clips[part], config), accelerator)
    rows = folder / f"text-{cache_key(checksum(model.text_encoder.state_dict()), machine, sentences)}"
    width = model.text_encoder.output_size
    text = _cached(rows, len(sentences), width, lambda part: list(encoder.captions(sentences[part])), accelerator)
    return Features(audio, text, text_of_caption, clip_of_caption(clips)).to(accelerator.device)


def _encode_clips(encoder: BatchEncoder, clips: list[Clip], config: Config) -> list[Tensor]:
    return [features for features, _ in encoder.clips(Waveforms(clips, config.clip_seconds))]


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
        for captions in self.sampler:
            yield self.features.pairs(torch.tensor(captions, device=self.features.audio.device))
