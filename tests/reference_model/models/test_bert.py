"""BERT: new, from a folder, saved; its tokenizer."""

from pathlib import Path

import pytest
import torch
from published import save_bert
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast as Tokenizer
from transformers import RobertaConfig, RobertaModel

from reference_model import InputError
from reference_model.data.batches import pad_tokens
from reference_model.models import bert as text_encoder

CAPTIONS = ["A dog barks, then rain falls", "Rain falls while a dog barks loudly", "Birds sing"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return text_encoder.train_tokenizer(CAPTIONS)


def test_a_trained_tokenizer_reads_like_bert(tokenizer: Tokenizer) -> None:
    ids = text_encoder.tokenize(tokenizer, ["A dog barks", "a DOG   barks!", "a dog, barks", "a zebra q"])
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["[CLS]", "a", "dog", "barks", "[SEP]"]
    assert ids[1] == ids[2] == ids[0]  # case and punctuation do not count
    assert tokenizer.unk_token_id in ids[3]
    assert tokenizer.pad_token_id == 0  # what pad_tokens fills with
    assert text_encoder.LONGEST == 64
    assert len(text_encoder.tokenize(tokenizer, ["dog " * 500])[0]) == 64


@pytest.mark.parametrize("mark", [",", ".", "!", "?", ";", ":", '"'])
@pytest.mark.parametrize("between", ["{}", " {}", "{} ", " {} ", "{} {}", "{}{}"])
def test_punctuation_becomes_a_space(tokenizer: Tokenizer, mark: str, between: str) -> None:
    caption = f"A dog{between.replace('{}', mark)}BARKS{mark}"
    plain, marked = text_encoder.tokenize(tokenizer, ["a dog barks", caption])
    assert marked == plain


def test_other_punctuation_stays() -> None:
    tokenizer = text_encoder.train_tokenizer([*CAPTIONS, "a dog's bark - (twice)"])
    (ids,) = text_encoder.tokenize(tokenizer, ["a dog's bark - (twice)"])
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)) == "[CLS] a dog ' s bark - ( twice ) [SEP]"


def test_the_first_token_stands_for_the_sentence_and_padding_for_nothing(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    encoder = text_encoder.tiny(tokenizer).eval()
    ids = text_encoder.tokenize(tokenizer, CAPTIONS[:2])
    together = encoder(**pad_tokens(ids))
    assert together.shape == (2, encoder.output_size)
    alone = encoder(**pad_tokens(ids[:1]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(alone, encoder.bert(**pad_tokens(ids[:1])).last_hidden_state[:, 0])


def test_a_folder_that_is_no_bert_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"expected BERT by name or in a folder with config\.json"):
            text_encoder.pretrained(str(folder))
    roberta = RobertaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    RobertaModel(roberta).save_pretrained(tmp_path / "roberta")
    with pytest.raises(InputError, match="a model of type roberta"):
        text_encoder.pretrained(str(tmp_path / "roberta"))
    save_bert(tmp_path / "bert", CAPTIONS)
    weights = tmp_path / "bert" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("embeddings.word_embeddings.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"a file without embeddings\.word_embeddings\.weight"):
        text_encoder.pretrained(str(tmp_path / "bert"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="expected BERT by name or in a folder"):
        text_encoder.pretrained(str(tmp_path / "bert"))
