"""BERT: new, from a folder, saved; its tokenizer."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from reference_model import InputError
from reference_model.data.batches import pad_tokens
from reference_model.models import bert as text_encoder

CAPTIONS = ["A dog barks, then rain falls", "Rain falls while a dog barks loudly", "Birds sing"] * 3


def test_a_trained_tokenizer_reads_like_bert() -> None:
    tokenizer = text_encoder.train_tokenizer(CAPTIONS)
    ids = text_encoder.tokenize(tokenizer, ["A dog barks", "a DOG   barks!", "a dog, barks", "a zebra q"])
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["[CLS]", "a", "dog", "barks", "[SEP]"]
    assert ids[1] == ids[2] == ids[0]  # case and punctuation do not count
    assert tokenizer.unk_token_id in ids[3]
    assert tokenizer.pad_token_id == 0  # what pad_tokens fills with
    assert text_encoder.LONGEST == 64
    assert len(text_encoder.tokenize(tokenizer, ["dog " * 500])[0]) == 64


@pytest.mark.parametrize("mark", [",", ".", "!", "?", ";", ":", '"'])
@pytest.mark.parametrize("between", ["{}", " {}", "{} ", " {} ", "{} {}", "{}{}"])
def test_punctuation_becomes_a_space(mark: str, between: str) -> None:
    tokenizer = text_encoder.train_tokenizer(CAPTIONS)
    caption = f"A dog{between.replace('{}', mark)}BARKS{mark}"
    plain, marked = text_encoder.tokenize(tokenizer, ["a dog barks", caption])
    assert marked == plain


def test_other_punctuation_stays() -> None:
    tokenizer = text_encoder.train_tokenizer([*CAPTIONS, "a dog's bark - (twice)"])
    (ids,) = text_encoder.tokenize(tokenizer, ["a dog's bark - (twice)"])
    tokens = ["[CLS]", "a", "dog", "'", "s", "bark", "-", "(", "twice", ")", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens


def test_the_first_token_stands_for_the_sentence_and_padding_for_nothing() -> None:
    tokenizer = text_encoder.train_tokenizer(CAPTIONS)
    torch.manual_seed(0)
    encoder = text_encoder.tiny(tokenizer).eval()
    ids = text_encoder.tokenize(tokenizer, CAPTIONS[:2])
    together = encoder(**pad_tokens(ids))
    assert together.shape == (2, encoder.output_size)
    alone = encoder(**pad_tokens(ids[:1]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
    hidden = encoder.bert(**pad_tokens(ids[:1])).last_hidden_state
    assert torch.equal(alone, hidden[:, 0])


def save_bert(folder: Path) -> BertModel:
    """A BERT folder in the layout of the published ones, with its tokenizer."""
    tokenizer = text_encoder.train_tokenizer(CAPTIONS)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    bert = BertModel(config)  # with the pooling layer, as published
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return bert


def test_from_a_folder(tmp_path: Path) -> None:
    bert = save_bert(tmp_path).eval()
    encoder, tokenizer = text_encoder.pretrained(str(tmp_path))
    tokens = pad_tokens(text_encoder.tokenize(tokenizer, CAPTIONS[:3]))
    expected = bert(**tokens).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.eval()(**tokens), expected)


def test_an_encoder_is_saved_without_weights_and_built_again(tmp_path: Path) -> None:
    tokenizer = text_encoder.train_tokenizer(CAPTIONS)
    encoder = text_encoder.tiny(tokenizer)
    text_encoder.save(tmp_path, encoder, tokenizer)
    again, same_tokenizer = text_encoder.untrained(tmp_path)
    again.load_state_dict(encoder.state_dict())
    assert text_encoder.tokenize(same_tokenizer, CAPTIONS) == text_encoder.tokenize(tokenizer, CAPTIONS)


def test_a_folder_that_is_no_bert_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"expected BERT by name or in a folder with config\.json"):
            text_encoder.pretrained(str(folder))
    roberta = RobertaConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    RobertaModel(roberta).save_pretrained(tmp_path / "roberta")
    with pytest.raises(InputError, match="a model of type roberta"):
        text_encoder.pretrained(str(tmp_path / "roberta"))
    save_bert(tmp_path / "bert")
    weights = tmp_path / "bert" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("embeddings.word_embeddings.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"a file without embeddings\.word_embeddings\.weight"):
        text_encoder.pretrained(str(tmp_path / "bert"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="expected BERT by name or in a folder"):
        text_encoder.pretrained(str(tmp_path / "bert"))
