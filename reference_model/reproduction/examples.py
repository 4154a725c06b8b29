"""Examples of what a trained model retrieves from the test set, and the similarities of its pairs.

They are computed from the test embeddings that a run stores; weights are not needed.
"""

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossmodal_losses import RetrievalMetrics, retrieval_metrics
from reference_model import InputError
from reference_model.config import Config
from reference_model.data.audio import SAMPLE_RATE, decode
from reference_model.evaluation.embedded import read_embeddings
from reference_model.run_folder import TEST_EMBEDDINGS

QUERIES = 4  # in each direction
QUERIES_AT_ONCE = 1024  # rows of the similarity matrix in memory at a time
SHOWN = 3  # candidates of a query
SOUND_SECONDS = 10.0  # longest sound on the page
SOUND_COMPRESSION = 0.9  # of 0 to 1: about 40 kbit/s, half the size of the default


@dataclass(frozen=True)
class EmbeddedTestSet:
    """The embeddings of a test set, ``[N, D]`` and ``[M, D]``, with its file names and captions."""

    audio: Tensor
    text: Tensor
    clip_of_caption: Tensor  # integers [M]
    file_names: list[str]  # of the N clips
    captions: list[str]

    @classmethod
    def read(cls, folder: Path) -> "EmbeddedTestSet":
        """Read what a finished run has stored in its folder."""
        path = folder / TEST_EMBEDDINGS
        stored = read_embeddings(path)
        if stored.clips is None:
            raise InputError(f"expected the clips of a test set in {path}, got embeddings alone")
        file_names = [clip["file_name"] for clip in stored.clips]
        captions = [caption for clip in stored.clips for caption in clip["captions"]]
        return cls(stored.audio, stored.text, stored.clip_of_caption, file_names, captions)

    @cached_property
    def metrics(self) -> RetrievalMetrics:
        """The metrics of the captions, x, and the clips, y."""
        return retrieval_metrics(self.text, self.audio, self.clip_of_caption, torch.arange(len(self.audio)))


def similarities(test: EmbeddedTestSet) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return similarities: of positives, ``[M]``; of all captions and clips to their hardest negatives, ``[M + N]``."""
    positives, hardest_of_captions = [], []
    hardest_of_clips = torch.full((len(test.audio),), -torch.inf)
    clips = torch.arange(len(test.audio))
    for start in range(0, len(test.text), QUERIES_AT_ONCE):
        target = test.clip_of_caption[start : start + QUERIES_AT_ONCE, None]
        S = test.text[start : start + QUERIES_AT_ONCE] @ test.audio.T
        positives.append(S.gather(1, target)[:, 0])
        negatives = S.masked_fill(target == clips, -torch.inf)
        hardest_of_captions.append(negatives.amax(1))
        hardest_of_clips = torch.maximum(hardest_of_clips, negatives.amax(0))
    return torch.cat(positives).numpy(), torch.cat([*hardest_of_captions, hardest_of_clips]).numpy()


@dataclass(frozen=True)
class Candidate:
    """A retrieved clip, shown with one of its captions, or a retrieved caption."""

    text: str
    score: float
    right: bool  # whether it belongs to the query
    file_name: str = ""
    sound: str | None = None  # a data: URL


@dataclass(frozen=True)
class Example:
    """A query, the rank of its target, and the first candidates."""

    query: str
    rank: int
    pool: int  # number of candidates
    candidates: list[Candidate]
    sound: str | None = None


def captions_as_queries(test: EmbeddedTestSet, config: Config | None) -> list[Example]:
    """Return examples of text to audio; the queries are captions at even distances.

    The config says where the sounds are; without it there are none. Likewise in :func:`clips_as_queries`.
    """
    examples = []
    for caption in _evenly_spaced(len(test.captions)):
        S = test.text[caption] @ test.audio.T
        is_target = torch.arange(len(test.audio)) == test.clip_of_caption[caption]
        candidates = []
        for clip in _most_similar(S):
            first, name = int((test.clip_of_caption == clip).nonzero()[0]), test.file_names[clip]
            shown = Candidate(test.captions[first], float(S[clip]), bool(is_target[clip]), name, sound(config, name))
            candidates.append(shown)
        rank = int(test.metrics.x_to_y.ranks[caption])
        examples.append(Example(test.captions[caption], rank, len(S), candidates))
    return examples


def clips_as_queries(test: EmbeddedTestSet, config: Config | None) -> list[Example]:
    """Return examples of audio to text; the queries are clips at even distances."""
    examples = []
    for clip in _evenly_spaced(len(test.file_names)):
        S = test.audio[clip] @ test.text.T
        is_target = test.clip_of_caption == clip
        candidates = [Candidate(test.captions[k], float(S[k]), bool(is_target[k])) for k in _most_similar(S)]
        name, rank = test.file_names[clip], int(test.metrics.y_to_x.ranks[clip])
        examples.append(Example(name, rank, len(S), candidates, sound(config, name)))
    return examples


def sound(config: Config | None, file_name: str) -> str | None:
    """Return a clip of the test set as a ``data:`` URL of MP3; None without a config, or if its file is gone."""
    if config is None or file_name != Path(file_name).name:  # edited by hand: it leads out of the folder
        return None
    path = Path(config.data) / config.dataset / "waveforms" / "test" / file_name
    try:
        seconds = min(config.clip_seconds, SOUND_SECONDS)
        waveform = decode(path, seconds)[: round(seconds * SAMPLE_RATE)]
    except InputError:
        return None
    encoded = io.BytesIO()
    samples = waveform.clamp(-1, 1).numpy()
    soundfile.write(encoded, samples, SAMPLE_RATE, format="MP3", compression_level=SOUND_COMPRESSION)
    return "data:audio/mpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _evenly_spaced(number: int) -> list[int]:
    return sorted({int(k) for k in np.linspace(0, number - 1, QUERIES + 2)[1:-1]})


def _most_similar(S: Tensor) -> list[int]:
    order: list[int] = S.sort(descending=True, stable=True).indices[:SHOWN].tolist()
    return order
