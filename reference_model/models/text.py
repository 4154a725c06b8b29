"""Section 2.2, text encoder: BERT (Devlin et al. 2019), or another model in the Hugging Face layout.

The output for the first token represents the sentence, as in the paper, or the mean of the outputs for all its tokens.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import cached_file

from reference_model import InputError, reason_of
from reference_model.config import Pooling
from reference_model.data.batches import pad_tokens
from reference_model.models import hugging_face
from reference_model.models.hugging_face import LONGEST

TOKENIZER = "tokenizer.json"
FILES = (hugging_face.CONFIG, TOKENIZER)  # in the folder of a saved encoder
OTHER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")  # some have them

CAPTION = "A dog barks (twice), and a car passes."  # with which models are tried


class TextEncoder(nn.Module):
    """Encode token ids and attention mask, ``[B, T]`` each, as one vector for each sentence, ``[B, output_size]``.

    Args:
        model: the tower that encodes text.
        config: the settings of the model, with those of other towers where it has some.
        tokenizer: of the model.
        pooling: what represents a sentence: the output for its "first" token, or the "mean" over its tokens.
    """

    output_size: int

    def __init__(
        self, model: nn.Module, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, pooling: Pooling
    ) -> None:
        super().__init__()
        self.family = re.sub(r"\W", "_", config.model_type)  # in the names of weights
        self.add_module(self.family, model)
        self.config, self.tokenizer, self.pooling = config, tokenizer, pooling
        self.output_size = model.config.hidden_size  # type: ignore[assignment, union-attr]

    @property
    def model(self) -> PreTrainedModel:
        """The model without pooling."""
        model: PreTrainedModel = getattr(self, self.family)
        return model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return a vector for each sentence."""
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "first":
            return hidden[:, 0]
        tokens = attention_mask[:, :, None]
        mean: Tensor = (hidden.float() * tokens).sum(1) / tokens.sum(1)
        return mean

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        """Return the token ids of each caption, at most LONGEST, normalised as in the paper's published code."""
        return tokenize(self.tokenizer, captions)

    @property
    def settings(self) -> list[Any]:
        """What the features of tokens depend on besides the weights, as JSON."""
        return [hugging_face.settings_of(self.config), self.pooling]

    @property
    def tokenizer_settings(self) -> list[Any]:
        """What the tokens of a caption depend on, as JSON."""
        settings = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for mutable in ("truncation", "padding"):  # the tokenizer keeps those of its last call
            settings.pop(mutable, None)
        return [settings, LONGEST]

    def save(self, folder: Path) -> None:
        """Save what :func:`saved` reads: the settings and the tokenizer, not the weights."""
        self.config.save_pretrained(folder)
        try:
            self.tokenizer.save_pretrained(folder)
        except Exception as error:  # of a full disk too, which is no OSError here
            raise OSError(reason_of(error)) from error


def published(name: str, *, pooling: Pooling = "first", dropout: float = 0.1) -> TextEncoder:
    """Load a text encoder by name ("bert-base-uncased") or from a local folder in the Hugging Face layout."""
    try:
        config = hugging_face.read_config(name, dropout=dropout)
        tokenizer = _read_tokenizer(name, config)
        tokenizer.chat_template = None  # captions need none, and it would be saved in a file of its own
        ids = check_tokenizer(tokenizer, config)
        model, absent = hugging_face.load(name, config, "text_model")
        return _checked(TextEncoder(model, config, tokenizer, pooling), ids, absent)
    except Exception as error:  # damaged files make both libraries raise errors of all kinds
        raise InputError(
            f"expected a text encoder by name or in a folder with config.json, model.safetensors and its tokenizer, "
            f"got {name}: {reason_of(error)}"
        ) from error


def _read_tokenizer(name: str, config: PreTrainedConfig) -> Any:
    """Read a tokenizer by name or from a folder; say so where a tokenizer.json is missing."""
    try:
        return AutoTokenizer.from_pretrained(name, config=config, trust_remote_code=False)
    except Exception as error:  # one that names a package, where there is a file of sentencepiece alone
        try:
            cached_file(name, TOKENIZER)
        except OSError:
            remedy = "where sentencepiece is installed, save_pretrained of transformers' AutoTokenizer writes one"
            raise ValueError(f"no {TOKENIZER}, nor other files to make one of here; {remedy}") from error
        raise


def saved(folder: Path, *, pooling: Pooling) -> TextEncoder:
    """Build an encoder with new weights, and its tokenizer, from a folder that ``save`` wrote."""
    try:
        config = hugging_face.read_config(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
        ids = check_tokenizer(tokenizer, config)
        model = hugging_face.tower_of(hugging_face.new(config), "text_model")
        return _checked(TextEncoder(model, config, tokenizer, pooling), ids, {})
    except Exception as error:  # damaged files make both libraries raise errors of all kinds
        got = reason_of(error)
        raise InputError(f"expected settings and tokenizer of a text encoder in {folder}, got: {got}") from error


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> list[int]:
    """Refuse a tokenizer that cannot encode a caption, or with tokens that the model has no embedding of.

    Returns:
        The token ids of a caption.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"a {type(tokenizer).__name__}, which has no {TOKENIZER}")
    (ids,) = tokenize(tokenizer, [CAPTION])
    if not 0 < len(ids) <= LONGEST:
        raise ValueError(f"a tokenizer that encodes a caption in {len(ids)} tokens")
    last, known = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    if not last < known:
        raise ValueError(f"a tokenizer with token {last} for a model of {known} tokens")
    return ids


def _checked(encoder: TextEncoder, ids: list[int], absent: dict[str, nn.Parameter]) -> TextEncoder:
    """Try the encoder on a caption, alone and beside the longest one, for which it is padded.

    See :func:`hugging_face.freeze_unused` too.
    """
    encoder.eval()
    with torch.no_grad():
        (alone,), (padded, _) = (encoder(**pad_tokens(captions)) for captions in ([ids], [ids, ids[:1] * LONGEST]))
    if not torch.allclose(padded, alone, rtol=0, atol=0.01 * float(alone.abs().max())):
        raise ValueError("a model in which padding changes the features of a caption")
    encoder.output_size = hugging_face.freeze_unused(encoder, pad_tokens([ids]), absent)
    return encoder


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> list[list[int]]:
    """Return the token ids of each caption, at most LONGEST, after the normalisation of the paper's published code."""
    plain = [re.sub(r'\s*[,.!?;:"]\s*', " ", caption.lower()) for caption in captions]
    try:
        ids: list[list[int]] = tokenizer(plain, truncation=True, max_length=LONGEST)["input_ids"]
    except Exception as error:  # a damaged tokenizer makes the library raise errors of all kinds
        raise InputError(f"expected a tokenizer that encodes captions, got: {reason_of(error)}") from error
    if empty := [caption for caption, tokens in zip(captions, ids, strict=True) if not tokens]:
        raise InputError(f"expected captions with words, got {empty[0]!r}")
    return ids
