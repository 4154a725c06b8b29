"""Section 2.2, audio encoder: ResNet-38 of PANNs (Kong et al. 2020) without its two last linear layers."""

from torch import Tensor, nn
from torch.nn import functional as F

from reference_model.models.convolutional import ConvBlock, PannsEncoder, convolution, in_channels_last


class BasicBlock(nn.Module):
    """Residual block; a stride of 2 is average pooling before the first convolution and before that of the shortcut."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.stride, self.dropout = stride, dropout
        self.conv1 = convolution(inputs, outputs, 3)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.bn2.weight)  # a new block is the identity
        self.downsample = (
            nn.Sequential(nn.AvgPool2d(2), convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs))
            if stride == 2
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, outputs, T / stride, F / stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.avg_pool2d(x, 2) if self.stride == 2 else x
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.dropout(x, self.dropout, self.training)
        x = self.bn2(self.conv2(x))
        return F.relu_(x + shortcut)


class ResNet38(PannsEncoder):
    """Encode waveforms at 32 kHz, ``[B, samples]``, as vectors, ``[B, output_size]``; output_size = 2048 x width.

    ``width`` is a factor on the number of channels: 1 is the published network with its 68.5 million parameters, 1/8 a
    small one of the same depth. ``dropout`` is that of the residual blocks; between the other blocks it is always 0.2.
    """

    def __init__(self, *, width: float = 1.0, dropout: float = 0.1, spec_augment: bool = False) -> None:
        super().__init__(spec_augment=spec_augment)
        channels = [round(c * width) for c in (64, 64, 128, 256, 512, 2048)]
        self.output_size = channels[-1]
        self.conv_block1 = ConvBlock(1, channels[0], pool=2)
        self.resnet = nn.Sequential()
        for layer, depth in enumerate((3, 4, 6, 3), start=1):
            inputs, outputs = channels[layer - 1 : layer + 1]
            first = BasicBlock(inputs, outputs, stride=1 if layer == 1 else 2, dropout=dropout)
            rest = [BasicBlock(outputs, outputs, stride=1, dropout=dropout) for _ in range(depth - 1)]
            self.resnet.add_module(f"layer{layer}", nn.Sequential(first, *rest))
        self.conv_block_after1 = ConvBlock(channels[4], channels[5], pool=1)
        in_channels_last(self)

    def blocks(self, x: Tensor) -> Tensor:
        """Map spectrograms, ``[B, 1, T, F]``, to ``[B, output_size, T / 32, F / 32]``."""
        x = F.dropout(self.conv_block1(x), 0.2, self.training)
        x = F.dropout(F.avg_pool2d(self.resnet(x), 2), 0.2, self.training)
        return F.dropout(self.conv_block_after1(x), 0.2, self.training)
