"""Any rate is resampled, in memory that does not depend on it; the usual ones as before."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.transforms import Resample

from reference_model.data.resampling import LARGEST_KERNEL, is_usual, resample

USUAL = (
    8_000,
    11_025,
    12_000,
    16_000,
    22_050,
    24_000,
    37_800,
    44_100,
    48_000,
    64_000,
    88_200,
    96_000,
    176_400,
    192_000,
)
ODD = (7, 13, 1_001, 7_999, 16_001, 22_254, 44_056, 44_099, 44_101, 191_999, 655_350, 2_822_400)


@pytest.mark.parametrize("rate", USUAL)
def test_the_usual_rates_keep_the_filter_kaiser_best(rate: int) -> None:
    waveform = torch.from_numpy(np.random.default_rng(rate).normal(0, 0.1, rate // 3).astype(np.float32))
    kaiser_best = Resample(rate, 32_000, "sinc_interp_kaiser", 64, 0.9475937167399596, 14.769656459379492)
    assert is_usual(rate, 32_000)
    assert torch.equal(resample(waveform.split(1_000), rate, 32_000), kaiser_best(waveform))


@pytest.mark.parametrize("rate", ODD)
def test_odd_rates_keep_length_and_sound(rate: int) -> None:
    assert not is_usual(rate, 32_000)
    samples = max(1, rate // 2 + 1)
    time = torch.arange(samples, dtype=torch.float64) / rate
    frequency = min(440.0, rate / 8)
    waveform = (0.5 * torch.sin(2 * math.pi * frequency * time)).float()
    resampled = resample(waveform.split(10_000), rate, 32_000)
    assert len(resampled) == -(-samples * 32_000 // rate)
    assert torch.equal(resampled, resample([waveform], rate, 32_000))  # blocks change nothing
    if rate > 7_000:
        middle = slice(2_000, 14_000)
        expected = 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(16_000, dtype=torch.float64) / 32_000)
        torch.testing.assert_close(resampled[middle], expected[middle].float(), rtol=0, atol=2e-3)


@given(st.integers(1, 200_000))
def test_no_rate_has_a_large_filter(rate: int) -> None:
    """The number of phases times the length of each, as torchaudio makes them."""
    divisor = math.gcd(rate, 32_000)
    old, new = rate // divisor, 32_000 // divisor
    width = math.ceil(64 * old / (min(old, new) * 0.9475937167399596))
    if is_usual(rate, 32_000):
        assert new * (2 * width + old) <= 1.1 * LARGEST_KERNEL


def test_memory_does_not_depend_on_the_rate() -> None:
    """What a filter of 22,254 Hz alone would take is more than is allowed here."""
    program = """
import resource, torch
from reference_model.data.resampling import resample
torch.set_num_threads(1)
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + (400 << 20), before + (400 << 20)))
for rate in (22_254, 16_001, 44_099, 999_983):
    resample(torch.zeros(rate).split(65_536), rate, 32_000)
"""
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
