"""Section 2.2, audio encoder: ResNet-38 of PANNs (Kong et al. 2020) without its two last linear layers.

Architecture and parameter names are those of the published checkpoints, which load strictly. The paper says that "an
average and max pooling layer is applied to aggregate along the frequency dimension"; what the architecture does, and
what is done here, is a mean over frequency, then maximum plus mean over time.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks, spectrogram
from torchaudio.transforms import FrequencyMasking, TimeMasking

from reference_model import InputError
from reference_model.data.audio import HOP, SAMPLE_RATE, SHORTEST

# Section 3.2.
WINDOW = 1024  # samples, Hann
MEL_BINS = 64
LOWEST, HIGHEST = 50, 14_000  # Hz, of the mel bins; those of PANNs
FRONT_END = {"rate": SAMPLE_RATE, "window": WINDOW, "hop": HOP, "mel": [MEL_BINS, LOWEST, HIGHEST]}


class LogMel(nn.Module):
    """Waveforms at 32 kHz, ``[B, samples]``, to log-mel spectrograms in dB, ``[B, frames, 64]``; always in float32.

    frames = samples // 320 + 1. Digital silence is -100 dB. Power of half precision would over- and underflow.
    """

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = melscale_fbanks(
            WINDOW // 2 + 1,
            f_min=LOWEST,
            f_max=HIGHEST,
            n_mels=MEL_BINS,
            sample_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        # No part of the state: the published checkpoints hold their own, which are dropped.
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):
            spectrum = spectrogram(
                waveforms.float(),
                pad=0,
                window=self.window,
                n_fft=WINDOW,
                hop_length=HOP,
                win_length=WINDOW,
                power=None,
                normalized=False,
                center=True,
                pad_mode="reflect",
            )
            power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)  # power=2.0 would take a root first
            decibels: Tensor = 10 * (power.transpose(1, 2) @ self.filters).clamp(min=1e-10).log10()
            return decibels


class SpecAugment(nn.Module):
    """Park et al. 2019 with the published code's sizes, on log-mel spectrograms ``[B, 1, T, F]``, when training.

    Two stripes of up to 63 frames and two of up to 7 mel bins are set to 0, for every clip on its own. It stands behind
    bn0, where 0 is near the mean.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stripes = nn.Sequential(
            *(TimeMasking(64, iid_masks=True) for _ in range(2)),
            *(FrequencyMasking(8, iid_masks=True) for _ in range(2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        erased: Tensor = self.stripes(x.transpose(2, 3)).transpose(2, 3) if self.training else x
        return erased


def _convolution(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU, then average pooling; ``[B, C, T, F]`` throughout."""

    def __init__(self, inputs: int, outputs: int, *, pool: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, self.pool) if self.pool > 1 else x


class BasicBlock(nn.Module):
    """Residual block. A stride of 2 is average pooling before the first convolution and before the shortcut's."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.stride = stride
        self.dropout = dropout
        self.conv1 = _convolution(inputs, outputs, 3)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.bn2.weight)  # a new block is the identity
        self.downsample = (
            nn.Sequential(nn.AvgPool2d(2), _convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs))
            if stride == 2
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.avg_pool2d(x, 2) if self.stride == 2 else x
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.dropout(x, self.dropout, self.training)
        x = self.bn2(self.conv2(x))
        return F.relu_(x + shortcut)


class ResNet38(nn.Module):
    """Waveforms at 32 kHz, ``[B, samples]``, to one vector a clip, ``[B, 2048]`` at width 1.

    Args:
        width: factor on the number of channels; 1 is the published network with its 68.5 million parameters, 1/8 a
            small one of the same depth. The output has 2048 x width numbers, ``output_size``.
        dropout: of the residual blocks, when training; the dropout of 0.2 between the other blocks is always there.
        spec_augment: erase stripes of the spectrogram when training.
    """

    def __init__(self, *, width: float = 1.0, dropout: float = 0.1, spec_augment: bool = False) -> None:
        super().__init__()
        channels = [round(c * width) for c in (64, 64, 128, 256, 512, 2048)]
        self.output_size = channels[-1]
        self.logmel = LogMel()
        self.bn0 = nn.BatchNorm2d(MEL_BINS)
        self.spec_augment = SpecAugment() if spec_augment else nn.Identity()
        self.conv_block1 = ConvBlock(1, channels[0], pool=2)
        self.resnet = nn.Sequential()
        for layer, (depth, inputs, outputs) in enumerate(
            zip((3, 4, 6, 3), channels[:4], channels[1:5], strict=True), start=1
        ):
            first = BasicBlock(inputs, outputs, stride=1 if layer == 1 else 2, dropout=dropout)
            rest = [BasicBlock(outputs, outputs, stride=1, dropout=dropout) for _ in range(depth - 1)]
            self.resnet.add_module(f"layer{layer}", nn.Sequential(first, *rest))
        self.conv_block_after1 = ConvBlock(channels[4], channels[5], pool=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster so, on CPU and GPU

    def forward(self, waveforms: Tensor) -> Tensor:
        if waveforms.dim() != 2 or waveforms.shape[1] < SHORTEST:
            raise ValueError(
                f"expected waveforms of shape [B, samples] with at least {SHORTEST} samples "
                f"({SHORTEST / SAMPLE_RATE:.2f} s at 32 kHz), got {list(waveforms.shape)}"
            )
        x = self.logmel(waveforms)[:, None]  # [B, 1, T, F]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)  # over the mel bins
        x = self.spec_augment(x)
        x = F.dropout(self.conv_block1(x), 0.2, self.training)
        x = F.dropout(F.avg_pool2d(self.resnet(x), 2), 0.2, self.training)
        x = F.dropout(self.conv_block_after1(x), 0.2, self.training)
        x = x.mean(3)  # over frequency: [B, C, T]
        return x.amax(2) + x.mean(2)

    @classmethod
    def from_panns(
        cls, path: str | Path, *, width: float = 1.0, dropout: float = 0.1, spec_augment: bool = False
    ) -> "ResNet38":
        """The network with the weights of a PANNs checkpoint, ``ResNet38_mAP=0.434.pth`` at width 1.

        It is on Zenodo, record 3987831. The file is a pickle; only tensors, containers and NumPy arrays are read
        from it, anything else in it is refused unseen.

        Raises:
            InputError: the file is missing, truncated, holds something else, or asks to run code.
        """
        encoder = cls(width=width, dropout=dropout, spec_augment=spec_augment)
        weights = read_panns(path)
        try:
            encoder.load_state_dict(weights)
        except RuntimeError as error:
            expected, found = encoder.state_dict(), weights
            wrong = sorted(expected.keys() ^ found.keys()) or [
                f"{name} {list(found[name].shape)} for {list(expected[name].shape)}"
                for name in expected
                if found[name].shape != expected[name].shape
            ]
            raise InputError(
                f"expected the {len(expected)} arrays of ResNet-38 in {path}, got {len(found)}; "
                f"{len(wrong)} do not fit, such as {wrong[0]}"
            ) from error
        return encoder


# What NumPy names in the pickle of an array and of a number.
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_SCALAR: Any = np.float64().__reduce__()[0]
# A sampler, saved beside the model, may hold NumPy state; names as NumPy 1 and NumPy 2 write them.
_NUMPY: list[Any] = [
    bytes,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in (("_reconstruct", _RECONSTRUCT), ("scalar", _SCALAR))
        for core in ("core", "_core")
    ),
]
# The parts of a published checkpoint that belong to the front-end and the classifier.
_DROPPED = ("fc", "spectrogram_extractor", "logmel_extractor")


def read_panns(path: str | Path) -> dict[str, Tensor]:
    """The encoder's arrays of a PANNs checkpoint, ``{"iteration", "model", "sampler"}``, without running its code."""
    if not Path(path).is_file():
        raise InputError(f"expected a PANNs checkpoint at {path}, got no file; it is on Zenodo, record 3987831")
    try:
        with torch.serialization.safe_globals(_NUMPY):
            checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    # What a reader of pickles makes of bytes that are none.
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"one that asks for {asked[1]}" if asked else "a file that is truncated or of another format"
        size = Path(path).stat().st_size
        raise InputError(
            f"expected a PANNs checkpoint of tensors and NumPy arrays at {path}, got {reason} ({size:,} bytes); "
            "the published one is on Zenodo, record 3987831"
        ) from error
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        keys = list(checkpoint)[:4] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise InputError(f"expected a PANNs checkpoint with the entry 'model' at {path}, got {keys}")
    return {name: array for name, array in checkpoint["model"].items() if not name.startswith(_DROPPED)}
