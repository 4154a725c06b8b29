"""The encoders of both model sizes: how each is built, and what its features depend on besides its weights.

Another encoder is added here. An audio encoder is a module from waveforms ``[B, samples]`` at 32 kHz, the rate of
``data.audio``, to features ``[B, output_size]``. A text encoder is one from ``input_ids`` and ``attention_mask``,
``[B, T]`` each, to features ``[B, output_size]``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from reference_model.models import bert
from reference_model.models.logmel import FRONT_END
from reference_model.models.panns import from_panns
from reference_model.models.resnet38 import ResNet38

TINY_WIDTH = 1 / 8  # of ResNet-38 in the tiny model

AudioEncoder = ResNet38  # the type of all of them
TextEncoder = bert.BertEncoder


@dataclass(frozen=True, kw_only=True)
class AudioEncoderSpec:
    """How an audio encoder is built."""

    new: Callable[..., AudioEncoder]  # with new weights: (*, dropout, spec_augment); a saved model is loaded into it
    published: Callable[..., AudioEncoder]  # with published weights: (path, *, dropout, spec_augment)
    front_end: Mapping[str, Any]  # settings that the features depend on; JSON, part of the keys of caches


@dataclass(frozen=True, kw_only=True)
class TextEncoderSpec:
    """How a text encoder and its tokenizer are built and saved."""

    new: Callable[..., tuple[TextEncoder, PreTrainedTokenizerFast]]  # with new weights: (captions, *, dropout)
    published: Callable[..., tuple[TextEncoder, PreTrainedTokenizerFast]]  # (name or folder, *, dropout)
    save: Callable[[Path, TextEncoder, PreTrainedTokenizerFast], None]  # everything but the weights, in a folder
    files: tuple[str, ...]  # names of files that must be in that folder
    other_files: tuple[str, ...]  # names of files that may be there too
    saved: Callable[[Path], tuple[TextEncoder, PreTrainedTokenizerFast]]  # from that folder, with new weights
    tokenize: Callable[[PreTrainedTokenizerFast, list[str]], list[list[int]]]  # captions to token ids
    settings: Callable[[TextEncoder, PreTrainedTokenizerFast], list[Any]]  # JSON, part of the key of a search index


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The encoders of a model, and the sizes of the heads on them."""

    audio: AudioEncoderSpec
    text: TextEncoderSpec
    hidden_size: int
    embedding_size: int


def _resnet38(width: float) -> AudioEncoderSpec:
    return AudioEncoderSpec(
        new=partial(ResNet38, width=width), published=partial(from_panns, width=width), front_end=FRONT_END
    )


BERT = TextEncoderSpec(
    new=bert.new,
    published=bert.pretrained,
    save=bert.save,
    files=bert.FILES,
    other_files=bert.OTHER_FILES,
    saved=bert.untrained,
    tokenize=bert.tokenize,
    settings=bert.settings,
)

# By the name of the model in Config. Config refuses a full model without published weights.
MODELS = {
    "full": ModelSpec(audio=_resnet38(width=1), text=BERT, hidden_size=2048, embedding_size=1024),
    "tiny": ModelSpec(audio=_resnet38(width=TINY_WIDTH), text=BERT, hidden_size=256, embedding_size=256),
}
