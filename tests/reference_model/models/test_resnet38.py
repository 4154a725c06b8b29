"""The front-end against an independent float64 computation; ResNet-38 name for name; checkpoints, good and hostile."""

import math
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference_model import InputError
from reference_model.data.audio import SHORTEST
from reference_model.models.resnet38 import LogMel, ResNet38


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


PUBLISHED_NAMES = [
    *(f"bn0.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    *(f"conv_block1.{name}" for name in ("conv1.weight", "bn2.running_var")),
    *("resnet.layer1.0.conv1.weight", "resnet.layer1.2.bn2.bias", "resnet.layer2.3.conv2.weight"),
    *("resnet.layer2.0.downsample.1.weight", "resnet.layer2.0.downsample.2.running_mean"),
    *("resnet.layer3.5.bn1.weight", "resnet.layer4.0.downsample.2.bias", "resnet.layer4.2.conv2.weight"),
    *("conv_block_after1.conv2.weight", "conv_block_after1.bn1.weight"),
]


def test_published_architecture() -> None:
    encoder = ResNet38()
    state = encoder.state_dict()
    assert len(state) == 239
    assert set(PUBLISHED_NAMES) <= state.keys()
    assert "resnet.layer1.0.downsample.1.weight" not in state
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 68_507_072
    assert state["conv_block_after1.conv2.weight"].shape == (2048, 2048, 3, 3)
    ends = [value for name, value in state.items() if name.startswith("resnet") and name.endswith("bn2.weight")]
    assert len(ends) == 16
    assert all((end == 0).all() for end in ends)  # a new block is the identity


def naive_resnet38(state: dict[str, Tensor], logmel: Tensor) -> Tensor:
    """The network in eval mode as a list of functions of its arrays."""
    from torch.nn import functional as F

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / torch.sqrt(variance + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]

    def conv_block(x: Tensor, name: str) -> Tensor:
        for k in (1, 2):
            x = norm(F.conv2d(x, state[f"{name}.conv{k}.weight"], padding=1), f"{name}.bn{k}").clamp(min=0)
        return x

    x = norm(logmel[:, None].transpose(1, 3).transpose(1, 1), "bn0").transpose(1, 3)
    x = F.avg_pool2d(conv_block(x, "conv_block1"), 2)
    for layer, depth in enumerate((3, 4, 6, 3), start=1):
        for index in range(depth):
            name = f"resnet.layer{layer}.{index}"
            shortcut = x
            if layer > 1 and index == 0:
                x = F.avg_pool2d(x, 2)
                shortcut = norm(F.conv2d(x, state[f"{name}.downsample.1.weight"]), f"{name}.downsample.2")
            y = norm(F.conv2d(x, state[f"{name}.conv1.weight"], padding=1), f"{name}.bn1").clamp(min=0)
            y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            x = (y + shortcut).clamp(min=0)
    x = conv_block(F.avg_pool2d(x, 2), "conv_block_after1")
    over_frequency = x.mean(3)
    return over_frequency.max(2).values + over_frequency.mean(2)


def test_forward_equals_an_independent_computation() -> None:
    torch.manual_seed(0)
    encoder = ResNet38(width=1 / 16)
    for name, value in encoder.state_dict().items():  # as after training: no scale 0, no statistics 0 and 1
        if "bn" in name or "downsample.2" in name:
            value.copy_(torch.rand(value.shape) + 0.5 if value.is_floating_point() else value)
    encoder.eval()
    waveforms = 0.1 * torch.randn(2, 24_000)
    with torch.no_grad():
        expected = naive_resnet38(encoder.state_dict(), encoder.logmel(waveforms))
        torch.testing.assert_close(encoder(waveforms), expected, rtol=1e-4, atol=1e-4)


def test_width_and_shortest_clip() -> None:
    encoder = ResNet38(width=1 / 8).eval()
    assert encoder(torch.zeros(2, SHORTEST)).shape == (2, 256)
    assert encoder.output_size == 256
    with pytest.raises(
        ValueError, match=r"expected waveforms of shape \[B, samples\] with at least 9920 samples .* got"
    ):
        encoder(torch.zeros(2, SHORTEST - 1))
    with pytest.raises(ValueError, match=r"got \[9920\]"):
        encoder(torch.zeros(SHORTEST))


def test_dropout_and_batch_norm_only_in_training() -> None:
    torch.manual_seed(0)
    encoder = ResNet38(width=1 / 16)
    waveforms = torch.randn(2, 16_000)
    assert not torch.equal(encoder(waveforms), encoder(waveforms))
    encoder.eval()
    assert torch.equal(encoder(waveforms), encoder(waveforms))


def published_layout(encoder: ResNet38, sampler: Any) -> dict[str, Any]:
    """A checkpoint as PANNs writes it: 246 entries in the model, and the state of the sampler beside it."""
    extra = {
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 1024),
        "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(513, 1, 1024),
        "logmel_extractor.melW": torch.zeros(513, 64),
        "fc1.weight": torch.zeros(8, 2048),
        "fc1.bias": torch.zeros(8),
        "fc_audioset.weight": torch.zeros(527, 8),
        "fc_audioset.bias": torch.zeros(527),
    }
    model = OrderedDict([*list(extra.items())[:3], *encoder.state_dict().items(), *list(extra.items())[3:]])
    assert len(model) == 246
    return {"iteration": 600_000, "model": model, "sampler": sampler}


SAMPLER = {
    "indexes": np.arange(20, dtype=np.int64),
    "indexes_per_class": [np.arange(3), np.array([], dtype=np.int64)],
    "queue": [3, np.int64(4)],
    "pointers_of_classes": [0, 1],
    "random_state": np.random.RandomState(0).get_state(),
    "pointer": 7,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResNet38, Path]:
    """A full-size encoder with random weights, and its checkpoint in the old file format, as NumPy 1 wrote it."""
    torch.manual_seed(1)
    encoder = ResNet38()
    path = tmp_path_factory.mktemp("panns") / "ResNet38_mAP=0.434.pth"
    torch.save(published_layout(encoder, SAMPLER), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    return encoder, path


def test_from_panns(published: tuple[ResNet38, Path]) -> None:
    encoder, path = published
    loaded = ResNet38.from_panns(path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("zipped", [False, True])
def test_a_sampler_of_this_numpy_and_either_file_format(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"iteration": 1, "model": {}, "sampler": SAMPLER}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"expected the 239 arrays of ResNet-38 in .* got 0; 239 do not fit"):
        ResNet38.from_panns(path)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_hostile_checkpoints_are_refused_unrun(tmp_path: Path) -> None:
    sentinel, path = tmp_path / "was run", tmp_path / "x.pth"
    for hostile in (
        {"iteration": 1, "model": {}, "sampler": Hostile(f"touch '{sentinel}'")},
        Hostile(f"touch '{sentinel}'"),
    ):
        torch.save(hostile, path)
        with pytest.raises(InputError, match=r"NumPy arrays at .*x\.pth, got one that asks for posix\.system"):
            ResNet38.from_panns(path)
        path.write_bytes(pickle.dumps(hostile))
        with pytest.raises(InputError, match=r"truncated or of another format|one that asks for posix"):
            ResNet38.from_panns(path)
    assert not sentinel.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_wrong_checkpoints_are_refused(published: tuple[ResNet38, Path], tmp_path: Path) -> None:
    _, good = published
    path = tmp_path / "x.pth"
    with pytest.raises(InputError, match=r"got no file; it is on Zenodo, record 3987831"):
        ResNet38.from_panns(path)
    for content in (b"", b"this is no checkpoint", good.read_bytes()[:1_000_000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="got a file that is truncated or of another format"):
            ResNet38.from_panns(path)
    for value, words in (
        ([1, 2], "with the entry 'model' .* got list"),
        ({"weights": 1}, r"with the entry 'model' .* got \['weights'\]"),
        ({"model": {"bn0.weight": torch.zeros(64)}}, "got 1; 238 do not fit, such as bn0.bias"),
        ({"model": ResNet38(width=1 / 8).state_dict()}, r"got 239; .* such as conv_block1.conv1.weight \[8, 1, 3, 3\]"),
    ):
        torch.save(value, path)
        with pytest.raises(InputError, match=words):
            ResNet38.from_panns(path)
