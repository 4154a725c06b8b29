"""Log-mel spectrograms, the front-end of the audio encoder (section 3.2), and SpecAugment, which masks stripes."""

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import FrequencyMasking, TimeMasking

from reference_model.data.audio import HOP, SAMPLE_RATE

WINDOW = 1024  # samples, Hann
MEL_BINS = 64
LOWEST, HIGHEST = 50, 14_000  # Hz, limits of the mel bins; those of PANNs
# Everything that a spectrogram depends on besides the waveform; part of the keys of cached features.
FRONT_END = {"rate": SAMPLE_RATE, "window": WINDOW, "hop": HOP, "mel": [MEL_BINS, LOWEST, HIGHEST]}


class LogMel(nn.Module):
    """Compute log-mel spectrograms in dB, ``[B, frames, 64]``, of waveforms at 32 kHz, ``[B, samples]``.

    The number of frames is samples // 320 + 1. Digital silence is -100 dB. Everything is computed in float32, under
    autocast too, because the power of a spectrum over- and underflows in half precision.
    """

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = melscale_fbanks(
            WINDOW // 2 + 1, LOWEST, HIGHEST, MEL_BINS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        # Not part of the state: published checkpoints hold arrays of their own front-end, which are dropped.
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return the spectrograms, ``[B, frames, 64]``."""
        with torch.autocast(waveforms.device.type, enabled=False):
            spectrum = torch.stft(
                waveforms.float(), WINDOW, HOP, window=self.window, return_complex=True
            )  # [B, F, frames]
            power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)  # abs() would take a root first
            decibels: Tensor = 10 * (power.transpose(1, 2) @ self.filters).clamp(min=1e-10).log10()
            return decibels


class SpecAugment(nn.Module):
    """Set stripes of log-mel spectrograms ``[B, 1, T, F]`` to 0 in train mode (Park et al. 2019).

    The sizes are those of the published code: two stripes of up to 63 frames and two of up to 7 mel bins, drawn for
    every clip separately. The module follows bn0, where 0 is near the mean.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stripes = nn.Sequential(
            *(TimeMasking(64, iid_masks=True) for _ in range(2)),
            *(FrequencyMasking(8, iid_masks=True) for _ in range(2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the spectrograms, masked in train mode."""
        masked: Tensor = self.stripes(x.transpose(2, 3)).transpose(2, 3) if self.training else x
        return masked
