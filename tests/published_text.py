"""Small text models of published families, with new weights; some have layers for other tasks, as files have."""

from collections.abc import Callable
from typing import Any

from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5EncoderModel,
    T5Model,
    XLNetConfig,
    XLNetModel,
)

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
# By name: make a model with so many words.
FAMILIES: dict[str, Callable[[int], Any]] = {
    "bert": lambda words: BertModel(BertConfig(vocab_size=words, **SIZES)),
    "roberta": lambda words: RobertaForMaskedLM(RobertaConfig(vocab_size=words, max_position_embeddings=80, **SIZES)),
    "mpnet": lambda words: MPNetModel(MPNetConfig(vocab_size=words, max_position_embeddings=80, **SIZES)),
    "deberta-v2": lambda words: DebertaV2Model(
        DebertaV2Config(
            vocab_size=words, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0, **SIZES
        )
    ),
    "distilbert": lambda words: DistilBertModel(
        DistilBertConfig(vocab_size=words, dim=16, n_layers=2, n_heads=2, hidden_dim=16)
    ),
    "t5": lambda words: T5Model(T5Config(vocab_size=words, **T5)),
    "the encoder of t5": lambda words: T5EncoderModel(T5Config(vocab_size=words, **T5)),
    "xlnet": lambda words: XLNetModel(XLNetConfig(vocab_size=words, d_model=16, n_layer=1, n_head=2, d_inner=16)),
    "gpt2": lambda words: GPT2Model(GPT2Config(vocab_size=words, n_embd=16, n_layer=1, n_head=2, n_positions=64)),
}
