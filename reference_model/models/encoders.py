"""The encoders by name: how each is built, with new weights or published ones, and read from a saved model.

Another encoder is added here. What an audio encoder is: a module with ``front_end``, which makes its inputs of a
waveform and says the rate; a forward pass from these to features, ``[B, output_size]``; and ``settings``, what the
features depend on besides weights and waveforms. A text encoder is a :class:`reference_model.models.text.TextEncoder`.
Which of them are frozen, and how: :class:`reference_model.models.dual_encoder.DualEncoder`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference_model.config import AUDIO_CHECKPOINTS, Config
from reference_model.models import bert, hugging_face_audio, text
from reference_model.models.cnn14 import Cnn14
from reference_model.models.convolutional import PannsEncoder
from reference_model.models.hugging_face_audio import HuggingFaceAudioEncoder
from reference_model.models.panns import from_panns
from reference_model.models.resnet38 import ResNet38
from reference_model.models.text import TextEncoder
from reference_model.run_folder import AUDIO_ENCODER, TEXT_ENCODER

TINY_WIDTH = 1 / 8  # of the networks of PANNs in the tiny model

# Folders of encoders in a saved model, and the files that may be there.
FILES_OF_ENCODERS = {
    TEXT_ENCODER,
    AUDIO_ENCODER,
    *(f"{TEXT_ENCODER}/{name}" for name in (*text.FILES, *text.OTHER_FILES)),
    *(f"{AUDIO_ENCODER}/{name}" for name in hugging_face_audio.FILES),
}

AudioEncoder = PannsEncoder | HuggingFaceAudioEncoder


@dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes of a model: of the networks of PANNs, as a factor, and of the heads."""

    width: float
    hidden_size: int
    embedding_size: int


# By the name of the model in Config, which refuses a full model without published weights.
SIZES = {
    "full": Size(width=1, hidden_size=2048, embedding_size=1024),
    "tiny": Size(width=TINY_WIDTH, hidden_size=256, embedding_size=256),
}


def new_audio_encoder(config: Config) -> AudioEncoder:
    """Build the audio encoder as training begins with it."""
    if config.audio_encoder not in AUDIO_CHECKPOINTS:
        name, seconds, dropout = config.audio_encoder, config.clip_seconds, config.dropout
        return hugging_face_audio.published(name, clip_seconds=seconds, dropout=dropout)
    encoder = _network(config)
    return encoder if config.audio_checkpoint is None else from_panns(encoder, config.audio_checkpoint)


def _network(config: Config) -> PannsEncoder:
    """Build a network of PANNs with new weights."""
    settings: dict[str, Any] = {"width": SIZES[config.model].width, "spec_augment": config.spec_augment}
    if config.audio_encoder == "panns-cnn14":
        return Cnn14(**settings)
    return ResNet38(**settings, dropout=config.dropout)


def new_text_encoder(config: Config, captions: list[str]) -> TextEncoder:
    """Build the text encoder as training begins with it; a new one learns its words from captions."""
    if config.text_encoder is None:
        return bert.new(captions, pooling=config.text_pooling, dropout=config.dropout)
    return text.published(config.text_encoder, pooling=config.text_pooling, dropout=config.dropout)


def check_published(configs: Sequence[Config]) -> None:
    """Load each published encoder of these runs once, so that one that cannot be had is refused with an InputError."""
    audio: dict[Any, Config] = {}
    for config in configs:
        of_panns = config.audio_encoder in AUDIO_CHECKPOINTS
        if not of_panns or config.audio_checkpoint is not None:
            seconds = None if of_panns else config.clip_seconds
            audio[config.audio_encoder, config.audio_checkpoint, config.model, seconds] = config
    for config in audio.values():
        new_audio_encoder(config)
    for config in {(c.text_encoder, c.text_pooling): c for c in configs if c.text_encoder is not None}.values():
        new_text_encoder(config, [])


def saved_audio_encoder(config: Config, folder: Path) -> AudioEncoder:
    """Build the audio encoder of a saved model or of a run, without its weights."""
    if config.audio_encoder not in AUDIO_CHECKPOINTS:
        return hugging_face_audio.saved(folder / AUDIO_ENCODER, clip_seconds=config.clip_seconds)
    return _network(config)


def saved_text_encoder(config: Config, folder: Path) -> TextEncoder:
    """Build the text encoder of a saved model or of a run, without its weights."""
    return text.saved(folder / TEXT_ENCODER, pooling=config.text_pooling)


def encoder_files(config: Config) -> list[str]:
    """Return the files of encoders that must be in the folder of a saved model or of a run."""
    of_panns = config.audio_encoder in AUDIO_CHECKPOINTS
    audio = [] if of_panns else [f"{AUDIO_ENCODER}/{name}" for name in hugging_face_audio.FILES]
    return [*audio, *(f"{TEXT_ENCODER}/{name}" for name in text.FILES)]
