"""Section 2.2, text encoder: BERT (Devlin et al. 2019); the output for the first token represents the sentence."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from reference_model import InputError

LONGEST = 64  # tokens; longer captions are cut
FILES = ("config.json", "tokenizer.json")  # in the folder of a saved encoder
VOCABULARY = 1000  # tokens of the tiny model


class BertEncoder(nn.Module):
    """Encode token ids and attention mask, ``[B, T]`` each, as one vector for each sentence, ``[B, output_size]``."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert
        self.output_size: int = bert.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden states of the first tokens."""
        hidden: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden[:, 0]


def pretrained(name: str, *, dropout: float = 0.1) -> tuple[BertEncoder, PreTrainedTokenizerFast]:
    """Load BERT and its tokenizer by name ("bert-base-uncased") or from a local folder in the Hugging Face layout."""
    try:
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise ValueError("a folder without config.json")
        if Path(name).is_absolute() and not Path(name).exists():
            raise ValueError("nothing there")
        if (kind := AutoConfig.from_pretrained(name).model_type) != "bert":
            raise ValueError(f"a model of type {kind}")
        tokenizer = AutoTokenizer.from_pretrained(name)
        dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        bert, loading = BertModel.from_pretrained(
            name, add_pooling_layer=False, use_safetensors=True, output_loading_info=True, **dropouts
        )
        if loading["missing_keys"]:
            raise ValueError(f"a file without {sorted(loading['missing_keys'])[0]}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"expected BERT by name or in a folder with config.json, model.safetensors and its tokenizer, "
            f"got {name}: {reason}"
        ) from error
    return BertEncoder(bert), tokenizer


def new(captions: Iterable[str], *, dropout: float = 0.1) -> tuple[BertEncoder, PreTrainedTokenizerFast]:
    """Build the tiny BERT with new weights, and a tokenizer whose vocabulary is learned from the captions."""
    tokenizer = train_tokenizer(captions)
    return tiny(tokenizer, dropout=dropout), tokenizer


def tiny(tokenizer: PreTrainedTokenizerFast, *, dropout: float = 0.1) -> BertEncoder:
    """Build a BERT of two small layers with new weights, for the vocabulary of the tokenizer."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=LONGEST,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.08,  # about 1 / sqrt(128), as 0.02 is for 768; with 0.02 all sentences start out alike
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertEncoder(BertModel(config, add_pooling_layer=False))


def train_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a WordPiece tokenizer like BERT's, in lower case, whose vocabulary is learned from the captions."""
    # With BERT's prefix "##" the trainer would number tokens in the order of a hash that is random in every process.
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=""))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokens = list(special.values())
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=tokens, continuing_subword_prefix="", show_progress=False
    )
    wordpiece.train_from_iterator(captions, trainer)
    wordpiece.post_processor = processors.BertProcessing(*((end, tokens.index(end)) for end in ("[SEP]", "[CLS]")))
    return PreTrainedTokenizerFast(tokenizer_object=wordpiece, **special)


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> list[list[int]]:
    """Return the token ids of each caption, at most LONGEST, after the normalisation of the paper's published code."""
    plain = [re.sub(r'\s*[,.!?;:"]\s*', " ", caption.lower()) for caption in captions]
    ids: list[list[int]] = tokenizer(plain, truncation=True, max_length=LONGEST)["input_ids"]
    return ids


def save(folder: Path, encoder: BertEncoder, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save what :func:`untrained` reads: the configuration and the tokenizer, not the weights."""
    encoder.bert.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def untrained(folder: Path) -> tuple[BertEncoder, PreTrainedTokenizerFast]:
    """Build an encoder with new weights, and its tokenizer, from a folder that :func:`save` wrote."""
    try:
        config = BertConfig.from_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        return BertEncoder(BertModel(config, add_pooling_layer=False)), tokenizer
    except Exception as error:  # damaged files make both libraries raise errors of all kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"expected BERT's configuration and tokenizer in {folder}, got: {reason}") from error


def settings(encoder: BertEncoder, tokenizer: PreTrainedTokenizerFast) -> list[Any]:
    """Return what the features of a caption depend on besides the weights, as JSON."""
    config = encoder.bert.config
    tokenizer_settings = json.loads(tokenizer.backend_tokenizer.to_str())
    for mutable in ("truncation", "padding"):  # the tokenizer keeps those of its last call
        tokenizer_settings.pop(mutable, None)
    return [[config.hidden_act, config.num_attention_heads, config.layer_norm_eps], tokenizer_settings, LONGEST]
