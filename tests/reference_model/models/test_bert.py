"""BERT: new, from a folder, saved; its tokenizer."""

import json
import re
from contextlib import suppress
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


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "both"])
@pytest.mark.parametrize("model_type", ["bert", "mybert"])
def test_no_code_of_a_folder_runs_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, model_type: str
) -> None:
    save_bert(tmp_path, CAPTIONS)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\n" + EVIL)
    for name in ("config.json", "tokenizer_config.json"):
        if file in (name, "both"):
            settings = json.loads((tmp_path / name).read_text())
            settings["auto_map"] = {
                "AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokens", "evil.Tokens"],
            }  # fmt: skip
            settings |= {"model_type": model_type} if name == "config.json" else {"tokenizer_class": "Tokens"}
            (tmp_path / name).write_text(json.dumps(settings))

    questions: list[object] = []

    def answer(*question: object) -> str:
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    with suppress(InputError):
        text_encoder.pretrained(str(tmp_path))
    with suppress(InputError):
        text_encoder.untrained(tmp_path)
    assert not questions
    assert not (tmp_path / "RAN").exists()


EVIL = """
from transformers import BertConfig, BertModel, BertTokenizer
class Config(BertConfig): pass
class Model(BertModel): pass
class Tokens(BertTokenizer): pass
"""


@pytest.mark.parametrize("name, value", [("attn_implementation", "somebody/kernels"), ("_attn_implementation", "a/b"),
                                         ("quantization_config", {"quant_method": "gptq"}), ("dtype", "float16"),
                                         ("is_decoder", True), ("hidden_dropout_prob", 0.5)])  # fmt: skip
def test_only_the_architecture_is_read_from_a_config(tmp_path: Path, name: str, value: object) -> None:
    bert = save_bert(tmp_path, CAPTIONS).eval()
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, name: value}))
    encoder, tokenizer = text_encoder.pretrained(str(tmp_path))
    tokens = pad_tokens(text_encoder.tokenize(tokenizer, CAPTIONS[:3]))
    torch.testing.assert_close(encoder.eval()(**tokens), bert(**tokens).last_hidden_state[:, 0])


@pytest.mark.parametrize("name, value, words", [
    ("vocab_size", 10**9, "got 1000000000 as vocab_size"), ("num_hidden_layers", 0, "got 0 as num_hidden_layers"),
    ("num_hidden_layers", 10**6, "more than 1,000,000,000 weights"), ("hidden_size", "x", "got 'x' as hidden_size"),
    ("layer_norm_eps", float("inf"), "got inf as layer_norm_eps"), ("num_attention_heads", 3, "heads"),
    ("max_position_embeddings", 8, "got 8 as max_position_embeddings"), ("hidden_act", "loud", "loud"),
    ("vocab_size", 20, "a tokenizer with token"),
])  # fmt: skip
def test_impossible_settings_are_refused(tmp_path: Path, name: str, value: object, words: str) -> None:
    save_bert(tmp_path, CAPTIONS)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, name: value}))
    with pytest.raises(InputError, match=rf"expected BERT by name.* {re.escape(str(tmp_path))}.*{words}"):
        text_encoder.pretrained(str(tmp_path))
    with pytest.raises(InputError, match=rf"expected BERT's configuration.* {re.escape(str(tmp_path))}.*{words}"):
        text_encoder.untrained(tmp_path)


@pytest.mark.parametrize("part", ["../../etc/passwd", "/etc/passwd", "nowhere.safetensors", ""])
def test_an_index_of_weights_stays_in_its_folder(tmp_path: Path, part: str) -> None:
    save_bert(tmp_path, CAPTIONS)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"x": part}}))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json, which is no file beside it"):
        text_encoder.pretrained(str(tmp_path))
