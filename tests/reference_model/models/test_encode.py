"""The loop that runs encoders over clips and captions: batches, unreadable clips, precision, workers, stopping."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.batches import pad_tokens
from reference_model.models.dual_encoder import DualEncoder, new_model
from reference_model.models.encode import BatchEncoder
from reference_model.runtime.signals import Stopped, handle_signals, request_stop


class Items(list[Any], Dataset[Any]):  # type: ignore[misc]
    """Waveforms, or reasons why there are none; an exception is raised."""

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        if isinstance(item, Exception):
            raise item
        return item


@pytest.fixture(scope="module")
def model(config: Config) -> DualEncoder:
    torch.manual_seed(0)
    return new_model(config, ["a low tone, then a high tone"] * 2).eval()


def encoder(model: DualEncoder, workers: int = 0, autocast: Any = nullcontext) -> BatchEncoder:
    return BatchEncoder(model, torch.device("cpu"), autocast, workers)


def waveforms(number: int) -> Tensor:
    return 0.1 * torch.randn(number, 9_920, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_are_encoded_in_batches_of_32(model: DualEncoder, workers: int) -> None:
    clips = waveforms(40)
    batches = list(encoder(model, workers).clips(Items(list(clips))))
    assert [reasons for _, reasons in batches] == [[None] * 32, [None] * 8]
    with torch.no_grad():
        expected = [model.audio_encoder(part) for part in clips.split(32)]
    for (features, _), rows in zip(batches, expected, strict=True):
        assert torch.equal(features, rows)
        assert not features.requires_grad


def test_a_clip_without_a_waveform_has_a_reason_and_no_row(model: DualEncoder) -> None:
    clips = waveforms(3)
    items: list[Any] = [clips[0], "missing: no such file", clips[1], *["gone"] * 29, "silent", "gone", "gone"]
    first, second = encoder(model).clips(Items(items))
    assert first[1] == [None, "missing: no such file", None, *["gone"] * 29]
    with torch.no_grad():
        assert torch.equal(first[0], model.audio_encoder(clips[:2]))
    assert second[1] == ["silent", "gone", "gone"]
    assert second[0].shape == (0, model.audio_encoder.output_size)


def test_captions_are_encoded_in_batches_of_32_padded_to_their_longest(model: DualEncoder) -> None:
    token_ids = [[2, *[5] * (1 + k % 7), 3] for k in range(33)] + [[2, 6, 3]]
    batches = list(encoder(model).captions(token_ids))
    with torch.no_grad():
        expected = [model.text_encoder(**pad_tokens(part)) for part in (token_ids[:32], token_ids[32:])]
    assert [len(features) for features in batches] == [32, 2]
    assert all(torch.equal(features, rows) for features, rows in zip(batches, expected, strict=True))
    assert list(encoder(model).captions([])) == []


def test_features_of_mixed_precision_are_float32(model: DualEncoder) -> None:
    bf16 = encoder(model, autocast=partial(torch.autocast, "cpu", torch.bfloat16))
    ((audio, _),) = bf16.clips(Items(list(waveforms(2))))
    (text,) = bf16.captions([[2, 5, 3]])
    with torch.no_grad():
        plain = (model.audio_encoder(waveforms(2)), model.text_encoder(**pad_tokens([[2, 5, 3]])))
    for features, rows in zip((audio, text), plain, strict=True):
        assert features.dtype == torch.float32
        assert not torch.equal(features, rows)
        torch.testing.assert_close(features, rows, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_is_refused_is_refused_in_its_own_words(model: DualEncoder, workers: int) -> None:
    items: list[Any] = [*waveforms(32), InputError("expected readable audio, got noise.wav")]
    with pytest.raises(InputError, match=r"^expected readable audio, got noise\.wav$"):
        list(encoder(model, workers).clips(Items(items)))


def test_it_stops_between_batches(model: DualEncoder) -> None:
    for batches in (encoder(model).clips(Items(list(waveforms(33)))), encoder(model).captions([[2, 5, 3]] * 33)):
        with handle_signals():
            next(batches)
            request_stop()
            with pytest.raises(Stopped):
                next(batches)
