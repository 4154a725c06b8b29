"""Text encoders: a new BERT, those of published families from a folder, saved ones; their tokenizers."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from published import save_bert
from published_text import FAMILIES, SIZES, T5
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import nn
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    FunnelConfig,
    FunnelModel,
    RobertaConfig,
    RobertaForMaskedLM,
    SwitchTransformersConfig,
    SwitchTransformersModel,
    T5Config,
    T5Model,
)
from transformers import PreTrainedTokenizerFast as Tokenizer

from reference_model import InputError
from reference_model.data.batches import pad_tokens
from reference_model.models import bert, hugging_face, text

CAPTIONS = ["A dog barks, then rain falls", "Rain falls while a dog barks loudly", "Birds sing"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bert.train_tokenizer(CAPTIONS)


def test_a_trained_tokenizer_reads_like_bert(tokenizer: Tokenizer) -> None:
    ids = text.tokenize(tokenizer, ["A dog barks", "a DOG   barks!", "a dog, barks", "a zebra q"])
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["[CLS]", "a", "dog", "barks", "[SEP]"]
    assert ids[1] == ids[2] == ids[0]  # case and punctuation do not count
    assert tokenizer.unk_token_id in ids[3]
    assert tokenizer.pad_token_id == 0  # what pad_tokens fills with
    assert hugging_face.LONGEST == 64
    assert len(text.tokenize(tokenizer, ["dog " * 500])[0]) == 64


@pytest.mark.parametrize("mark", [",", ".", "!", "?", ";", ":", '"'])
@pytest.mark.parametrize("between", ["{}", " {}", "{} ", " {} ", "{} {}", "{}{}"])
def test_punctuation_becomes_a_space(tokenizer: Tokenizer, mark: str, between: str) -> None:
    caption = f"A dog{between.replace('{}', mark)}BARKS{mark}"
    plain, marked = text.tokenize(tokenizer, ["a dog barks", caption])
    assert marked == plain


def test_a_caption_without_words_is_refused_by_a_tokenizer_that_adds_no_tokens() -> None:
    """Its features would be those of nothing: the mean of no tokens."""
    tokenizer = bert.train_tokenizer(CAPTIONS)
    assert len(text.tokenize(tokenizer, ["...!"])[0]) == 2
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(InputError, match=r"expected captions with words, got '\.\.\.!'"):
        text.tokenize(tokenizer, ["a dog barks", "...!"])


def test_other_punctuation_stays() -> None:
    tokenizer = bert.train_tokenizer([*CAPTIONS, "a dog's bark - (twice)"])
    (ids,) = text.tokenize(tokenizer, ["a dog's bark - (twice)"])
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)) == "[CLS] a dog ' s bark - ( twice ) [SEP]"


def test_the_first_token_stands_for_the_sentence_and_padding_for_nothing(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    encoder = bert.tiny(tokenizer).eval()
    ids = text.tokenize(tokenizer, CAPTIONS[:2])
    together = encoder(**pad_tokens(ids))
    assert together.shape == (2, encoder.output_size)
    alone = encoder(**pad_tokens(ids[:1]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(alone, encoder.model(**pad_tokens(ids[:1])).last_hidden_state[:, 0])


def test_a_folder_that_is_no_bert_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"expected a text encoder by name or in a folder with config\.json"):
            text.published(str(folder))
    save_bert(tmp_path / "bert", CAPTIONS)
    weights = tmp_path / "bert" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("embeddings.word_embeddings.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"a file without embeddings\.word_embeddings\.weight"):
        text.published(str(tmp_path / "bert"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="expected a text encoder by name or in a folder"):
        text.published(str(tmp_path / "bert"))


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
        text.published(str(tmp_path))
    with suppress(InputError):
        text.saved(tmp_path, pooling="first")
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
    original = save_bert(tmp_path, CAPTIONS).eval()
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, name: value}))
    encoder = text.published(str(tmp_path))
    tokens = pad_tokens(encoder.tokenize(CAPTIONS[:3]))
    torch.testing.assert_close(encoder.eval()(**tokens), original(**tokens).last_hidden_state[:, 0])


@pytest.mark.parametrize("name, value, words", [
    ("vocab_size", 10**9, "got 1000000000 as vocab_size"), ("num_hidden_layers", 0, "got 0 as num_hidden_layers"),
    ("num_hidden_layers", 10**6, "got 1000000 as num_hidden_layers"),
    ("hidden_size", 2**17, "more than 1,000,000,000 weights"), ("eos_token_id", 10**9, "1000000000 as eos_token"),
    ("model_type", "mybert", "a model of type mybert"), ("hidden_size", "x", "got 'x' as hidden_size"),
    ("layer_norm_eps", float("inf"), "got inf as layer_norm_eps"), ("num_attention_heads", 3, "heads"),
    ("max_position_embeddings", 8, "got 8 as max_position_embeddings"), ("hidden_act", "loud", "loud"),
    ("vocab_size", 20, "a tokenizer with token"),
])  # fmt: skip
def test_impossible_settings_are_refused(tmp_path: Path, name: str, value: object, words: str) -> None:
    save_bert(tmp_path, CAPTIONS)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, name: value}))
    with pytest.raises(InputError, match=rf"expected a text encoder by name.* {re.escape(str(tmp_path))}.*{words}"):
        text.published(str(tmp_path))
    with pytest.raises(
        InputError, match=rf"expected settings and tokenizer of a text encoder.* {re.escape(str(tmp_path))}.*{words}"
    ):
        text.saved(tmp_path, pooling="first")


@pytest.mark.parametrize("part", ["../../etc/passwd", "/etc/passwd", "nowhere.safetensors", ""])
def test_an_index_of_weights_stays_in_its_folder(tmp_path: Path, part: str) -> None:
    save_bert(tmp_path, CAPTIONS)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"x": part}}))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json, which is no file beside it"):
        text.published(str(tmp_path))


@pytest.fixture(params=FAMILIES)
def published(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Tokenizer) -> tuple[Path, Any]:
    """A folder of a family as it is published, and its model."""
    torch.manual_seed(0)
    model = FAMILIES[request.param](len(tokenizer)).eval()
    folder = tmp_path / "published"
    save_model(folder, model, tokenizer)
    return folder, model


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_features_are_those_of_transformers(published: tuple[Path, Any], pooling: Any, tmp_path: Path) -> None:
    """One caption at a time, so that nothing is padded there; a saved encoder has the same ones."""
    folder, model = published
    encoder = text.published(str(folder), pooling=pooling, dropout=0.3)
    assert {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)} == {0.3}
    tokens = pad_tokens(encoder.tokenize(CAPTIONS[:3]))
    assert len(set(tokens["attention_mask"].sum(1).tolist())) > 1
    encoder.save(tmp_path)
    saved = text.saved(tmp_path, pooling=pooling)
    saved.load_state_dict(encoder.state_dict())
    transformer = model.get_encoder() if model.config.model_type == "t5" else model.base_model
    with torch.no_grad():
        features = encoder.eval()(**tokens)
        assert torch.equal(features, saved.eval()(**tokens))
        assert features.shape == (3, encoder.output_size)
        for row, caption in zip(features, CAPTIONS, strict=False):
            plain = caption.lower().replace(",", "")
            words = AutoTokenizer.from_pretrained(folder)(plain, return_tensors="pt")
            words.pop("token_type_ids", None)
            outputs = transformer(**words).last_hidden_state[0]
            torch.testing.assert_close(row, outputs[0] if pooling == "first" else outputs.mean(0), rtol=1e-4, atol=1e-5)


def test_every_parameter_that_trains_has_a_gradient(published: tuple[Path, Any]) -> None:
    """As training on several processes requires; the others, of other tasks, are 0, though files may lack them."""
    folder, _ = published
    encoder = text.published(str(folder))
    assert all(parameter.requires_grad for parameter in encoder.parameters()) == ("xlnet" not in encoder.family)
    encoder(**pad_tokens(encoder.tokenize(CAPTIONS[:3]))).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad or not parameter.any(), name


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_models_that_cannot_encode_every_caption_alike_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """They would fail at the first long caption, or only after training, or give features that depend on the batch."""
    torch.manual_seed(0)  # with few weights, padding may change little
    words = len(tokenizer)
    few_positions = RobertaForMaskedLM(RobertaConfig(vocab_size=words, max_position_embeddings=64, **SIZES))
    experts = {"num_sparse_encoder_layers": 1, "num_decoder_layers": 1, "num_experts": 4}
    refused: dict[str, tuple[Any, Any]] = {
        "index 64 is out of bounds": (few_positions, tokenizer),
        "a ByT5Tokenizer, which has no tokenizer.json": (T5Model(T5Config(vocab_size=384, **T5)), ByT5Tokenizer()),
        "a model in which padding changes the features": (
            FunnelModel(FunnelConfig(vocab_size=words, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=16)),
            tokenizer,
        ),
        "a mixture of experts": (
            SwitchTransformersModel(SwitchTransformersConfig(vocab_size=words, **T5, **experts)),
            tokenizer,
        ),
    }
    for number, (reason, parts) in enumerate(refused.items()):
        save_model(folder := tmp_path / str(number), *parts)
        with pytest.raises(InputError, match=rf"expected a text encoder by name .* got {folder}: .*{reason}"):
            text.published(str(folder))


def test_a_tokenizer_of_sentencepiece_alone_is_refused_with_a_remedy(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_model(tmp_path, FAMILIES["deberta-v2"](len(tokenizer)), tokenizer)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "DebertaV2Tokenizer"}')
    (tmp_path / "tokenizer.json").rename(tmp_path / "spm.model")
    with pytest.raises(InputError, match=r"got .*: no tokenizer\.json, .* where sentencepiece .* save_pretrained"):
        text.published(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")  # there, and damaged
    with pytest.raises(InputError, match=r"expected a text encoder by name .*, got (?!.*sentencepiece)"):
        text.published(str(tmp_path))


def test_the_files_of_a_saved_encoder_are_known(tmp_path: Path) -> None:
    """A folder with others would be no saved model."""
    save_bert(tmp_path / "published", CAPTIONS)
    chats = AutoTokenizer.from_pretrained(tmp_path / "published")
    chats.chat_template = "{{ messages }}"
    chats.save_pretrained(tmp_path / "published")
    text.published(str(tmp_path / "published")).save(tmp_path / "saved")
    found = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {*text.FILES} <= found <= {*text.FILES, *text.OTHER_FILES}


def test_the_settings_of_an_encoder_name_its_pooling_and_not_its_dropout(tmp_path: Path) -> None:
    save_bert(tmp_path, CAPTIONS)
    first, second = (text.published(str(tmp_path), dropout=dropout) for dropout in (0.1, 0.2))
    assert json.loads(json.dumps(first.settings)) == first.settings == second.settings
    assert text.published(str(tmp_path), pooling="mean").settings != first.settings
    before = first.tokenizer_settings
    first.tokenize(CAPTIONS)
    assert first.tokenizer_settings == before
