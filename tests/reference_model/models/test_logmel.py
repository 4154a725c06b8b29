"""The front-end against an independent float64 computation, of silence, and under autocast; masked stripes."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from reference_model.models.logmel import LogMel, SpecAugment


def mel_frequency(hertz: float) -> float:
    """Slaney's scale: linear to 1 kHz, then logarithmic."""
    return hertz / (200 / 3) if hertz < 1000 else 15 + math.log(hertz / 1000) / (math.log(6.4) / 27)


def hertz_frequency(mel: float) -> float:
    return mel * (200 / 3) if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def naive_logmel(waveform: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Frame by frame in float64: Hann window, DFT, triangles of unit area on the mel scale, decibels."""
    padded = np.pad(waveform, 512, mode="reflect")
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / 1024) for n in range(1024)])
    low, high = mel_frequency(50), mel_frequency(14_000)
    edges = [hertz_frequency(low + (high - low) * k / 65) for k in range(66)]
    bins = np.arange(513) * 32_000 / 1024
    frames = []
    for start in range(0, len(waveform) + 1, 320):
        power = np.abs(np.fft.rfft(padded[start : start + 1024] * window)) ** 2
        frame = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            triangle = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
            frame.append(10 * math.log10(max(1e-10, float((triangle * 2 / (right - left)) @ power))))
        frames.append(frame)
    return np.array(frames)


def test_front_end_equals_an_independent_computation() -> None:
    waveform = torch.randn(32_000, generator=torch.Generator().manual_seed(0)) * 0.1
    logmel = LogMel()(waveform[None])[0]
    expected = torch.from_numpy(naive_logmel(waveform.double().numpy()))
    assert logmel.shape == expected.shape == (101, 64)
    assert float((logmel.double() - expected).abs().max()) < 2e-3  # dB; float32 against float64


def test_front_end_of_silence_of_ten_seconds_and_under_autocast() -> None:
    logmel = LogMel()
    assert logmel(torch.zeros(1, 320_000)).shape == (1, 1001, 64)
    assert torch.equal(logmel(torch.zeros(1, 3_200)), torch.full((1, 11, 64), -100.0))
    full_scale = torch.sin(torch.arange(32_000) * 0.2)[None]
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(logmel(full_scale), logmel(full_scale.double().float()))
        assert logmel(full_scale).dtype == torch.float32
    assert logmel(full_scale).isfinite().all()
    assert logmel.state_dict() == {}


def test_stripes_are_erased_in_training_and_for_every_clip_on_its_own() -> None:
    torch.manual_seed(0)
    erase, whole = SpecAugment(), torch.ones(200, 1, 300, 64)
    assert torch.equal(erase.eval()(whole), whole)
    erased = erase.train()(whole)[:, 0] == 0
    frames, bins = erased.all(2), erased.all(1)  # [clips, T], [clips, F]
    assert torch.equal(erased, frames[:, :, None] | bins[:, None, :])  # stripes, and nothing else
    assert 64 <= frames.sum(1).max() <= 2 * 63
    assert 8 <= bins.sum(1).max() <= 2 * 7
    assert frames.sum(1).float().mean() == pytest.approx(2 * 31.5, rel=0.15)  # less where two stripes overlap
    assert bins.sum(1).float().mean() == pytest.approx(2 * 3.5, rel=0.15)
    assert len({tuple(row.tolist()) for row in frames}) > 190
