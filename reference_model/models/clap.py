"""CLAP (Wu et al. 2023) in the Hugging Face layout, whole: both towers with their projections, to be judged.

Its feature extractor, sample rate and tokenizer are its own. It is not trained here.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

from reference_model import InputError, reason_of
from reference_model.data.audio import decode
from reference_model.data.dataset import Clip, captions_of
from reference_model.models import hugging_face
from reference_model.models.encode import BatchEncoder, unique
from reference_model.models.hugging_face_audio import Extractor, read_extractor
from reference_model.models.text import CAPTION, check_tokenizer


class ClapInputs(Extractor):
    """Makes the inputs of CLAP of a waveform, as its feature extractor does, but the same every time.

    Of clips longer than its window the extractor draws parts: here those of one seed, which depend on the length alone.
    Where no clip of a batch is longer, it marks one at random as longer, so that training reaches all weights: here
    those are marked that are.
    """

    def __call__(self, waveform: Tensor) -> dict[str, Tensor]:
        """Return the inputs for a waveform, ``[samples]``."""
        try:
            with _numpy_seed(0):
                inputs = super().__call__(waveform)
        except Exception as error:  # it fails as it was set up by whoever published the model
            seconds = f"{len(waveform) / self.rate:g} s"
            raise InputError(f"expected a feature extractor for clips of {seconds}, got: {reason_of(error)}") from error
        frames, window = (n // self.extractor.hop_length for n in (len(waveform), self.extractor.nb_max_samples))
        return inputs | {"is_longer": torch.tensor([frames > window])}


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator for a block, and restore it."""
    state = np.random.get_state()  # noqa: NPY002 - the extractor draws from it
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


class _Clips(Dataset[Tensor]):
    """Each clip once: ``[samples]`` at a rate in Hz, cut to a length in seconds; shorter ones stay as they are."""

    def __init__(self, clips: list[Clip], seconds: float, rate: int) -> None:
        self.clips, self.seconds, self.rate = clips, seconds, rate

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        return decode(self.clips[index].path, self.seconds, self.rate)[: round(self.seconds * self.rate)]


class _Audio(nn.Module):
    """The audio tower with its projection: embeddings of unit length, ``[B, D]``."""

    def __init__(self, model: ClapModel, extractor: ClapFeatureExtractor) -> None:
        super().__init__()
        self.model, self.front_end, self.output_size = model, ClapInputs(extractor), model.config.projection_dim

    def forward(self, **inputs: Tensor) -> Tensor:
        return _pooled(self.model.get_audio_features(**inputs))


class _Text(nn.Module):
    """The text tower with its projection: embeddings of unit length, ``[B, D]``."""

    def __init__(self, model: ClapModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return _pooled(self.model.get_text_features(**inputs))


def _pooled(output: Any) -> Tensor:
    """Return the embeddings, which transformers 5 puts into an output of several fields."""
    embeddings: Tensor = getattr(output, "pooler_output", output)
    return embeddings


class Clap(nn.Module):
    """A ClapModel by name or from a local folder in the Hugging Face layout: embeds clips and captions.

    No code of a folder runs, and nothing in it is unpickled.

    Raises:
        InputError: there is no such model, or it is damaged, or its parts do not fit together.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__()
        try:
            config = hugging_face.read_config(name)
            if not isinstance(config, ClapConfig):
                raise ValueError(f"a model of type {config.model_type}")
            extractor = read_extractor(name)
            if not isinstance(extractor, ClapFeatureExtractor):
                raise ValueError(f"a {type(extractor).__name__}")
            self.tokenizer = AutoTokenizer.from_pretrained(name, config=config, trust_remote_code=False)
            model: Any
            model, absent = hugging_face.load(name, config, None)
            if absent:
                raise ValueError(f"a file without {min(absent)}")
            self.audio_encoder, self.text_encoder = _Audio(model, extractor), _Text(model)
            self.to(device).eval()
            self._check(config, device)
        except Exception as error:  # damaged files make the libraries raise errors of all kinds
            raise InputError(
                "expected a ClapModel by name or in a folder with config.json, model.safetensors, "
                f"preprocessor_config.json and its tokenizer, got {name}: {reason_of(error)}"
            ) from error

    def _check(self, config: Any, device: torch.device) -> None:
        """Refuse parts that do not fit together; at the end embed a second of noise and a caption."""
        extractor = self.audio_encoder.front_end.extractor
        if (extractor.truncation == "fusion") != config.audio_config.enable_fusion:
            fusion = f"enable_fusion {config.audio_config.enable_fusion}"
            raise ValueError(f"a feature extractor of truncation {extractor.truncation} for a model of {fusion}")
        padding = config.text_config.pad_token_id
        if self.tokenizer.pad_token_id != padding:
            raise ValueError(f"a tokenizer that pads with token {self.tokenizer.pad_token_id}, not {padding}")
        positions = config.text_config.max_position_embeddings - padding - 1  # RoBERTa counts from padding + 1
        self.longest = min(self.tokenizer.model_max_length, positions)
        check_tokenizer(self.tokenizer, config)
        inputs = self.audio_encoder.front_end(torch.randn(extractor.sampling_rate))
        encoder = BatchEncoder(self, device, nullcontext, workers=0)
        with torch.no_grad():
            audio = self.audio_encoder(**{name: tensor[None].to(device) for name, tensor in inputs.items()})
        (text,) = encoder.captions(self._tokens([CAPTION]))
        if not (audio.isfinite().all() and text.isfinite().all()):
            raise ValueError("embeddings that are not finite")

    def _tokens(self, captions: list[str]) -> list[list[int]]:
        """Return the token ids of captions, which stay as they are."""
        ids: list[list[int]] = self.tokenizer(captions, truncation=True, max_length=self.longest)["input_ids"]
        return ids

    def embed(self, clips: list[Clip], *, seconds: float, device: torch.device, workers: int) -> tuple[Tensor, Tensor]:
        """Embed clips, cut to a length, and all their captions: ``[N, D]`` and ``[M, D]`` of unit length, float32."""
        encoder = BatchEncoder(self, device, nullcontext, workers)
        waveforms = _Clips(clips, seconds, self.audio_encoder.front_end.rate)
        audio = torch.cat([embeddings for embeddings, _ in encoder.clips(waveforms)])
        sentences, text_of_caption = unique(self._tokens(captions_of(clips)))
        return audio.cpu(), torch.cat(list(encoder.captions(sentences))).cpu()[text_of_caption]
