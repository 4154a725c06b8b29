"""Section 2.2, text encoder: BERT (Devlin et al. 2019); the output for the first token represents the sentence."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast
from typing_extensions import TypedDict

from reference_model import InputError, reason_of
from reference_model.runtime.files import require_file
from reference_model.runtime.records import check_form, read_json
from reference_model.runtime.tensors import load_record

LONGEST = 64  # tokens; longer captions are cut
FILES = ("config.json", "tokenizer.json")  # in the folder of a saved encoder
OTHER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")  # some have them
VOCABULARY = 1000  # tokens of the tiny model
LARGEST = 10**9  # weights of a model; BERT-large has a third of it

_Size = Annotated[int, Field(ge=1, le=2**20)]
_Rate = Annotated[float, Field(ge=0, lt=1)]


class _Architecture(TypedDict, total=False):
    """The settings of BERT that are read; everything else in a config.json is left alone, code above all."""

    vocab_size: _Size
    hidden_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    intermediate_size: _Size
    max_position_embeddings: Annotated[int, Field(ge=LONGEST, le=2**20)]
    type_vocab_size: _Size
    pad_token_id: Annotated[int, Field(ge=0, le=2**20)] | None
    hidden_act: str
    hidden_dropout_prob: _Rate
    attention_probs_dropout_prob: _Rate
    initializer_range: _Rate
    layer_norm_eps: _Rate
    position_embedding_type: Literal["absolute"]


class _Index(TypedDict):
    """The index of weights that are divided among several files."""

    weight_map: dict[str, str]


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
    """Load BERT and its tokenizer by name ("bert-base-uncased") or from a local folder in the Hugging Face layout.

    No code of the folder runs, and nothing in it is unpickled: its settings are those of ``BertConfig`` alone.
    """
    try:
        if Path(name).is_absolute() and not Path(name).exists():
            raise ValueError("nothing there")
        if Path(name).is_dir():
            _check_folder(Path(name))
        config = _read_config(name)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        tokenizer = AutoTokenizer.from_pretrained(name, config=config, trust_remote_code=False)
        _check_tokenizer(tokenizer, config)
        choices = {"add_pooling_layer": False, "use_safetensors": True, "ignore_mismatched_sizes": True}
        bert, loading = BertModel.from_pretrained(name, config=config, output_loading_info=True, **choices)
        if loading["missing_keys"]:
            raise ValueError(f"a file without {sorted(loading['missing_keys'])[0]}")
        if loading["mismatched_keys"]:
            raise ValueError(f"a file with arrays of other sizes: {sorted(map(str, loading['mismatched_keys']))[0]}")
        if bad := next((key for key, weights in bert.named_parameters() if not weights.isfinite().all()), None):
            raise ValueError(f"a file with NaN or inf in {bad}")
    except Exception as error:  # damaged files make both libraries raise errors of all kinds
        raise InputError(
            f"expected BERT by name or in a folder with config.json, model.safetensors and its tokenizer, "
            f"got {name}: {reason_of(error)}"
        ) from error
    return BertEncoder(bert.float()), tokenizer


def _check_folder(folder: Path) -> None:
    """Refuse pipes, damaged files of weights, and an index of weights that leads out of the folder."""
    if not (folder / FILES[0]).exists():
        raise ValueError(f"a folder without {FILES[0]}")
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            require_file(path)
        if path.suffix == ".safetensors":
            load_record(path)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        for part in read_json(index, _Index, "an index of weights")["weight_map"].values():
            if part != Path(part).name or not (folder / part).is_file():
                raise ValueError(f"a part {part!r} in {index}, which is no file beside it")


def _read_config(name: str | Path) -> BertConfig:
    """Read BERT's settings, and nothing else, from a config.json in a folder, or from one that is published."""
    if Path(name).is_dir():
        source = Path(name) / FILES[0]
        stored = read_json(source, dict[str, Any], "the settings of BERT")
    else:
        source, stored = Path(name), BertConfig.get_config_dict(name)[0]
    if stored.get("model_type") != "bert":
        raise ValueError(f"a model of type {stored.get('model_type')}")
    check_form(stored, _Architecture, "the settings of BERT", source)
    config = BertConfig(**{key: stored[key] for key in _Architecture.__annotations__ if key in stored})
    layer = config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    if config.num_hidden_layers * layer + config.vocab_size * config.hidden_size > LARGEST:
        raise ValueError(f"a model of more than {LARGEST:,} weights in {source}")
    return config


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, config: BertConfig) -> None:
    """Refuse a tokenizer that cannot encode a caption, or with tokens that the model has no embedding of."""
    (ids,) = tokenize(tokenizer, ["A dog barks (twice), and a car passes."])
    if not 0 < len(ids) <= LONGEST:
        raise ValueError(f"a tokenizer that encodes a caption in {len(ids)} tokens")
    last = max(tokenizer.get_vocab().values())
    if not last < config.vocab_size:
        raise ValueError(f"a tokenizer with token {last} for a model of {config.vocab_size} tokens")


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
    try:
        ids: list[list[int]] = tokenizer(plain, truncation=True, max_length=LONGEST)["input_ids"]
    except Exception as error:  # a damaged tokenizer makes the library raise errors of all kinds
        raise InputError(f"expected a tokenizer that encodes captions, got: {reason_of(error)}") from error
    return ids


def save(folder: Path, encoder: BertEncoder, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save what :func:`untrained` reads: the configuration and the tokenizer, not the weights."""
    encoder.bert.config.save_pretrained(folder)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # of a full disk too, which is no OSError here
        raise OSError(reason_of(error)) from error


def save_pretrained(folder: Path, bert: BertModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save what :func:`pretrained` reads."""
    bert.save_pretrained(folder)
    save(folder, BertEncoder(bert), tokenizer)


def untrained(folder: Path) -> tuple[BertEncoder, PreTrainedTokenizerFast]:
    """Build an encoder with new weights, and its tokenizer, from a folder that :func:`save` wrote; none of its code."""
    try:
        _check_folder(folder)
        config = _read_config(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
        _check_tokenizer(tokenizer, config)
        return BertEncoder(BertModel(config, add_pooling_layer=False)), tokenizer
    except Exception as error:  # damaged files make both libraries raise errors of all kinds
        got = reason_of(error)
        raise InputError(f"expected BERT's configuration and tokenizer in {folder}, got: {got}") from error


def settings(encoder: BertEncoder, tokenizer: PreTrainedTokenizerFast) -> list[Any]:
    """Return what the features of a caption depend on besides the weights, as JSON."""
    config = encoder.bert.config
    tokenizer_settings = json.loads(tokenizer.backend_tokenizer.to_str())
    for mutable in ("truncation", "padding"):  # the tokenizer keeps those of its last call
        tokenizer_settings.pop(mutable, None)
    return [[config.hidden_act, config.num_attention_heads, config.layer_norm_eps], tokenizer_settings, LONGEST]
