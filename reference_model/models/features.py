"""What the encoders make of a split, before the heads: computed anew for encoders that train, once for frozen ones.

Frozen encoders in eval mode make the same features of a clip or a caption every time. So they are computed once for all
runs, and kept on disk in parts of 256, each written whole: an interrupted computation goes on with the next part,
and several processes, of one run or of many, share the work.
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
from reference_model.data.batches import DistributedBatchSampler, Waveforms, data_loader, pad_tokens, read_batches
from reference_model.data.dataset import Clip, clip_of_caption
from reference_model.models.dual_encoder import DualEncoder
from reference_model.models.logmel import FRONT_END
from reference_model.runtime.signals import raise_if_stop_requested
from reference_model.runtime.tensors import load_tensors, save_tensors

PART = 256  # clips, or captions
AT_ONCE = 32  # encoded; the same for every batch size of training, so that all runs share the features


@dataclass(frozen=True)
class Features:
    """Of one split. Equal captions are encoded once: in different batches they would differ by rounding."""

    audio: Tensor  # [N, 2048], of the clips
    text: Tensor  # [T, 768], of the different captions
    text_of_caption: Tensor  # integers [M]: for every caption its row of text
    clip_of_caption: Tensor  # integers [M]: for every caption its row of audio

    def to(self, device: torch.device) -> "Features":
        return Features(
            self.audio.to(device),
            self.text.to(device),
            self.text_of_caption.to(device),
            self.clip_of_caption.to(device),
        )

    def pairs(self, captions: Tensor) -> dict[str, Any]:
        """The features of these captions and of their clips, as the heads take them, and the ids of the clips."""
        return {
            "audio": {"audio": self.audio[self.clip_of_caption[captions]]},
            "text": {"text": self.text[self.text_of_caption[captions]]},
            "ids": self.clip_of_caption[captions],
        }


@torch.no_grad()
def features_of(
    model: DualEncoder, clips: list[Clip], token_ids: list[list[int]], config: Config, accelerator: Accelerator
) -> Features:
    """Computed now, in eval mode, on the accelerator's device."""
    model.eval()
    audio = _encode_clips(model, clips, config, accelerator, "embedding clips")
    sentences, text_of_caption = different(token_ids)
    text = _encode_captions(model, sentences, accelerator)
    return Features(audio, text, text_of_caption, clip_of_caption(clips)).to(accelerator.device)


@torch.no_grad()
def kept_features(
    folder: Path,
    model: DualEncoder,
    clips: list[Clip],
    checksums: list[str],
    token_ids: list[list[int]],
    config: Config,
    accelerator: Accelerator,
) -> Features:
    """Of constant encoders: what is kept in the folder is read, what is missing is computed and kept.

    Args:
        folder: where features are kept, of this data set and of others.
        checksums: of the audio files of the clips.
    """
    model.eval()
    settings = [FRONT_END, config.clip_seconds, config.precision, accelerator.device.type]
    audio = _kept(
        folder / f"audio-{key(checksum(model.audio_encoder.state_dict()), settings, checksums)}",
        len(clips),
        lambda part: _encode_clips(model, clips[part], config, accelerator, "encoding clips"),
        accelerator,
    )
    sentences, text_of_caption = different(token_ids)
    settings = [config.precision, accelerator.device.type]
    text = _kept(
        folder / f"text-{key(checksum(model.text_encoder.state_dict()), settings, sentences)}",
        len(sentences),
        lambda part: _encode_captions(model, sentences[part], accelerator),
        accelerator,
    )
    return Features(audio, text, text_of_caption, clip_of_caption(clips)).to(accelerator.device)


def _kept(folder: Path, number: int, encode: Callable[[slice], Tensor], accelerator: Accelerator) -> Tensor:
    """Rows 0 to number, in parts, of which every process computes its share."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected to write features, got: {error}; --features names another folder") from error
    parts = [slice(start, min(start + PART, number)) for start in range(0, number, PART)]
    paths = [folder / f"{part.start:06d}.safetensors" for part in parts]
    mine = list(zip(parts, paths, strict=True))[accelerator.process_index :: accelerator.num_processes]
    mine = [(part, path) for part, path in mine if not path.exists()]
    for part, path in tqdm(
        mine, f"features in {folder.parent.name}/{folder.name}", leave=False, unit="part", disable=not mine
    ):
        with FileLock(path.with_suffix(".lock")):  # another run may be at it
            if not path.exists():
                save_tensors(path, {"features": encode(part)})
    accelerator.wait_for_everyone()
    return torch.cat([load_tensors(path)[0]["features"] for path in paths])


def _encode_clips(
    model: DualEncoder, clips: list[Clip], config: Config, accelerator: Accelerator, description: str
) -> Tensor:
    device = accelerator.device
    loader = data_loader(Waveforms(clips, config.clip_seconds), config.workers, device, batch_size=AT_ONCE)
    rows = []
    with accelerator.autocast():
        for waveforms in tqdm(read_batches(loader), description, len(loader), leave=False, unit="batch"):
            raise_if_stop_requested()
            rows.append(model.encode_audio(waveforms.to(device, non_blocking=True)).float())
    return torch.cat(rows)


def _encode_captions(model: DualEncoder, sentences: list[list[int]], accelerator: Accelerator) -> Tensor:
    rows = []
    with accelerator.autocast():
        for start in range(0, len(sentences), AT_ONCE):
            tokens = pad_tokens(sentences[start : start + AT_ONCE])
            on_device = {name: tensor.to(accelerator.device) for name, tensor in tokens.items()}
            rows.append(model.encode_text(**on_device).float())
    return torch.cat(rows)


def different(token_ids: list[list[int]]) -> tuple[list[list[int]], Tensor]:
    """The different sentences, and for every caption which it is."""
    place = {sentence: k for k, sentence in enumerate(dict.fromkeys(map(tuple, token_ids)))}
    return [list(sentence) for sentence in place], torch.tensor([place[tuple(sentence)] for sentence in token_ids])


def checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and contents."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def key(*parts: object) -> str:
    """A name for what depends on these, and on nothing else."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class FeatureBatches:
    """Batches of pairs of features, on the device that the features are on."""

    def __init__(self, features: Features, sampler: DistributedBatchSampler) -> None:
        self.features, self.sampler = features, sampler

    def from_step(self, step: int) -> Iterator[dict[str, Any]]:
        """The epoch's batches after that many."""
        self.sampler.first = step
        for captions in self.sampler:
            yield self.features.pairs(torch.tensor(captions, device=self.features.audio.device))
