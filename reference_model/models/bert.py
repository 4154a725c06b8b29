"""A small BERT (Devlin et al. 2019) with new weights, for the tiny model, and a tokenizer learned from captions."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from reference_model.config import Pooling
from reference_model.models.hugging_face import LONGEST
from reference_model.models.text import TextEncoder

VOCABULARY = 1000  # tokens


def new(captions: Iterable[str], *, pooling: Pooling = "first", dropout: float = 0.1) -> TextEncoder:
    """Build the tiny BERT with new weights, and a tokenizer whose vocabulary is learned from the captions."""
    return tiny(train_tokenizer(captions), pooling=pooling, dropout=dropout)


def tiny(tokenizer: PreTrainedTokenizerFast, *, pooling: Pooling = "first", dropout: float = 0.1) -> TextEncoder:
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
    return TextEncoder(BertModel(config, add_pooling_layer=False), config, tokenizer, pooling)


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


def save_pretrained(folder: Path, bert: BertModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save a BERT as published ones are: settings, weights and tokenizer."""
    bert.save_pretrained(folder)
    TextEncoder(bert, bert.config, tokenizer, "first").save(folder)
