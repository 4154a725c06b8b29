"""Section 2.2: two encoders and, on each, a multilayer perceptron into the shared embedding space."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from reference_model.config import Config
from reference_model.models import bert as text_encoder
from reference_model.models.bert import TextEncoder
from reference_model.models.panns import from_panns
from reference_model.models.resnet38 import ResNet38
from reference_model.run_folder import BEST_WEIGHTS, FROZEN_WEIGHTS, MODEL_WEIGHTS, TEXT_ENCODER
from reference_model.runtime.tensors import load_weights

TINY_WIDTH = 1 / 8


class Heads(nn.Module):
    """Features of the encoders to normalised embeddings, ``[B, embedding_size]``, in float32."""

    def __init__(self, audio_size: int, text_size: int, *, hidden_size: int, embedding_size: int) -> None:
        super().__init__()
        self.audio = _perceptron(audio_size, hidden_size, embedding_size)
        self.text = _perceptron(text_size, hidden_size, embedding_size)

    def forward(self, audio: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Both embeddings, or that of the features there are."""
        return (
            None if audio is None else normalize(self.audio(audio).float()),
            None if text is None else normalize(self.text(text).float()),
        )


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class DualEncoder(nn.Module):
    """f and g of equation 1: clips and captions to normalised embeddings, ``[B, embedding_size]`` each, in float32.

    Args:
        audio_encoder, text_encoder: the encoders.
        hidden_size: of both heads; 2048 in the paper's published code.
        embedding_size: 1024 in the paper.
        frozen: the parameters of the encoders do not train, only the heads.
        constant: frozen encoders stay in eval mode, so their features are constant: no dropout, no drift of batch-norm
            statistics.
    """

    def __init__(
        self,
        audio_encoder: ResNet38,
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
            audio_encoder.output_size,
            text_encoder.output_size,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
        )
        self.frozen = frozen
        self.constant = frozen and constant
        self.audio_encoder.requires_grad_(not frozen)
        self.text_encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "DualEncoder":
        super().train(mode)
        if self.constant:
            self.audio_encoder.eval()
            self.text_encoder.eval()
        return self

    def encode_audio(self, waveforms: Tensor) -> Tensor:
        """``[B, samples]`` at 32 kHz to features, ``[B, 2048]``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.audio_encoder(waveforms)
        return features

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``[B, T]`` token ids to features, ``[B, 768]``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.text_encoder(input_ids, attention_mask)
        return features

    def forward(
        self, waveforms: Tensor | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Both embeddings, or the one whose input there is."""
        embeddings: tuple[Tensor | None, Tensor | None] = self.heads(
            None if waveforms is None else self.encode_audio(waveforms),
            None if input_ids is None or attention_mask is None else self.encode_text(input_ids, attention_mask),
        )
        return embeddings

    def frozen_parameters(self) -> dict[str, Tensor]:
        """What training does not change."""
        return {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}

    def changing_state(self) -> dict[str, Tensor]:
        """What training changes: trained parameters, and the statistics of batch norm."""
        frozen = self.frozen_parameters()
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}


def new_model(config: Config, captions: list[str]) -> tuple[DualEncoder, PreTrainedTokenizerFast]:
    """The model as training starts with it, and its tokenizer; ``captions`` make the tiny one's vocabulary."""
    width = TINY_WIDTH if config.model == "tiny" else 1
    dropout, spec_augment = config.dropout, config.spec_augment
    if config.audio_checkpoint is None:
        audio = ResNet38(width=width, dropout=dropout, spec_augment=spec_augment)
    else:
        audio = from_panns(config.audio_checkpoint, width=width, dropout=dropout, spec_augment=spec_augment)
    if config.bert is None:
        tokenizer = text_encoder.train_tokenizer(captions)
        text = text_encoder.tiny(tokenizer, dropout=dropout)
    else:
        text, tokenizer = text_encoder.pretrained(config.bert, dropout=dropout)
    return _assemble(config, audio, text), tokenizer


def saved_model(config: Config, folder: Path) -> tuple[DualEncoder, PreTrainedTokenizerFast]:
    """A saved model, or that of a run with its best weights, and its tokenizer; nothing but the folder is needed."""
    bert, tokenizer = text_encoder.untrained(folder / TEXT_ENCODER)
    audio = ResNet38(width=TINY_WIDTH if config.model == "tiny" else 1)
    model = _assemble(config, audio, bert)
    if (folder / MODEL_WEIGHTS).is_file():
        load_weights(folder / MODEL_WEIGHTS, model.state_dict())
        return model, tokenizer
    if model.frozen:
        load_weights(folder / FROZEN_WEIGHTS, model.frozen_parameters())
    load_weights(folder / BEST_WEIGHTS, model.changing_state())
    return model, tokenizer


def _assemble(config: Config, audio: ResNet38, text: TextEncoder) -> DualEncoder:
    sizes = {"hidden_size": 256, "embedding_size": 256} if config.model == "tiny" else {}
    return DualEncoder(audio, text, frozen=config.encoders == "frozen", constant=config.frozen_mode == "eval", **sizes)
