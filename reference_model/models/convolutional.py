"""What the networks of PANNs (Kong et al. 2020) share: log-mel spectrograms in front, blocks, and pooling behind.

The two last linear layers of the published networks are left out. Parameter names are those of the published
checkpoints, which load strictly (see ``panns.py``). The paper says that "an average and max pooling layer is applied to
aggregate along the frequency dimension"; the published architecture, and this module, take the mean over frequency,
then maximum plus mean over time.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_model.data.audio import SAMPLE_RATE, SHORTEST
from reference_model.data.batches import FrontEnd
from reference_model.models.logmel import FRONT_END, MEL_BINS, LogMel, SpecAugment


def convolution(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    """Build a convolution without bias that keeps the size of its input."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU, then average pooling, on ``[B, C, T, F]``."""

    def __init__(self, inputs: int, outputs: int, *, pool: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, outputs, T / pool, F / pool]``."""
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, self.pool) if self.pool > 1 else x


class PannsEncoder(nn.Module):
    """Encode waveforms at 32 kHz, ``[B, samples]``, as vectors, ``[B, output_size]``.

    A network has its blocks in the method ``blocks``. They halve time five times.
    """

    output_size: int
    front_end = FrontEnd()
    settings: Mapping[str, Any] = FRONT_END  # what features depend on besides weights and waveforms; JSON

    def __init__(self, *, spec_augment: bool) -> None:
        super().__init__()
        self.logmel = LogMel()
        self.bn0 = nn.BatchNorm2d(MEL_BINS)
        self.spec_augment = SpecAugment() if spec_augment else nn.Identity()

    def blocks(self, x: Tensor) -> Tensor:
        """Map spectrograms, ``[B, 1, T, F]``, to ``[B, output_size, T / 32, F / 32]``."""
        raise NotImplementedError

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return the features of the clips, ``[B, output_size]``."""
        if waveforms.dim() != 2 or waveforms.shape[1] < SHORTEST:
            raise ValueError(
                f"expected waveforms of shape [B, samples] with at least {SHORTEST} samples "
                f"({SHORTEST / SAMPLE_RATE:.2f} s at 32 kHz), got {list(waveforms.shape)}"
            )
        x = self.logmel(waveforms)[:, None]  # [B, 1, T, F]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)  # over the mel bins
        x = self.blocks(self.spec_augment(x)).mean(3)  # over frequency: [B, C, T]
        return x.amax(2) + x.mean(2)


def in_channels_last(network: nn.Module) -> None:
    """Order the weights as convolutions are faster, on CPU and GPU."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
