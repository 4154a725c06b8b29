"""What a trained model retrieves from the test set, to read and to hear, and how similar pairs are to it.

A run keeps the embeddings of its test set, so that nothing here needs its weights.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.audio import SAMPLE_RATE, load_waveform
from reference_model.evaluation.metrics import QUERIES_AT_ONCE, ranks_of_targets
from reference_model.run_folder import TEST_EMBEDDINGS
from reference_model.runtime.tensors import load_tensors

QUERIES = 4  # a direction
SHOWN = 3  # candidates a query
SOUND_SECONDS = 10.0  # to hear, at most


@dataclass(frozen=True)
class Pool:
    """The embeddings of a test set, ``[N, D]`` and ``[M, D]``, and what they are of."""

    audio: Tensor
    text: Tensor
    clip_of_caption: Tensor  # integers [M]
    names: list[str]  # of the clips
    captions: list[str]

    @classmethod
    def of(cls, run: Path) -> "Pool":
        """As a finished run has left them."""
        tensors, record = load_tensors(run / TEST_EMBEDDINGS)
        clips = record["clips"]
        return cls(
            audio=tensors["audio"].float(),
            text=tensors["text"].float(),
            clip_of_caption=torch.repeat_interleave(torch.tensor([len(clip["captions"]) for clip in clips])),
            names=[clip["file_name"] for clip in clips],
            captions=[caption for clip in clips for caption in clip["captions"]],
        )


def similarities(test: Pool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of captions with their clips, ``[M]``, and of captions and clips with their hardest negatives, ``[M + N]``."""
    positives, of_captions = [], []
    of_clips = torch.full((len(test.audio),), -torch.inf)
    clips = torch.arange(len(test.audio))
    for start in range(0, len(test.text), QUERIES_AT_ONCE):
        own = test.clip_of_caption[start : start + QUERIES_AT_ONCE, None]
        S = test.text[start : start + QUERIES_AT_ONCE] @ test.audio.T
        positives.append(S.gather(1, own)[:, 0])
        negatives = S.masked_fill(own == clips, -torch.inf)
        of_captions.append(negatives.amax(1))
        of_clips = torch.maximum(of_clips, negatives.amax(0))
    return torch.cat(positives).numpy(), torch.cat([*of_captions, of_clips]).numpy()


@dataclass(frozen=True)
class Candidate:
    """What was retrieved: a clip, by its name and one of its captions, or a caption."""

    text: str
    score: float
    right: bool
    name: str = ""
    sound: str | None = None  # a data URI


@dataclass(frozen=True)
class Example:
    """A query, at which rank its partner was, and the first candidates."""

    query: str
    rank: int
    pool: int
    candidates: list[Candidate]
    sound: str | None = None


def captions_as_queries(test: Pool, config: Config) -> list[Example]:
    """Text to audio: captions at even distances, none of them chosen."""
    found = []
    for caption in _evenly(len(test.captions)):
        S = test.text[caption] @ test.audio.T
        own = torch.arange(len(test.audio)) == test.clip_of_caption[caption]
        candidates = [
            Candidate(
                text=test.captions[int((test.clip_of_caption == clip).nonzero()[0])],
                score=float(S[clip]),
                right=bool(own[clip]),
                name=test.names[clip],
                sound=sound(config, test.names[clip]),
            )
            for clip in _first(S)
        ]
        found.append(Example(test.captions[caption], _rank(S, own), len(S), candidates))
    return found


def clips_as_queries(test: Pool, config: Config) -> list[Example]:
    """Audio to text: clips at even distances, none of them chosen."""
    found = []
    for clip in _evenly(len(test.names)):
        S = test.audio[clip] @ test.text.T
        own = test.clip_of_caption == clip
        candidates = [Candidate(test.captions[k], float(S[k]), bool(own[k])) for k in _first(S)]
        name = test.names[clip]
        found.append(Example(name, _rank(S, own), len(S), candidates, sound(config, name)))
    return found


def sound(config: Config, name: str) -> str | None:
    """A clip of the test set as a data URI of MP3; None where its file is not there any more."""
    path = Path(config.data) / config.dataset / "waveforms" / "test" / name
    try:
        waveform = load_waveform(path, min(config.clip_seconds, SOUND_SECONDS, soundfile.info(path).duration))
    except (InputError, OSError, soundfile.LibsndfileError):
        return None
    encoded = io.BytesIO()
    soundfile.write(encoded, waveform.clamp(-1, 1).numpy(), SAMPLE_RATE, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _evenly(number: int) -> list[int]:
    return sorted({int(k) for k in np.linspace(0, number - 1, QUERIES + 2)[1:-1]})


def _first(S: Tensor) -> list[int]:
    order: list[int] = S.sort(descending=True, stable=True).indices[:SHOWN].tolist()
    return order


def _rank(S: Tensor, own: Tensor) -> int:
    return int(ranks_of_targets(S[None], own[None])[0, 0])
