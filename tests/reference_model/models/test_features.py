"""Features of constant encoders: computed once, cached, and equal to running the encoders."""

import hashlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from runs import Interrupted
from torch import Tensor, nn
from torch.utils.data import BatchSampler, RandomSampler

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.batches import DistributedBatchSampler, Pairs, WaveformBatches
from reference_model.data.dataset import captions_of, read_split
from reference_model.data.manifest import audio_checksums
from reference_model.models import bert as text_encoder
from reference_model.models import features
from reference_model.models.bert import BertEncoder
from reference_model.models.dual_encoder import new_model
from reference_model.models.features import FeatureBatches, Features, cached_features
from reference_model.models.resnet38 import ResNet38
from reference_model.runtime.tensors import save_tensors
from reference_model.training.step import Step
from reference_model.training.trainer import train


@pytest.fixture
def frozen(config: Config) -> Config:
    return replace(config, encoders="frozen")


def trained(
    config: Config, folder: Path, epochs: int, *, cached: bool, one_length: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The loss of every step, and the heads at the end."""
    accelerator = Accelerator(cpu=True)
    clips = read_split(config.data, config.dataset, "train")
    captions = captions_of(clips)
    torch.manual_seed(0)
    model, tokenizer = new_model(config, captions)
    token_ids = text_encoder.tokenize(tokenizer, captions)
    if one_length:
        token_ids = [sentence[:5] for sentence in token_ids]
    assert (len(set(map(len, token_ids))) == 1) == one_length
    order = RandomSampler(range(len(captions)), generator=torch.Generator().manual_seed(3))
    sampler = DistributedBatchSampler(BatchSampler(order, config.batch_size, drop_last=True), 0, 1)
    batches: FeatureBatches | WaveformBatches
    if cached:
        checksums = audio_checksums(config.data, config.dataset, "train", clips)
        kept = cached_features(folder, model, clips, checksums, token_ids, config, accelerator)
        batches, step = FeatureBatches(kept, sampler), Step(model.heads, config, accelerator)
    else:
        pairs = Pairs(clips, token_ids, config.clip_seconds)
        batches, step = WaveformBatches(pairs, sampler, 0, accelerator.device), Step(model, config, accelerator)
    model.train()
    losses = [step(batch) for _ in range(epochs) for batch in batches.from_step(0)]
    return losses, {name: value.clone() for name, value in model.heads.state_dict().items()}


@pytest.mark.parametrize("loss", ["nt_xent", "triplet_max"])
def test_training_on_features_is_training_through_the_encoders_to_the_bit(
    frozen: Config, tmp_path: Path, loss: str
) -> None:
    """With captions of one length. On a CPU the features of a clip do not depend on the batch that it is in."""
    frozen = replace(frozen, loss=loss)
    cached, heads = trained(frozen, tmp_path, 3, cached=True, one_length=True)
    through, expected = trained(frozen, tmp_path, 3, cached=False, one_length=True)
    assert len(cached) == 15
    assert all(torch.equal(a, b) for a, b in zip(cached, through, strict=True))
    assert all(torch.equal(heads[name], expected[name]) for name in heads)


def test_padding_of_captions_changes_features_by_rounding_only(frozen: Config, tmp_path: Path) -> None:
    """In a batch with a longer caption BERT sums the same numbers and zeros in another order."""
    cached, _ = trained(frozen, tmp_path, 2, cached=True, one_length=False)
    through, _ = trained(frozen, tmp_path, 2, cached=False, one_length=False)
    torch.testing.assert_close(torch.stack(cached), torch.stack(through), rtol=1e-5, atol=0)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which encoders are used from here on."""
    used: list[str] = []
    for encoder in (ResNet38, BertEncoder):

        def noted(self: nn.Module, *inputs: Tensor, _original: Any = encoder.forward, **more: Tensor) -> Any:
            used.append(type(self).__name__)
            return _original(self, *inputs, **more)

        monkeypatch.setattr(encoder, "forward", noted)
    return used


def test_runs_share_cached_features(frozen: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other losses, batch sizes and learning rates take the same features; other encoders, clips or captions do not."""
    original, without = Path(frozen.data) / "Synthetic", shutil.ignore_patterns("features")
    data = shutil.copytree(original, tmp_path / "data" / "Synthetic", ignore=without).parent
    frozen = replace(frozen, data=str(data), epochs=1)
    first = train(frozen, tmp_path / "first")
    folder = data / "Synthetic" / "features"
    assert len(list(folder.iterdir())) == 6  # three splits of audio and of text
    used = counted(monkeypatch)
    assert {**train(replace(frozen, workers=1), tmp_path / "again"), "config": None} == {**first, "config": None}
    train(replace(frozen, loss="triplet_sum", batch_size=8, learning_rate=1e-4), tmp_path / "other")
    assert not used
    train(replace(frozen, seed=1), tmp_path / "seed")  # other weights of the tiny encoders
    assert set(used) == {"ResNet38", "BertEncoder"}
    used.clear()
    train(replace(frozen, clip_seconds=0.4), tmp_path / "shorter")
    assert set(used) == {"ResNet38"}
    used.clear()
    some, other = sorted((data / "Synthetic" / "waveforms" / "val").iterdir())[:2]
    shutil.copyfile(some, other)
    train(frozen, tmp_path / "clip")
    assert used == ["ResNet38"]  # of the val split


def test_an_interrupted_computation_goes_on_with_the_next_part(
    frozen: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PART", 5)
    expected = train(frozen, tmp_path / "whole", features=tmp_path / "expected")

    saved: list[Path] = []

    def save(path: Path, *arguments: Any) -> None:
        if len(saved) == 3:
            raise Interrupted
        saved.append(path)
        save_tensors(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(features, "save_tensors", save)
        with pytest.raises(Interrupted):
            train(frozen, tmp_path / "run", features=tmp_path / "kept")
    times = {path: path.stat().st_mtime_ns for path in saved}
    assert train(frozen, tmp_path / "run", features=tmp_path / "kept") == expected
    assert {path: path.stat().st_mtime_ns for path in saved} == times


def test_a_damaged_part_is_named(frozen: Config, tmp_path: Path) -> None:
    train(replace(frozen, epochs=1), tmp_path / "run", features=tmp_path / "kept")
    part = sorted((tmp_path / "kept").glob("audio-*/*.safetensors"))[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=rf"expected a safetensors file at {part}, got .*"):
        train(frozen, tmp_path / "other", features=tmp_path / "kept")


def test_a_folder_that_cannot_be_written_is_named(frozen: Config, tmp_path: Path) -> None:
    words = r"expected to write features, got: .*/sys/features.*; --features names another"
    with pytest.raises(InputError, match=words):
        train(frozen, tmp_path / "run", features=Path("/sys/features"))


def test_processes_divide_the_parts_whatever_is_there_already(
    frozen: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three processes computes every third part, though others have saved theirs; together they have all."""
    third: Any = SimpleNamespace(num_processes=3, device=torch.device("cpu"), autocast=nullcontext)
    third.wait_for_everyone = Mock(side_effect=Interrupted)  # before the first process has all parts
    monkeypatch.setattr(features, "PART", 2)
    clips = read_split(frozen.data, frozen.dataset, "train")[:13]
    checksums = audio_checksums(frozen.data, frozen.dataset, "train", clips)
    model, tokenizer = new_model(frozen, captions_of(clips))
    token_ids = text_encoder.tokenize(tokenizer, captions_of(clips))
    saved: list[set[int]] = []
    for third.process_index in range(3):
        with pytest.raises(Interrupted):
            cached_features(tmp_path / "kept", model, clips, checksums, token_ids, frozen, third)
        saved.append({int(path.stem) for path in tmp_path.glob("kept/audio-*/*.safetensors")})
    assert saved[0] == {0, 6, 12}
    assert saved[1] - saved[0] == {2, 8}
    assert saved[2] - saved[1] == {4, 10}


def test_pairs_have_features_of_their_clips_and_captions() -> None:
    audio, text = torch.randn(2, 3), torch.randn(3, 4)
    kept = Features(audio, text, torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 1]))
    pairs = kept.pairs(torch.tensor([3, 1]))
    assert pairs["ids"].tolist() == [1, 0]
    assert torch.equal(pairs["audio"]["audio"], audio[[1, 0]])
    assert torch.equal(pairs["text"]["text"], text[[0, 1]])


def test_features_of_another_precision_have_another_key(frozen: Config, tmp_path: Path) -> None:
    frozen = replace(frozen, epochs=1)
    train(frozen, tmp_path / "a", features=tmp_path / "kept")
    before = {path.name for path in (tmp_path / "kept").iterdir()}
    AcceleratorState._reset_state(reset_partial_state=True)
    train(replace(frozen, precision="bf16"), tmp_path / "b", features=tmp_path / "kept")
    assert len({path.name for path in (tmp_path / "kept").iterdir()} - before) == 6


def test_the_names_of_caches_follow_from_weights_settings_and_inputs_alone(frozen: Config, tmp_path: Path) -> None:
    """Computed here once more, because caches that users have must be found."""

    def sha256_of(weights: dict[str, Tensor]) -> str:
        content = [name.encode() + tensor.numpy().tobytes() for name, tensor in weights.items()]
        return hashlib.sha256(b"".join(content)).hexdigest()

    def name(*parts: object) -> str:
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    clips = read_split(frozen.data, frozen.dataset, "val")[:2]
    model, tokenizer = new_model(frozen, captions_of(clips))
    token_ids = text_encoder.tokenize(tokenizer, captions_of(clips))
    cached_features(tmp_path, model, clips, ["a", "b"], token_ids, frozen, Accelerator(cpu=True))
    front_end = {"rate": 32_000, "window": 1024, "hop": 320, "mel": [64, 50, 14_000]}
    sentences = [list(sentence) for sentence in dict.fromkeys(map(tuple, token_ids))]
    audio = name(sha256_of(model.audio_encoder.state_dict()), [front_end, 0.5, "no", "cpu"], ["a", "b"])
    text = name(sha256_of(model.text_encoder.state_dict()), ["no", "cpu"], sentences)
    assert {path.name for path in tmp_path.iterdir()} == {f"audio-{audio}", f"text-{text}"}
