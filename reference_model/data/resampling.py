"""Resampling in bounded memory, from any rate."""

import functools
import math
from collections.abc import Iterable

import numpy as np
import soxr
import torch
from torch import Tensor
from torchaudio.transforms import Resample

HIGHEST_USUAL = 192_000  # Hz
LARGEST_KERNEL = 2**22  # samples, 16 MB
WIDTH = 64  # zero crossings on each side of the filter


def is_usual(rate: int, target: int) -> bool:
    """Return whether a rate has a filter of bounded size, as all usual ones do: 8, 11.025, 16, 22.05, 44.1, 48 kHz.

    A sinc filter has a phase for every sample of the target within the period of both rates: two for 48 to 32 kHz,
    320 for 44.1, and 16,000 for 22.254 kHz, which would be 180 million samples.
    """
    divisor = math.gcd(rate, target)
    phases, period = target // divisor, rate // divisor
    return rate <= HIGHEST_USUAL and phases * (period + 2 * WIDTH * max(1, period / phases)) <= LARGEST_KERNEL


def resample(blocks: Iterable[Tensor], rate: int, target: int) -> Tensor:
    """Return blocks of a waveform, ``[samples]`` each, as one at another rate, ``[ceil(samples * target / rate)]``.

    The usual rates have a windowed sinc with the constants of librosa's "kaiser_best". Others are resampled block by
    block, by the highest quality of soxr.
    """
    if rate == target or is_usual(rate, target):
        waveform = torch.cat(list(blocks))
        return waveform if rate == target else _kaiser_best(rate, target)(waveform)
    stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="VHQ")
    samples, resampled = 0, []
    for block in blocks:
        samples += len(block)
        resampled.append(stream.resample_chunk(block.numpy()))
    resampled.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    waveform = torch.from_numpy(np.concatenate(resampled))
    expected = -(-samples * target // rate)
    return torch.nn.functional.pad(waveform[:expected], (0, max(0, expected - len(waveform))))


@functools.lru_cache(maxsize=8)
def _kaiser_best(rate: int, target: int) -> Resample:
    return Resample(rate, target, "sinc_interp_kaiser", WIDTH, 0.9475937167399596, 14.769656459379492)
