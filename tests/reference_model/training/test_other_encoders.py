"""Runs with other encoders than the paper's, and with one encoder that learns: frozen is cached, runs continue."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published import panns
from published_audio import FAMILIES
from published_text import FAMILIES as TEXT_FAMILIES
from runs import Interrupted, at_step, interrupt
from safetensors.torch import load_file
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.corpus import Corpus
from reference_model.data.synthetic import synthesize
from reference_model.evaluation.evaluate import evaluate_run
from reference_model.models.bert import train_tokenizer
from reference_model.models.cnn14 import Cnn14
from reference_model.models.dual_encoder import new_model
from reference_model.models.encode import BatchEncoder
from reference_model.models.resnet38 import ResNet38
from reference_model.models.text import TextEncoder
from reference_model.search.retriever import Retriever
from reference_model.training.trainer import train


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of published encoders, small ones with new weights."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    for name, make in FAMILIES.items():
        for part in make():
            part.save_pretrained(folder / name)
    tokenizer = train_tokenizer(["a low tone, then a high hiss", "a rumble while a click sounds"] * 2)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    RobertaModel(RobertaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "roberta")
    tokenizer.save_pretrained(folder / "roberta")
    torch.save(panns(Cnn14(width=1 / 8)), folder / "Cnn14.pth")
    return folder


def with_encoders(config: Config, folder: Path, audio: str, **changes: Any) -> Config:
    """The run with an audio encoder and a RoBERTa."""
    text: dict[str, Any] = {"text_encoder": str(folder / "roberta"), "text_pooling": "mean"}
    if audio == "panns-cnn14":
        return replace(config, audio_encoder=audio, audio_checkpoint=str(folder / "Cnn14.pth"), **text, **changes)
    return replace(config, audio_encoder=str(folder / audio), **text, **changes)


@pytest.mark.parametrize("audio", ["panns-cnn14", "clap", "ast", "wav2vec2"])
def test_a_run_is_trained_evaluated_and_searched(config: Config, encoders: Path, tmp_path: Path, audio: str) -> None:
    """Fine-tuned; everything that is needed afterwards lies in the folder of the run."""
    config = with_encoders(config, encoders, audio, epochs=1)
    metrics = train(config, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "best.safetensors")
    assert any(name.startswith("text_encoder.roberta.") for name in weights)
    assert any(name.startswith("audio_encoder.") for name in weights)
    assert evaluate_run(tmp_path / "run", split="test", data=None) == metrics["test"]
    retriever = Retriever.from_pretrained(tmp_path / "run")
    retriever.save_pretrained(tmp_path / "saved")
    retriever.save_pretrained(tmp_path / "saved")  # which is recognised as a saved model
    clips = sorted((Path(config.data) / "Synthetic" / "waveforms" / "test").iterdir())
    saved = Retriever.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved.embed_audio(clips), retriever.embed_audio(clips))
    stored = load_file(tmp_path / "run" / "test_embeddings.safetensors")["audio"]
    torch.testing.assert_close(saved.embed_audio(clips), stored, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "audio, words",
    [("fused clap", "mpnet"), ("data2vec", "deberta-v2"), ("wav2vec2-bert", "distilbert"), ("whisper", "t5")],
)
def test_encoders_of_each_other_family_learn(
    config: Config, encoders: Path, tmp_path: Path, audio: str, words: str
) -> None:
    """In an epoch of one step, whose weights are measured like those of any run."""
    synthesize(Corpus(train=4, val=2, test=2, seconds=0.5), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(encoders / "roberta")
    tokenizer.save_pretrained(tmp_path / "text")
    torch.manual_seed(0)
    TEXT_FAMILIES[words](len(tokenizer)).save_pretrained(tmp_path / "text")
    published: dict[str, Any] = {"audio_encoder": str(encoders / audio), "text_encoder": str(tmp_path / "text")}
    config = replace(config, data=str(tmp_path), epochs=1, **published)
    begun = new_model(config, []).state_dict()
    train(config, tmp_path / "run")
    learned = load_file(tmp_path / "run" / "best.safetensors")
    for encoder in ("audio_encoder", "text_encoder"):
        names = [name for name in learned if name.startswith(encoder) and learned[name].is_floating_point()]
        assert sum(not torch.equal(learned[name], begun[name]) for name in names) > len(names) / 2


def test_a_new_text_encoder_has_the_pooling_that_is_asked_for(config: Config, tmp_path: Path) -> None:
    config = replace(config, text_pooling="mean", epochs=1)
    metrics = train(config, tmp_path / "run")
    assert evaluate_run(tmp_path / "run", split="test", data=None) == metrics["test"]


@pytest.mark.parametrize("audio", ["panns-cnn14", "clap"])
def test_frozen_encoders_run_once(
    config: Config, encoders: Path, tmp_path: Path, audio: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_encoders(config, encoders, audio, epochs=2, encoders="frozen")
    first = train(config, tmp_path / "first", features=tmp_path / "features")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(BatchEncoder, "_run", refuse)
    again = train(config, tmp_path / "again", features=tmp_path / "features")
    assert {**again, "config": None} == {**first, "config": None}


@pytest.mark.parametrize("trained", ["audio", "text"])
def test_one_encoder_learns_and_the_other_runs_once(
    config: Config, tmp_path: Path, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the frozen one stay, and its features are those of the cache, in training and in evaluation."""
    config = replace(config, trained=trained)
    metrics = train(config, tmp_path / "run", features=tmp_path / "features")
    frozen = "text" if trained == "audio" else "audio"
    assert {path.name.split("-")[0] for path in (tmp_path / "features").iterdir()} == {frozen}
    kept = load_file(tmp_path / "run" / "frozen.safetensors")
    assert {name.split(".")[0] for name in kept} == {f"{frozen}_encoder"}
    assert evaluate_run(tmp_path / "run", split="test", data=None) == metrics["test"]
    encoder = {"text": TextEncoder, "audio": ResNet38}[frozen]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(encoder, "forward", refuse)
    with at_step(7, interrupt), pytest.raises(Interrupted):
        train(config, tmp_path / "again", features=tmp_path / "features", checkpoint_minutes=0)
    again = train(config, tmp_path / "again", features=tmp_path / "features")
    assert {**again, "config": None} == {**metrics, "config": None}


def test_one_encoder_that_learns_beside_features_is_one_beside_the_frozen_encoder(
    config: Config, tmp_path: Path
) -> None:
    """``frozen_mode`` train runs the frozen encoder at every step; without dropout it computes the same features."""
    config = replace(config, trained="audio", dropout=0.0)
    cached = train(config, tmp_path / "cached")
    live = train(replace(config, frozen_mode="train"), tmp_path / "live")
    for one, other in zip(cached["history"], live["history"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_settings_that_do_not_fit_the_encoders_are_refused(config: Config, encoders: Path) -> None:
    for change, words in (
        ({"spec_augment": True}, "expected spec_augment with panns-resnet38 or panns-cnn14 alone, got it with .*clap"),
        ({"audio_checkpoint": "a.pth"}, "expected no audio_checkpoint but that of panns-resnet38 or panns-cnn14, got "),
    ):
        with pytest.raises(InputError, match=words):
            with_encoders(config, encoders, "clap", **change)


def test_a_model_is_read_from_its_folder_alone(config: Config, encoders: Path, tmp_path: Path) -> None:
    """A run whose encoders were deleted, or whose feature extractor is damaged."""
    train(with_encoders(config, encoders, "ast", epochs=1), tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings |= {"audio_encoder": "nobody/nothing", "text_encoder": "nobody/nothing"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    assert Retriever.from_pretrained(tmp_path / "run").embed_text(["a low tone"]).shape == (1, 256)
    (tmp_path / "run" / "audio_encoder" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"expected settings of an audio encoder in .*run/audio_encoder"):
        Retriever.from_pretrained(tmp_path / "run")
    (tmp_path / "run" / "audio_encoder" / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"got no audio_encoder/preprocessor_config\.json"):
        Retriever.from_pretrained(tmp_path / "run")


@pytest.mark.parametrize("change", [{"learn_temperature": True}, {"queue": 20}])
def test_what_a_loss_keeps_between_steps_is_in_the_checkpoint(config: Config, tmp_path: Path, change: Any) -> None:
    config = replace(config, **change)
    whole = train(config, tmp_path / "whole")
    with at_step(7, interrupt), pytest.raises(Interrupted):
        train(config, tmp_path / "parts", checkpoint_minutes=0)
    parts = train(config, tmp_path / "parts")
    assert {**parts, "config": None} == {**whole, "config": None}


def test_a_clip_is_encoded_once_for_its_captions_of_a_batch(config: Config) -> None:
    """With the gradient of all of them; in eval mode, where batch norm does not count rows."""
    torch.manual_seed(0)
    model = new_model(config, ["a low tone"] * 2).eval()
    waveforms, text = 0.1 * torch.randn(2, 16_000), torch.randn(3, model.text_encoder.output_size)
    gradients = []
    for audio, rows in ((waveforms[[0, 1, 0]], None), (waveforms, torch.tensor([0, 1, 0]))):
        model.zero_grad(set_to_none=True)
        x, y = model({"waveforms": audio}, text, rows)
        (x * torch.arange(3.0)[:, None] * y).sum().backward()
        gradients.append([p.grad for p in model.audio_encoder.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
