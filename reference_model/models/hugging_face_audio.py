"""Audio encoders in the Hugging Face layout: the audio tower of CLAP (HTSAT), AST, wav2vec 2.0 and the like.

A model has its own feature extractor and its own rate. Its pooled output represents a clip, or the mean of the outputs
for all its frames where there is none.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, PreTrainedConfig, SequenceFeatureExtractor

from reference_model import InputError, reason_of
from reference_model.data.audio import LONGEST
from reference_model.data.batches import FrontEnd
from reference_model.models import hugging_face

FILES = (hugging_face.CONFIG, "preprocessor_config.json")  # in the folder of a saved encoder
PROBE_SEED = 0  # of the noise with which an encoder is tried
LARGEST_RATE = 192_000  # Hz
LARGEST_SIZE = 2**13  # of a window, a transform, or a spectrum
MOST_FRAMES = 10_000  # of a spectrogram of a fixed length; published models have 3,000 at most
NAMES_OF_SIZES = "feature_size", "fft", "window", "mel", "bins"  # words in the names of such settings


class Extractor(FrontEnd):
    """Makes the inputs of a model of a waveform, as its feature extractor does for a single clip."""

    def __init__(self, extractor: SequenceFeatureExtractor) -> None:
        self.extractor = extractor
        self.rate = int(extractor.sampling_rate)

    def __call__(self, waveform: Tensor) -> dict[str, Tensor]:
        """Return the inputs for a waveform, ``[samples]``."""
        inputs = self.extractor(waveform.numpy(), sampling_rate=self.rate, return_tensors="pt")
        return {name: rows[0] for name, rows in inputs.items()}


class HuggingFaceAudioEncoder(nn.Module):
    """Encode the inputs that ``front_end`` makes, ``[B, ...]`` each, as vectors, ``[B, output_size]``.

    Args:
        model: the tower that encodes audio.
        config: the settings of the model, with those of other towers where it has some.
        extractor: the feature extractor of the model.
    """

    output_size: int

    def __init__(self, model: nn.Module, config: PreTrainedConfig, extractor: SequenceFeatureExtractor) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.front_end = Extractor(extractor)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the features of the clips, ``[B, output_size]``."""
        outputs = self.model(**inputs)
        pooled: Tensor | None = getattr(outputs, "pooler_output", None)
        return outputs.last_hidden_state.mean(1) if pooled is None else pooled

    @property
    def settings(self) -> dict[str, Any]:
        """What features depend on besides weights and waveforms, as JSON."""
        extractor = self.front_end.extractor.to_dict()
        kept = {name: value for name, value in extractor.items() if isinstance(value, bool | int | float | str | None)}
        return {"extractor": kept, "model": hugging_face.settings_of(self.config)}

    def save(self, folder: Path) -> None:
        """Save what :func:`saved` reads: the settings of the model and of its feature extractor, not the weights."""
        self.config.save_pretrained(folder)
        self.front_end.extractor.save_pretrained(folder)


def published(name: str, *, clip_seconds: float, dropout: float) -> HuggingFaceAudioEncoder:
    """Load an audio encoder by name or from a local folder in the Hugging Face layout.

    An encoder that does not look at the whole of clips of this length, or at a part of it that it draws, is refused.
    """
    try:
        config = hugging_face.read_config(name, dropout=dropout)
        extractor = read_extractor(name)
        model, absent = hugging_face.load(name, config, "audio_model")
        return _checked(HuggingFaceAudioEncoder(model, config, extractor), clip_seconds, absent)
    except Exception as error:  # damaged files make the library raise errors of all kinds
        raise InputError(
            "expected an audio encoder by name or in a folder with config.json, model.safetensors and "
            f"preprocessor_config.json, got {name}: {reason_of(error)}"
        ) from error


def saved(folder: Path, *, clip_seconds: float) -> HuggingFaceAudioEncoder:
    """Build an encoder with new weights from a folder that ``save`` wrote."""
    try:
        config = hugging_face.read_config(folder)
        extractor = read_extractor(folder)
        model = hugging_face.tower_of(hugging_face.new(config), "audio_model")
        return _checked(HuggingFaceAudioEncoder(model, config, extractor), clip_seconds, {})
    except Exception as error:  # damaged files make the library raise errors of all kinds
        raise InputError(f"expected settings of an audio encoder in {folder}, got: {reason_of(error)}") from error


def read_extractor(name: str | Path) -> SequenceFeatureExtractor:
    """Read a feature extractor by name or from a folder; refuse settings beyond what a machine can do."""
    try:
        _check_settings(SequenceFeatureExtractor.get_feature_extractor_dict(name)[0])
        extractor: SequenceFeatureExtractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
        for length in ("nb_max_samples", "n_samples"):
            samples = getattr(extractor, length, 0)
            if samples > LONGEST * extractor.sampling_rate:
                raise ValueError(f"one of clips of more than {LONGEST} seconds")
            if samples > MOST_FRAMES * getattr(extractor, "hop_length", samples):
                raise ValueError(f"one of more than {MOST_FRAMES} frames")
    except Exception as error:  # damaged files make the library raise errors of all kinds
        raise InputError(f"expected a feature extractor in {name}, got: {reason_of(error)}") from error
    return extractor


def _check_settings(stored: dict[str, Any]) -> None:
    for setting, value in hugging_face.numbers(stored):
        is_size = any(word in setting for word in NAMES_OF_SIZES)
        largest = (
            LARGEST_RATE if setting == "sampling_rate" else LARGEST_SIZE if is_size else hugging_face.LARGEST_NUMBER
        )
        if not abs(value) <= largest:
            raise ValueError(f"{value} as {setting}")


def _checked(
    encoder: HuggingFaceAudioEncoder, clip_seconds: float, absent: dict[str, nn.Parameter]
) -> HuggingFaceAudioEncoder:
    """Try the encoder on noise: it looks at all of a clip, the same every time, and makes one vector of it."""
    front_end = encoder.front_end
    noise = torch.randn(round(clip_seconds * front_end.rate), generator=torch.Generator().manual_seed(PROBE_SEED))
    cut = noise.clone()
    cut[-front_end.rate // 10 :] = 0
    first, again, without_end = (front_end(waveform) for waveform in (noise, noise, cut))
    if any(not torch.equal(first[name], again[name]) for name in first):
        raise ValueError(f"one that draws a part of clips of {clip_seconds} seconds; a lower --clip-seconds may do")
    if all(torch.equal(first[name], without_end[name]) for name in first):
        raise ValueError(f"one that ignores the end of clips of {clip_seconds} seconds; a lower --clip-seconds may do")
    inputs = {name: tensor[None] for name, tensor in first.items()}
    encoder.output_size = hugging_face.freeze_unused(encoder, inputs, absent)
    return encoder
