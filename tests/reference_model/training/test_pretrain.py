"""Small encoders, pre-trained on a miniature corpus: what they learn from, and leave, and that training uses it."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from runs import CommandLine
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.audio import load_waveform
from reference_model.data.dataset import Clip, captions_of, read_split
from reference_model.data.layouts import DATA_SETS, DataSet
from reference_model.models import bert, text
from reference_model.models.encoders import TINY_WIDTH
from reference_model.models.panns import from_panns
from reference_model.models.resnet38 import ResNet38
from reference_model.runtime.signals import Stopped
from reference_model.training import pretrain, trainer

Losses = dict[str, list[float]]
AUDIO, TEXT = "ResNet38_tiny.pth", "bert"
TAGGING, FILLING_IN = "tagging", "filling in words"


@pytest.fixture(autouse=True, scope="module")
def short() -> Iterator[None]:
    """The corpus has clips of half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA_SETS, "Synthetic", DataSet(clip_seconds=0.5))
        yield


def make(corpus: Path, out: Path, *, epochs: int = 1, seed: int = 0) -> Path:
    pretrain.pretrain(corpus, "Synthetic", out, audio_epochs=epochs, text_epochs=epochs, seed=seed)
    return out


@pytest.fixture(scope="module")
def learned(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Losses]:
    """Both encoders after fifteen epochs, and the loss of every step."""
    losses: Losses = {}
    original = pretrain.fit

    def fit(model: Any, loader: Any, epochs: int, task: str, loss_of: Callable[[Any], Tensor]) -> None:
        def noted(batch: Any) -> Tensor:
            loss = loss_of(batch)
            losses.setdefault(task, []).append(loss.item())
            return loss

        original(model, loader, epochs, task, noted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "fit", fit)
        return make(corpus, tmp_path_factory.mktemp("encoders"), epochs=15), losses


def weights_of(out: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    audio: dict[str, Tensor] = torch.load(out / AUDIO, weights_only=True)["model"]
    return audio, load_file(out / TEXT / "model.safetensors")


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_both_losses_fall(learned: tuple[Path, Losses]) -> None:
    """Of 16 clips and 80 captions: a batch of 16, and two of 32 captions, an epoch."""
    _, losses = learned
    assert {what: len(of_steps) for what, of_steps in losses.items()} == {TAGGING: 15, FILLING_IN: 30}
    # At first a coin for every tag, 0.69; and a guess among the words and one of two labels.
    assert losses[TAGGING][0] == pytest.approx(0.69, abs=0.1)
    assert sum(losses[TAGGING][-3:]) / 3 < 0.6 * losses[TAGGING][0]
    assert sum(losses[FILLING_IN][-6:]) / 6 < 0.85 * losses[FILLING_IN][0]


def test_the_audio_file_has_the_layout_of_the_published_one(corpus: Path, learned: tuple[Path, Losses]) -> None:
    out, _ = learned
    checkpoint = torch.load(out / AUDIO, weights_only=True)
    assert list(checkpoint) == ["iteration", "model", "sampler"]
    weights, encoder = checkpoint["model"], ResNet38(width=TINY_WIDTH)
    classifier = {"fc1.weight", "fc1.bias", "fc_audioset.weight", "fc_audioset.bias"}
    assert weights.keys() == encoder.state_dict().keys() | classifier
    tags = {tag for of_clip in pretrain.read_tags(corpus, "Synthetic", "train").values() for tag in of_clip}
    assert weights["fc_audioset.weight"].shape == (len(tags), 256)
    loaded = from_panns(ResNet38(width=TINY_WIDTH), out / AUDIO)
    assert same(loaded.state_dict(), {name: weights[name] for name in weights.keys() - classifier})
    torch.manual_seed(0)
    assert not torch.equal(loaded.state_dict()["bn0.running_mean"], encoder.state_dict()["bn0.running_mean"])


def test_the_folder_of_bert_is_read_as_the_published_one(corpus: Path, learned: tuple[Path, Losses]) -> None:
    out, _ = learned
    assert {path.name for path in (out / TEXT).iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == {AUDIO, TEXT, "pretraining.json"}
    encoder = text.published(str(out / TEXT))
    tokenizer = encoder.tokenizer
    _, stored = weights_of(out)
    assert all(torch.equal(value, stored[name]) for name, value in encoder.model.state_dict().items())
    captions = captions_of(read_split(corpus, "Synthetic", "train"))
    expected = bert.train_tokenizer(captions)
    assert text.tokenize(tokenizer, captions) == text.tokenize(expected, captions)
    assert tokenizer.mask_token_id == expected.mask_token_id
    assert encoder.output_size == 128


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Its calls say what is learned, in its order; its arguments are model, loader, epochs, task and loss."""
    monkeypatch.setattr(pretrain, "fit", fit := Mock(side_effect=pretrain.fit))
    return fit


def test_what_is_done_is_not_repeated_what_was_interrupted_is_and_the_seed_decides(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: Mock
) -> None:
    out = tmp_path / "out"
    for step, there in ((1, {"pretraining.json"}), (3, {"pretraining.json", AUDIO})):  # then in the second of text
        with monkeypatch.context() as patch:
            patch.setattr(pretrain, "raise_if_stop_requested", Mock(side_effect=[*[None] * (step - 1), Stopped]))
            with pytest.raises(Stopped):
                make(corpus, out)
        assert {path.name for path in out.iterdir()} == there
    before = (out / AUDIO).stat().st_mtime_ns
    make(corpus, out)
    assert (out / AUDIO).stat().st_mtime_ns == before
    make(corpus, out)
    assert [call.args[3] for call in fit.mock_calls] == [TAGGING, TAGGING, FILLING_IN, FILLING_IN]
    whole, other = make(corpus, tmp_path / "whole"), make(corpus, tmp_path / "other", seed=1)
    for ours, theirs, others in zip(*map(weights_of, (out, whole, other)), strict=True):
        assert same(ours, theirs)
        assert not same(ours, others)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (out / TEXT / name).read_bytes() == (whole / TEXT / name).read_bytes()


@pytest.mark.parametrize(
    "written_by, half", [((torch, "save"), AUDIO), ((PreTrainedTokenizerFast, "save_pretrained"), TEXT)]
)
def test_an_encoder_is_there_whole_or_not_at_all(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_by: tuple[Any, str], half: str
) -> None:
    """Of BERT's folder the tokenizer is written last."""
    with monkeypatch.context() as patch:
        patch.setattr(*written_by, Mock(side_effect=OSError("no space left on device")))
        with pytest.raises(OSError, match="no space left"):
            make(corpus, tmp_path)
    assert half not in {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob(".*"))
    make(corpus, tmp_path)
    text.published(str(tmp_path / TEXT))
    from_panns(ResNet38(width=TINY_WIDTH), tmp_path / AUDIO)


def test_encoders_of_other_settings_are_refused(corpus: Path, learned: tuple[Path, Losses]) -> None:
    for epochs, seed in ((1, 0), (15, 1)):
        with pytest.raises(InputError, match=r"expected .* of these settings, got encoders of others; see .*\.json"):
            make(corpus, learned[0], epochs=epochs, seed=seed)


def test_one_encoder_alone_of_any_data_set_with_tags(
    corpus: Path, tmp_path: Path, fit: Mock, command_line: CommandLine
) -> None:
    fit.side_effect = None
    shutil.copytree(corpus / "Synthetic", tmp_path / "Mine")
    arguments = ["pretrain", "--data", tmp_path, "--dataset", "Mine"]
    refused = command_line(*arguments, "--out", tmp_path / "audio", status=1)
    assert refused.output.startswith("Error: expected --clip-seconds for a data set other than")
    refused = command_line(*arguments, "--out", tmp_path / "audio", "--clip-seconds", 0.2, status=1)
    assert refused.output == "Error: expected clips of 0.31 to 300 seconds, got 0.2\n"
    audio = command_line(*arguments, "--out", tmp_path / "audio", "--clip-seconds", 0.4, "--only", "audio")
    assert [call.args[3] for call in fit.mock_calls] == [TAGGING]
    assert fit.call_args.args[1].dataset[0][0].shape == (12_800,)
    assert {path.name for path in (tmp_path / "audio").iterdir()} == {AUDIO, "pretraining.json"}
    assert audio.stdout == f"next: train or reproduce --model tiny --audio-checkpoint {tmp_path / 'audio' / AUDIO}\n"
    shutil.rmtree(tmp_path / "Mine" / "tags")
    for folder, found in (("text", {TEXT}), ("audio", {AUDIO, TEXT})):
        command_line(*arguments, "--out", tmp_path / folder, "--clip-seconds", 0.4, "--only", "text")
        assert {path.name for path in (tmp_path / folder).iterdir()} == {*found, "pretraining.json"}
    assert [call.args[3] for call in fit.mock_calls] == [TAGGING, FILLING_IN, FILLING_IN]
    for other in ("--text-epochs", "--seed"):
        others = [*arguments, "--out", tmp_path / "audio", "--clip-seconds", 0.4, "--only", "text", other, 1]
        assert "encoders of others" in command_line(*others, status=1).output


def test_encoders_whose_record_is_older_have_clips_as_long_as_the_data_set(
    corpus: Path, tmp_path: Path, fit: Mock
) -> None:
    fit.side_effect = None
    record = {"dataset": "Synthetic", "audio_epochs": 1, "text_epochs": 1, "seed": 0}
    (tmp_path / "pretraining.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="encoders of others"):
        pretrain.pretrain(corpus, "Synthetic", tmp_path, seconds=0.4, audio_epochs=1, text_epochs=1, seed=0)
    make(corpus, tmp_path)
    assert json.loads((tmp_path / "pretraining.json").read_text()) == {**record, "clip_seconds": 0.5}


def test_what_cannot_be_learned_from_is_refused_before_anything_is_learned(
    corpus: Path, tmp_path: Path, fit: Mock, command_line: CommandLine
) -> None:
    folder, out = shutil.copytree(corpus, tmp_path / "data") / "Synthetic", tmp_path / "out"
    (folder / "waveforms" / "train" / "00007.wav").unlink()
    with pytest.raises(InputError, match=r"got 1 bad of 16 files:\n.*00007\.wav: missing"):
        make(folder.parent, out)
    (table := folder / "tags" / "train.csv").unlink()
    result = command_line("pretrain", "--data", folder.parent, "--out", out, status=1)
    assert result.output == f"Error: expected the events of each clip in {table}, got no file; synthesize makes it\n"
    fit.assert_not_called()
    assert not out.exists()


def test_training_begins_with_them(config: Config, learned: tuple[Path, Losses], tmp_path: Path) -> None:
    """A run of frozen encoders keeps their weights as they are in the files."""
    out, run = learned[0], tmp_path / "run"
    config = replace(
        config, encoders="frozen", audio_checkpoint=str(out / AUDIO), text_encoder=str(out / TEXT), epochs=1
    )
    trainer.train(config, run, features=tmp_path / "features")
    kept = {**load_file(run / "frozen.safetensors"), **load_file(run / "best.safetensors")}
    audio, text = weights_of(out)
    expected = {f"audio_encoder.{name}": value for name, value in audio.items() if not name.startswith("fc")}
    expected |= {f"text_encoder.bert.{name}": value for name, value in text.items() if not name.startswith("pooler")}
    assert same({name: value for name, value in kept.items() if not name.startswith("heads.")}, expected)


# What they learn from.


def test_tags_stand_beside_samples_and_each_has_a_loss_of_its_own(corpus: Path, fit: Mock) -> None:
    clips, tags = read_split(corpus, "Synthetic", "train"), pretrain.read_tags(corpus, "Synthetic", "train")
    assert tags.keys() == {clip.path.name for clip in clips}
    fit.side_effect = None
    weights = pretrain.train_tagger(clips, tags, 0.5, 3)
    model, loader, epochs, _, loss_of = fit.call_args.args
    assert epochs == 3
    assert same(weights, {name.removeprefix("encoder."): value for name, value in model.state_dict().items()})
    known = sorted({tag for of_clip in tags.values() for tag in of_clip})
    assert len(loader.dataset) == 16
    for index, clip in enumerate(clips):
        waveform, present = loader.dataset[index]
        assert torch.equal(waveform, load_waveform(clip.path, 0.5))
        assert sorted(known[k] for k in present.nonzero().flatten()) == sorted(tags[clip.path.name])
        assert set(present.tolist()) <= {0.0, 1.0}
    waveforms, present = next(iter(loader))
    chances = model.eval().fc_audioset(model.fc1(model.encoder(waveforms)).clamp(min=0)).sigmoid()
    expected = -torch.where(present == 1, chances, 1 - chances).log().mean()
    torch.testing.assert_close(loss_of((waveforms, present)), expected)


CLIPS = [
    Clip(Path("a.wav"), ("one two three", "two three four five", "three four")),
    Clip(Path("b.wav"), ("six seven", "seven eight nine")),
    Clip(Path("c.wav"), ("ten",)),
]
CLIP_OF = [0, 0, 0, 1, 1, 2]


def test_pairs_of_captions() -> None:
    """Label 0: both of one clip. Label 1: the second is any, of the same clip as well. Long pairs are cut."""
    tokenizer = bert.train_tokenizer(captions_of(CLIPS))
    sentences = text.tokenize(tokenizer, captions_of(CLIPS))
    pairs = pretrain.CaptionPairs(CLIPS, tokenizer)
    assert len(pairs) == 6
    torch.manual_seed(0)
    seen: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for index in [*range(6)] * 100:
        pair = pairs[index]
        length = len(sentences[index])
        assert pair["input_ids"][:length] == sentences[index]
        rest = pair["input_ids"][length:]
        assert pair["token_type_ids"] == [0] * length + [1] * len(rest)
        second = [sentence[1:] for sentence in sentences].index(rest)  # [CLS] one [SEP] another [SEP]
        seen[pair["next_sentence_label"]].append((index, second))
    assert set(seen[0]) == {(i, j) for i in range(6) for j in range(6) if CLIP_OF[i] == CLIP_OF[j]}
    assert set(seen[1]) == {(i, j) for i in range(6) for j in range(6)}
    assert len(seen[1]) / 600 == pytest.approx(0.5, abs=0.06)
    long = [Clip(Path("a.wav"), ("word " * 40, "word " * 41))]
    pair = pretrain.CaptionPairs(long, bert.train_tokenizer(captions_of(long)))[0]
    assert len(pair["input_ids"]) == 64
    assert pair["token_type_ids"] == [0] * 42 + [1] * 22


def test_words_are_masked_as_in_bert(fit: Mock) -> None:
    """15 % of the words, never [CLS], [SEP] or padding; of them 80 % read [MASK], 10 % a random word."""
    words = [f"{a}{b}" for a in "bcdfghjklm" for b in "aeiou"]
    clips = [Clip(Path(f"{k}.wav"), (" ".join(words[k : k + 5 + k % 20]),)) for k in range(30)] * 10
    tokenizer = bert.train_tokenizer(captions_of(clips))
    torch.manual_seed(0)
    fit.side_effect = None
    trained = pretrain.train_bert(clips, tokenizer, 2)
    model, loader, epochs, _, loss_of = fit.call_args.args
    assert trained is model.bert
    assert epochs == 2
    batches = [batch for _ in range(10) for batch in loader]
    assert len(batches) == 10 * (300 // 32)
    special = torch.tensor([tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id])
    of_words = masked = replaced = kept = 0
    for batch in batches:
        ids, labels = batch["input_ids"], batch["labels"]
        asked = labels != -100
        original = torch.where(asked, labels, ids)
        assert not torch.isin(labels, special).any()
        assert torch.equal(batch["attention_mask"] == 0, original == tokenizer.pad_token_id)
        assert not batch["token_type_ids"][batch["attention_mask"] == 0].any()
        assert (original != tokenizer.mask_token_id).all()
        of_words += int((~torch.isin(original, special)).sum())
        masked += int(asked.sum())
        replaced += int((ids[asked] == tokenizer.mask_token_id).sum())
        kept += int((ids[asked] == labels[asked]).sum())
    assert masked / of_words == pytest.approx(0.15, abs=0.01)
    assert replaced / masked == pytest.approx(0.8, abs=0.02)
    assert kept / masked == pytest.approx(0.1, abs=0.02)
    # The loss is of the words and of the label.
    out = model.eval()(**batches[0])
    of_the_words = F.cross_entropy(out.prediction_logits.flatten(0, 1), batches[0]["labels"].flatten())
    of_the_label = F.cross_entropy(out.seq_relationship_logits, batches[0]["next_sentence_label"])
    torch.testing.assert_close(loss_of(batches[0]), of_the_words + of_the_label)
