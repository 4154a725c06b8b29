"""Cnn14 of PANNs (Kong et al. 2020), the other audio encoder of that paper that is widely used: no residual blocks."""

from torch import Tensor
from torch.nn import functional as F

from reference_model.models.convolutional import ConvBlock, PannsEncoder, in_channels_last


class Cnn14(PannsEncoder):
    """Encode waveforms at 32 kHz, ``[B, samples]``, as vectors, ``[B, output_size]``; output_size = 2048 x width.

    ``width`` is a factor on the number of channels: 1 is the published network with its 75.5 million parameters.
    Dropout between the blocks is always 0.2, and there is none inside.
    """

    def __init__(self, *, width: float = 1.0, spec_augment: bool = False) -> None:
        super().__init__(spec_augment=spec_augment)
        channels = [1, *(round(c * width) for c in (64, 128, 256, 512, 1024, 2048))]
        self.output_size = channels[-1]
        self.names = [f"conv_block{number}" for number in range(1, 7)]
        for name, inputs, outputs in zip(self.names, channels, channels[1:], strict=False):
            self.add_module(name, ConvBlock(inputs, outputs, pool=1 if name == self.names[-1] else 2))
        in_channels_last(self)

    def blocks(self, x: Tensor) -> Tensor:
        """Map spectrograms, ``[B, 1, T, F]``, to ``[B, output_size, T / 32, F / 32]``."""
        for name in self.names:
            x = F.dropout(getattr(self, name)(x), 0.2, self.training)
        return x
