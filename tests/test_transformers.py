"""``GradientCache`` takes what tokenizers of transformers return, and the outputs of its models."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import BatchEncoding, BatchFeature, BertConfig, BertModel, PreTrainedTokenizerFast

from crossmodal_losses import GradientCache, NTXent

CAPTIONS = ["a dog barks", "rain", "a door closes twice", "a dog", "rain rain"]
WORDS = ["[UNK]", "[PAD]", "a", "dog", "barks", "rain", "door", "closes", "twice"]


def encoded() -> BatchEncoding:
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    return tokenizer(CAPTIONS, padding=True, return_tensors="pt")


@pytest.fixture
def bert() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).eval()


def audio() -> Tensor:
    return torch.randn(len(CAPTIONS), 8, generator=torch.Generator().manual_seed(0))


def test_a_batch_encoding_and_a_model_output(bert: Any) -> None:
    """Value and gradients are those of the whole batch."""
    expected = NTXent()(bert(**encoded()).pooler_output, audio())
    expected_gradients = torch.autograd.grad(expected, list(bert.parameters()))

    def encode(batch: Any) -> Any:
        assert type(batch) is BatchEncoding
        return bert(input_ids=batch.input_ids, attention_mask=batch["attention_mask"])

    for function in (encode, lambda batch: bert(**batch)):
        cache = GradientCache(NTXent(), micro_batch_size=2, embedding=("pooler_output", None))
        value = cache(function, nn.Identity(), encoded(), audio())
        torch.testing.assert_close(value, expected)
        gradients = torch.autograd.grad(value, list(bert.parameters()))
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


def test_a_micro_batch_does_not_have_the_tokens_of_other_items(bert: Any) -> None:
    inputs = encoded()

    def encode(batch: Any) -> Any:
        assert batch.encodings is None
        with pytest.raises(ValueError, match="not available"):
            batch.tokens(0)
        return bert(**batch)

    cache = GradientCache(NTXent(), micro_batch_size=2, embedding=("pooler_output", None))
    cache(encode, nn.Identity(), inputs, audio()).backward()
    assert inputs.tokens(1)[0] == "rain"
    assert len(inputs.input_ids) == len(CAPTIONS)


def test_a_batch_feature_and_the_output_of_a_model_as_input(bert: Any) -> None:
    expected = NTXent()(audio(), audio().sin())
    cache = GradientCache(NTXent(), micro_batch_size=2)

    def encode(batch: Any) -> Tensor:
        assert type(batch) is BatchFeature
        assert batch.sampling_rate == 32000
        values: Tensor = batch.input_values
        return values

    features = BatchFeature({"input_values": audio(), "sampling_rate": 32000})
    torch.testing.assert_close(cache(encode, torch.sin, features, audio()), expected)
    output = bert(**encoded())
    value = cache(lambda o: o.pooler_output, lambda o: o["last_hidden_state"].sum(1), output, output)
    torch.testing.assert_close(value, NTXent()(output.pooler_output, output.last_hidden_state.sum(1)))


def test_an_error_names_the_fields_there_are(bert: Any) -> None:
    def compute(embedding: str | None) -> Tensor:
        cache = GradientCache(NTXent(), micro_batch_size=2, embedding=(embedding, None))
        value: Tensor = cache(lambda batch: bert(**batch), nn.Identity(), encoded(), audio())
        return value

    fields = "BaseModelOutputWithPooling.* with the fields 'last_hidden_state', 'pooler_output'"
    with pytest.raises(TypeError, match=f"expected encode_x .* got {fields}, of which embedding= names one"):
        compute(None)
    with pytest.raises(ValueError, match=f"expected encode_x .* the field 'text_embeds', got {fields}"):
        compute("text_embeds")


def test_a_tokenizer_without_tensors_is_refused(bert: Any) -> None:
    inputs = encoded()
    inputs["input_ids"] = inputs["input_ids"].tolist()
    with pytest.raises(ValueError, match=r"what each of 5 items has in a tensor \[5, ...\], got a list of 5 values"):
        GradientCache(NTXent(), micro_batch_size=2)(lambda batch: bert(**batch), nn.Identity(), inputs, audio())
