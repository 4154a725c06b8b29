"""Section 2.2: two encoders and, on each, a multilayer perceptron into the shared embedding space."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from reference_model import text_encoder
from reference_model.audio_encoder import ResNet38
from reference_model.checkpoint import load_weights
from reference_model.config import Config
from reference_model.text_encoder import TextEncoder

TINY_WIDTH = 1 / 8
# In the folder of a run.
TEXT_ENCODER = "text_encoder"
BEST_WEIGHTS = "best.safetensors"


def head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class DualEncoder(nn.Module):
    """f and g of equation 1: clips and captions to normalised embeddings, ``[B, embedding_size]`` each, in float32.

    Args:
        audio_encoder, text_encoder: the encoders.
        hidden_size: of both heads; 2048 in the paper's published code.
        embedding_size: 1024 in the paper.
        frozen: the encoders receive no gradient and stay in eval mode, so their features are constant: no dropout, no
            drift of batch-norm statistics. Only the heads train.
    """

    def __init__(
        self,
        audio_encoder: ResNet38,
        text_encoder: TextEncoder,
        *,
        hidden_size: int = 2048,
        embedding_size: int = 1024,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.audio_encoder = audio_encoder
        self.text_encoder = text_encoder
        self.audio_head = head(audio_encoder.output_size, hidden_size, embedding_size)
        self.text_head = head(text_encoder.output_size, hidden_size, embedding_size)
        self.frozen = frozen
        self.audio_encoder.requires_grad_(not frozen)
        self.text_encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "DualEncoder":
        super().train(mode)
        if self.frozen:
            self.audio_encoder.eval()
            self.text_encoder.eval()
        return self

    def embed_audio(self, waveforms: Tensor) -> Tensor:
        """f: ``[B, samples]`` at 32 kHz to ``[B, embedding_size]`` of length 1."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.audio_encoder(waveforms)
        return normalize(self.audio_head(features).float())

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """g: ``[B, T]`` token ids to ``[B, embedding_size]`` of length 1."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.text_encoder(input_ids, attention_mask)
        return normalize(self.text_head(features).float())

    def forward(
        self, waveforms: Tensor | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Both embeddings, or the one whose input there is."""
        return (
            None if waveforms is None else self.embed_audio(waveforms),
            None if input_ids is None or attention_mask is None else self.embed_text(input_ids, attention_mask),
        )


def new_model(config: Config, captions: list[str]) -> tuple[DualEncoder, PreTrainedTokenizerFast]:
    """The model as training starts with it, and its tokenizer; ``captions`` make the tiny one's vocabulary."""
    if config.model == "tiny":
        tokenizer = text_encoder.train_tokenizer(captions)
        return _assemble(config, ResNet38(width=TINY_WIDTH), text_encoder.tiny(tokenizer)), tokenizer
    assert config.audio_checkpoint is not None  # Config sees to it
    audio = ResNet38.from_panns(config.audio_checkpoint)
    bert, tokenizer = text_encoder.pretrained(config.bert)
    return _assemble(config, audio, bert), tokenizer


def saved_model(config: Config, run: Path) -> tuple[DualEncoder, PreTrainedTokenizerFast]:
    """The model of a run with its best weights, and its tokenizer; nothing but the run's folder is needed."""
    bert, tokenizer = text_encoder.untrained(run / TEXT_ENCODER)
    audio = ResNet38(width=TINY_WIDTH if config.model == "tiny" else 1)
    model = _assemble(config, audio, bert)
    load_weights(run / BEST_WEIGHTS, model)
    return model, tokenizer


def _assemble(config: Config, audio: ResNet38, text: TextEncoder) -> DualEncoder:
    sizes = {"hidden_size": 256, "embedding_size": 256} if config.model == "tiny" else {}
    return DualEncoder(audio, text, frozen=config.encoders == "frozen", **sizes)
