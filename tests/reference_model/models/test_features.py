"""Features of constant encoders: computed once, cached, and equal to running the encoders."""

import hashlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from accelerate import Accelerator
from published_audio import FAMILIES
from runs import Interrupted
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import BatchSampler, RandomSampler

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.batches import DistributedBatchSampler, Pairs, WaveformBatches
from reference_model.data.dataset import Clip, captions_of, read_split
from reference_model.data.manifest import audio_checksums
from reference_model.models import features, hugging_face
from reference_model.models.dual_encoder import DualEncoder, new_model
from reference_model.models.features import MixedBatches
from reference_model.models.resnet38 import ResNet38
from reference_model.models.text import TextEncoder
from reference_model.training.step import Step
from reference_model.training.trainer import train


@pytest.fixture
def frozen(config: Config) -> Config:
    return replace(config, encoders="frozen")


def inputs_of(config: Config, split: str, number: int | None = None) -> tuple[DualEncoder, list[Clip], list[list[int]]]:
    """The model, the first clips of a split, and the tokens of their captions."""
    clips = read_split(config.data, config.dataset, split)[:number]
    torch.manual_seed(0)
    model = new_model(config, captions_of(clips))
    return model, clips, model.text_encoder.tokenize(captions_of(clips))


def test_each_pair_has_the_features_of_its_clip_or_of_its_caption() -> None:
    """Captions 0 and 2 are of the same text, and share a row of the features."""
    read = SimpleNamespace(
        device=torch.device("cpu"),
        from_step=lambda step: [{"ids": torch.tensor([1, 0]), "captions": torch.tensor([3, 2]), "text": step}],
    )
    rows = torch.tensor([[0.0], [1.0], [2.0]])
    for modality, expected in (("text", [[2.0], [0.0]]), ("audio", [[1.0], [0.0]])):
        batches = MixedBatches(read, {modality: rows}, [[5], [6], [5], [7]])  # type: ignore[arg-type]
        (batch,) = batches.from_step(4)
        assert batch[modality][modality].tolist() == expected
        assert batch["text"] == 4 or modality == "text"


@pytest.mark.parametrize(
    "loss, one_length, audio",
    [("nt_xent", True, None), ("triplet_max", True, None), ("nt_xent", False, None), ("nt_xent", False, "ast")],
)
def test_training_on_features_is_training_through_the_encoders(
    frozen: Config, tmp_path: Path, loss: str, one_length: bool, audio: str | None
) -> None:
    """To the bit, with captions of one length: on a CPU the features of a clip do not depend on its batch.

    In a batch with a longer caption BERT sums the same numbers and zeros in another order.
    """
    config, accelerator = replace(frozen, loss=loss, mask_same_clip=True), Accelerator(cpu=True)
    if audio is not None:
        torch.manual_seed(0)
        for part in FAMILIES[audio]():
            part.save_pretrained(tmp_path / audio)
        config = replace(config, audio_encoder=str(tmp_path / audio))

    def train_on(*, cached: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The loss of every step, and the heads at the end."""
        model, clips, token_ids = inputs_of(config, "train")
        token_ids = [sentence[:5] for sentence in token_ids] if one_length else token_ids
        assert (len(set(map(len, token_ids))) == 1) == one_length
        order = RandomSampler(token_ids, generator=torch.Generator().manual_seed(3))
        sampler = DistributedBatchSampler(BatchSampler(order, config.batch_size, drop_last=True), 0, 1)
        batches: features.FeatureBatches | features.MixedBatches
        if cached:
            checksums = audio_checksums(config.data, config.dataset, "train", clips)
            known = features.cached_features(tmp_path, model, clips, checksums, token_ids, config, accelerator)
            kept = features.compute_features(model, clips, token_ids, config, accelerator, known)
            batches, step = features.FeatureBatches(kept, sampler), Step(model.heads, config, accelerator)
        else:
            pairs = Pairs(clips, token_ids, config.clip_seconds, model.audio_encoder.front_end)
            read = WaveformBatches(pairs, sampler, 0, accelerator.device)
            batches, step = features.MixedBatches(read, {}, token_ids), Step(model, config, accelerator)
        model.train()
        return [step(batch) for _ in range(3) for batch in batches.from_step(0)], model.heads.state_dict()

    losses, heads = train_on(cached=True)
    expected, expected_heads = train_on(cached=False)
    assert len(losses) == 15
    torch.testing.assert_close(losses, expected, rtol=0 if one_length else 1e-5, atol=0)
    if one_length:
        torch.testing.assert_close(heads, expected_heads, rtol=0, atol=0)


def test_after_the_first_batch_of_an_epoch_nothing_is_copied_to_the_gpu() -> None:
    pytest.importorskip("triton")
    from fake_cuda import counted

    sampler = DistributedBatchSampler(BatchSampler(range(12), 4, drop_last=True), 0, 1)
    with FakeTensorMode(), torch.device("cuda"):
        rows = torch.arange(12)
        given = features.Features(torch.empty(12, 3), torch.empty(12, 2), text_of_caption=rows, clip_of_caption=rows)
        epoch = features.FeatureBatches(given, sampler).from_step(0)
        first = next(epoch)
        with counted():  # it refuses tensors on the CPU
            others = list(epoch)
    assert [batch["audio"]["audio"].shape for batch in (first, *others)] == [(4, 3)] * 3


def test_runs_share_cached_features(frozen: Config, tmp_path: Path) -> None:
    """Other losses, batch sizes and learning rates take the same features; other encoders, clips or captions do not."""
    original, without = Path(frozen.data) / "Synthetic", shutil.ignore_patterns("features")
    data = shutil.copytree(original, tmp_path / "data" / "Synthetic", ignore=without)
    frozen = replace(frozen, data=str(data.parent), epochs=1)
    first = train(frozen, tmp_path / "first")
    assert len(list((data / "features").iterdir())) == 6  # three splits of audio and of text
    with (
        patch.object(ResNet38, "forward", autospec=True, side_effect=ResNet38.forward) as audio,
        patch.object(TextEncoder, "forward", autospec=True, side_effect=TextEncoder.forward) as text,
    ):
        assert {**train(replace(frozen, workers=1), tmp_path / "again"), "config": None} == {**first, "config": None}
        train(replace(frozen, loss="triplet_sum", batch_size=8, learning_rate=1e-4), tmp_path / "other")
        assert (audio.called, text.called) == (False, False)
        train(replace(frozen, seed=1), tmp_path / "seed")  # other weights of the tiny encoders
        assert (audio.called, text.called) == (True, True)
        audio.reset_mock()
        text.reset_mock()
        train(replace(frozen, clip_seconds=0.4), tmp_path / "shorter")
        assert (audio.called, text.called) == (True, False)
        audio.reset_mock()
        some, other = sorted((data / "waveforms" / "val").iterdir())[:2]
        shutil.copyfile(some, other)
        train(frozen, tmp_path / "clip")
        assert (audio.call_count, text.call_count) == (1, 0)  # of the val split


def test_a_damaged_part_is_named(frozen: Config, tmp_path: Path) -> None:
    train(replace(frozen, epochs=1), tmp_path / "run", features=tmp_path / "kept")
    part = sorted((tmp_path / "kept").glob("audio-*/*.safetensors"))[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=rf"expected a safetensors file at {part}, got .*"):
        train(frozen, tmp_path / "other", features=tmp_path / "kept")


def test_a_folder_that_cannot_be_written_is_named(frozen: Config, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"expected to write features, got: .*/sys/features.*; --features names another"
    ):
        train(frozen, tmp_path / "run", features=Path("/sys/features"))


def test_processes_divide_the_parts_whatever_is_there_already(
    frozen: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three processes computes every third part, though others have saved theirs; together they have all."""
    third: Any = SimpleNamespace(num_processes=3, device=torch.device("cpu"), autocast=nullcontext)
    third.wait_for_everyone = Mock(side_effect=Interrupted)  # before the first process has all parts
    monkeypatch.setattr(features, "PART", 2)
    model, clips, token_ids = inputs_of(frozen, "train", 13)
    saved: list[set[int]] = []
    for third.process_index in range(3):
        with pytest.raises(Interrupted):
            features.cached_features(tmp_path / "kept", model, clips, ["checksum"] * 13, token_ids, frozen, third)
        saved.append({int(path.stem) for path in tmp_path.glob("kept/audio-*/*.safetensors")})
    assert saved == [{0, 6, 12}, {0, 6, 12, 2, 8}, {0, 6, 12, 2, 8, 4, 10}]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_names_of_caches_follow_from_weights_settings_and_inputs_alone(
    frozen: Config, tmp_path: Path, precision: Any
) -> None:
    """Computed here once more, because caches that users have must be found."""

    def sha256_of(weights: dict[str, Tensor]) -> str:
        content = [name.encode() + tensor.numpy().tobytes() for name, tensor in weights.items()]
        return hashlib.sha256(b"".join(content)).hexdigest()

    def name(*parts: object) -> str:
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    config = replace(frozen, precision=precision)
    model, clips, token_ids = inputs_of(config, "val", 2)
    features.cached_features(tmp_path, model, clips, ["a", "b"], token_ids, config, Accelerator(cpu=True))
    front_end = {"rate": 32_000, "window": 1024, "hop": 320, "mel": [64, 50, 14_000]}
    sentences = [list(sentence) for sentence in dict.fromkeys(map(tuple, token_ids))]
    audio = name(sha256_of(model.audio_encoder.state_dict()), [front_end, 0.5, precision, "cpu"], ["a", "b"])
    settings = hugging_face.settings_of(model.text_encoder.config)
    text = name(sha256_of(model.text_encoder.state_dict()), [settings, "first", precision, "cpu"], sentences)
    assert {path.name for path in tmp_path.iterdir()} == {f"audio-{audio}", f"text-{text}"}
