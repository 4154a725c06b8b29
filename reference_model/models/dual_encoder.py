"""Section 2.2: two encoders and, on each, a head, a multilayer perceptron into the shared embedding space."""

from functools import partial
from pathlib import Path

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

    The heads have 2048 hidden units in the paper's published code, and 1024 outputs in the paper. ``frozen`` encoders
    do not train. If they are ``constant`` too they stay in eval mode: no dropout, no drift of batch-norm statistics.
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
        self.audio_encoder = audio_encoder.requires_grad_(not frozen)
        self.text_encoder = text_encoder.requires_grad_(not frozen)
        self.heads = Heads(
            audio_encoder.output_size, text_encoder.output_size, hidden_size=hidden_size, embedding_size=embedding_size
        )
        self.frozen, self.constant = frozen, frozen and constant

    def train(self, mode: bool = True) -> "DualEncoder":
        """Set train or eval mode; constant encoders stay in eval mode."""
        super().train(mode)
        if self.constant:
            self.audio_encoder.eval()
            self.text_encoder.eval()
        return self

    def forward(
        self, waveforms: Tensor | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return audio and text embeddings; None for the one whose input is None."""
        embeddings: tuple[Tensor | None, Tensor | None] = self.heads(
            None if waveforms is None else self.audio_encoder(waveforms),
            None if input_ids is None else self.text_encoder(input_ids, attention_mask),
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
    """Build the model as training starts with it, and its tokenizer; a new one learns its words from captions."""
    audio, text, dropout = MODELS[config.model].audio, MODELS[config.model].text, config.dropout
    build = audio.new if config.audio_checkpoint is None else partial(audio.published, config.audio_checkpoint)
    audio_encoder = build(dropout=dropout, spec_augment=config.spec_augment)
    if config.bert is None:
        text_encoder, tokenizer = text.new(captions, dropout=dropout)
    else:
        text_encoder, tokenizer = text.published(config.bert, dropout=dropout)
    return _with_heads(config, audio_encoder, text_encoder), tokenizer


def saved_model(config: Config, folder: Path) -> tuple[DualEncoder, PreTrainedTokenizerFast]:
    """Load a saved model, or a run's with its best weights, and its tokenizer; nothing but the folder is read."""
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
    sizes = {"hidden_size": MODELS[config.model].hidden_size, "embedding_size": MODELS[config.model].embedding_size}
    frozen, constant = config.encoders == "frozen", config.frozen_mode == "eval"
    return DualEncoder(audio_encoder, text_encoder, **sizes, frozen=frozen, constant=constant)
