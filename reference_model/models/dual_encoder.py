"""Section 2.2: two encoders and, on each, a head, a multilayer perceptron into the shared embedding space."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import normalize

from reference_model.config import Config
from reference_model.models.encoders import (
    SIZES,
    AudioEncoder,
    new_audio_encoder,
    new_text_encoder,
    saved_audio_encoder,
    saved_text_encoder,
)
from reference_model.models.hugging_face_audio import HuggingFaceAudioEncoder
from reference_model.models.text import TextEncoder
from reference_model.run_folder import AUDIO_ENCODER, BEST_WEIGHTS, FROZEN_WEIGHTS, MODEL_WEIGHTS, TEXT_ENCODER
from reference_model.runtime.files import atomic_folder
from reference_model.runtime.tensors import load_weights

MODALITIES = ("audio", "text")
Inputs = Mapping[str, Tensor]  # of an encoder, by name


class Heads(nn.Module):
    """Map features of the encoders to normalised embeddings, ``[B, embedding_size]``, in float32."""

    def __init__(self, audio_size: int, text_size: int, *, hidden_size: int, embedding_size: int) -> None:
        super().__init__()
        self.audio, self.text = (
            nn.Sequential(nn.Linear(inputs, hidden_size), nn.ReLU(), nn.Linear(hidden_size, embedding_size))
            for inputs in (audio_size, text_size)
        )

    def forward(self, audio: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return audio and text embeddings; None for the one whose features are None."""
        return (
            None if audio is None else normalize(self.audio(audio).float()),
            None if text is None else normalize(self.text(text).float()),
        )


class DualEncoder(nn.Module):
    """Map clips and captions to normalised embeddings, ``[B, embedding_size]`` each, in float32: f and g of equation 1.

    The heads have 2048 hidden units in the paper's published code, and 1024 outputs in the paper. ``frozen`` encoders,
    of "audio" and "text", do not train. Those that are ``constant`` too stay in eval mode: no dropout, no drift of
    batch-norm statistics.
    """

    def __init__(
        self,
        audio_encoder: AudioEncoder,
        text_encoder: TextEncoder,
        *,
        hidden_size: int = 2048,
        embedding_size: int = 1024,
        frozen: Collection[str] = (),
        constant: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.audio_encoder, self.text_encoder = audio_encoder, text_encoder
        self.heads = Heads(
            audio_encoder.output_size, text_encoder.output_size, hidden_size=hidden_size, embedding_size=embedding_size
        )
        self.constant = [modality for modality in MODALITIES if modality in frozen and modality in constant]
        for modality in frozen:
            self.encoder(modality).requires_grad_(False)

    def encoder(self, modality: str) -> AudioEncoder | TextEncoder:
        """Return the encoder of "audio" or "text"."""
        return self.audio_encoder if modality == "audio" else self.text_encoder

    @property
    def is_constant(self) -> bool:
        """Whether both encoders are constant."""
        return len(self.constant) == len(MODALITIES)

    def train(self, mode: bool = True) -> "DualEncoder":
        """Set train or eval mode; constant encoders stay in eval mode."""
        super().train(mode)
        for modality in self.constant:
            self.encoder(modality).eval()
        return self

    def forward(
        self,
        audio: Inputs | Tensor | None = None,
        text: Inputs | Tensor | None = None,
        audio_rows: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return audio and text embeddings, of inputs of the encoders or of their features; None for what is None.

        With ``audio_rows``, ``[B]``, the audio embeddings are those of these rows.
        """
        features = (
            given if given is None or isinstance(given, Tensor) else self.encoder(modality)(**given)
            for modality, given in (("audio", audio), ("text", text))
        )
        embeddings: tuple[Tensor | None, Tensor | None] = self.heads(*features)
        if audio_rows is None or embeddings[0] is None:
            return embeddings
        return embeddings[0][audio_rows], embeddings[1]

    def frozen_parameters(self) -> dict[str, Tensor]:
        """Return the parameters that training does not change."""
        return {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return what training changes: trained parameters and the statistics of batch norm."""
        frozen = self.frozen_parameters()
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    def save_encoders(self, folder: Path) -> None:
        """Save settings, tokenizer and feature extractor: what :func:`saved_model` reads besides weights and config."""
        atomic_folder(folder / TEXT_ENCODER, self.text_encoder.save)
        if isinstance(self.audio_encoder, HuggingFaceAudioEncoder):
            atomic_folder(folder / AUDIO_ENCODER, self.audio_encoder.save)


def new_model(config: Config, captions: list[str]) -> DualEncoder:
    """Build the model as training starts with it; a new text encoder learns its words from captions."""
    return _with_heads(config, new_audio_encoder(config), new_text_encoder(config, captions))


def saved_model(config: Config, folder: Path) -> DualEncoder:
    """Load a saved model, or a run's with its best weights; nothing but the folder is read."""
    text_encoder = saved_text_encoder(config, folder)
    model = _with_heads(config, saved_audio_encoder(config, folder), text_encoder)
    if (folder / MODEL_WEIGHTS).is_file():
        load_weights(folder / MODEL_WEIGHTS, model.state_dict())
        return model
    if frozen := model.frozen_parameters():
        load_weights(folder / FROZEN_WEIGHTS, frozen)
    load_weights(folder / BEST_WEIGHTS, model.trainable_state_dict())
    return model


def _with_heads(config: Config, audio_encoder: AudioEncoder, text_encoder: TextEncoder) -> DualEncoder:
    sizes = {"hidden_size": SIZES[config.model].hidden_size, "embedding_size": SIZES[config.model].embedding_size}
    frozen = config.frozen_encoders
    constant = frozen if config.frozen_mode == "eval" else ()
    return DualEncoder(audio_encoder, text_encoder, **sizes, frozen=frozen, constant=constant)
