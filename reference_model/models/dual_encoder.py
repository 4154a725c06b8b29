"""Section 2.2: two encoders and, on each, a head, a multilayer perceptron into the shared embedding space."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from reference_model.config import Config
from reference_model.models.encoders import MODELS, AudioEncoder, TextEncoder
from reference_model.run_folder import BEST_WEIGHTS, FROZEN_WEIGHTS, MODEL_WEIGHTS, TEXT_ENCODER
from reference_model.runtime.tensors import load_weights


class Heads(nn.Module):
    """Map features of the encoders to normalised embeddings, ``[B, embedding_size]``, in float32."""

    def __init__(self, audio_size: int, text_size: int, *, hidden_size: int, embedding_size: int) -> None:
        super().__init__()
        self.audio = _perceptron(audio_size, hidden_size, embedding_size)
        self.text = _perceptron(text_size, hidden_size, embedding_size)

    def forward(self, audio: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return audio and text embeddings; None for the one whose features are None."""
        return (
            None if audio is None else normalize(self.audio(audio).float()),
            None if text is None else normalize(self.text(text).float()),
        )


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Build two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class DualEncoder(nn.Module):
    """Map clips and captions to normalised embeddings, ``[B, embedding_size]`` each, in float32: f and g of equation 1.

    Args:
        audio_encoder: the encoder of clips.
        text_encoder: the encoder of captions.
        hidden_size: width of the hidden layer of both heads; 2048 in the paper's published code.
        embedding_size: 1024 in the paper.
        frozen: the parameters of the encoders do not train, only those of the heads.
        constant: frozen encoders stay in eval mode, so their features are constant: no dropout, no drift of batch-norm
            statistics.
    """

    def __init__(
        self,
        audio_encoder: AudioEncoder,
        text_encoder: TextEncoder,
        *,
        hidden_size: int = 2048,
        embedding_size: int = 1024,
        frozen: bool,
        constant: bool,
    ) -> None:
        super().__init__()
        self.audio_encoder = audio_encoder
        self.text_encoder = text_encoder
        self.heads = Heads(
            audio_encoder.output_size, text_encoder.output_size, hidden_size=hidden_size, embedding_size=embedding_size
        )
        self.frozen = frozen
        self.constant = frozen and constant
        self.audio_encoder.requires_grad_(not frozen)
        self.text_encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "DualEncoder":
        """Set train or eval mode; constant encoders stay in eval mode."""
        super().train(mode)
        if self.constant:
            self.audio_encoder.eval()
            self.text_encoder.eval()
        return self

    def encode_audio(self, waveforms: Tensor) -> Tensor:
        """Return the features, ``[B, 2048]``, of waveforms ``[B, samples]`` at 32 kHz."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.audio_encoder(waveforms)
        return features

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the features, ``[B, 768]``, of token ids ``[B, T]``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.text_encoder(input_ids, attention_mask)
        return features

    def forward(
        self, waveforms: Tensor | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return audio and text embeddings; None for the one whose input is None."""
        embeddings: tuple[Tensor | None, Tensor | None] = self.heads(
            None if waveforms is None else self.encode_audio(waveforms),
            None if input_ids is None or attention_mask is None else self.encode_text(input_ids, attention_mask),
        )
        return embeddings

    def frozen_parameters(self) -> dict[str, Tensor]:
        """Return the parameters that training does not change."""
        return {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return what training changes: trained parameters and the statistics of batch norm."""
        frozen = self.frozen_parameters()
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}


def new_model(config: Config, captions: list[str]) -> tuple[DualEncoder, PreTrainedTokenizerFast]:
    """Build the model as training starts with it, and its tokenizer.

    Args:
        config: the settings of the run.
        captions: those of the train split; the vocabulary of a new tokenizer is made of them.
    """
    audio, text = MODELS[config.model].audio, MODELS[config.model].text
    dropout, spec_augment = config.dropout, config.spec_augment
    if config.audio_checkpoint is None:
        audio_encoder = audio.new(dropout=dropout, spec_augment=spec_augment)
    else:
        audio_encoder = audio.published(config.audio_checkpoint, dropout=dropout, spec_augment=spec_augment)
    if config.bert is None:
        text_encoder, tokenizer = text.new(captions, dropout=dropout)
    else:
        text_encoder, tokenizer = text.published(config.bert, dropout=dropout)
    return _with_heads(config, audio_encoder, text_encoder), tokenizer


def saved_model(config: Config, folder: Path) -> tuple[DualEncoder, PreTrainedTokenizerFast]:
    """Load a saved model, or a run's with its best weights, and its tokenizer; nothing but the folder is read.

    Raises:
        InputError: a file is missing, damaged or of another model.
    """
    text_encoder, tokenizer = MODELS[config.model].text.saved(folder / TEXT_ENCODER)
    model = _with_heads(config, MODELS[config.model].audio.new(), text_encoder)
    if (folder / MODEL_WEIGHTS).is_file():
        load_weights(folder / MODEL_WEIGHTS, model.state_dict())
        return model, tokenizer
    if model.frozen:
        load_weights(folder / FROZEN_WEIGHTS, model.frozen_parameters())
    load_weights(folder / BEST_WEIGHTS, model.trainable_state_dict())
    return model, tokenizer


def _with_heads(config: Config, audio_encoder: AudioEncoder, text_encoder: TextEncoder) -> DualEncoder:
    """Build the model of the config on these encoders."""
    return DualEncoder(
        audio_encoder,
        text_encoder,
        hidden_size=MODELS[config.model].hidden_size,
        embedding_size=MODELS[config.model].embedding_size,
        frozen=config.encoders == "frozen",
        constant=config.frozen_mode == "eval",
    )
