"""Any audio file becomes 32 kHz mono, and every file that cannot be read is named before training starts."""

from pathlib import Path
from typing import Any

import miniature
import numpy as np
import pytest
import soundfile
import torch

from reference_model import InputError
from reference_model.data.audio import (
    audio_files_in,
    check_audio,
    find_fault,
    inspect_audio,
    load_waveform,
    passed_over,
    write_wav,
)


def sine(rate: int, seconds: float, frequency: float = 440) -> np.ndarray[Any, Any]:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    kinds = ["no file", "0 bytes", "header only", "text", "folder", "no samples", "half"]
    bad = [*(tmp_path / f"{kind}.wav" for kind in kinds), tmp_path / "half.flac"]
    good = [tmp_path / "good.wav", tmp_path / "good.flac"]
    for path in [*bad, *good]:
        soundfile.write(path, sine(44_100, 2), 44_100)
    for path in bad:
        miniature.spoil(path, path.stem)
    bad.append(tmp_path / ("x" * 300 + ".wav"))
    with pytest.raises(InputError) as refusal:
        check_audio([*bad, *good])
    first, *lines = str(refusal.value).splitlines()
    assert first == "expected readable audio, got 9 bad of 11 files:"
    assert [line.split(": ")[0].strip() for line in lines] == [str(path) for path in bad]
    check_audio(good)


def test_streamed_files_without_a_size_are_accepted(tmp_path: Path) -> None:
    """Programs that write WAV into a pipe leave the largest number instead of the size."""
    path = tmp_path / "streamed.wav"
    soundfile.write(path, sine(32_000, 1), 32_000)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff\xff\xff\xff" + whole[8:40] + b"\xff\xff\xff\xff" + whole[44:])
    check_audio([path])
    assert load_waveform(path, 1).abs().max() > 0.4


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("file", [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")])
def test_any_format_becomes_32_kHz_mono(tmp_path: Path, rate: int, channels: int, file: tuple[str, str]) -> None:
    """The mean of channels with a sine at different levels is that sine at the mean level."""
    container, subtype = file
    levels = np.linspace(0.2, 1, channels)
    path = tmp_path / f"x.{container.lower()}"
    soundfile.write(path, sine(rate, 1)[:, None] * levels, rate, subtype, format=container)
    waveform = load_waveform(path, 1)
    assert waveform.shape == (32_000,)
    assert waveform.dtype == torch.float32
    expected = torch.from_numpy(sine(32_000, 1) * levels.mean()).float()
    middle = slice(2_000, 30_000)  # away from the ends, where the filter sees silence
    torch.testing.assert_close(waveform[middle], expected[middle], rtol=0, atol=2e-3)


@pytest.mark.parametrize("frequency, kept", [(14_000, 1.0), (14_800, 0.9), (16_500, 0.0)])
def test_the_resampler_is_kaiser_best(tmp_path: Path, frequency: float, kept: float) -> None:
    """The pass band ends at 0.9476 of 16 kHz, and nothing above 16 kHz remains to alias."""
    path = tmp_path / "x.wav"
    soundfile.write(path, sine(48_000, 1, frequency), 48_000, "FLOAT")
    level = float(load_waveform(path, 1)[4_000:28_000].abs().max()) / 0.5
    assert level == pytest.approx(kept, abs=1e-4 if kept != 0.9 else 0.05)


def test_ogg_and_mp3_are_read(tmp_path: Path) -> None:
    for container in ("OGG", "MP3"):
        path = tmp_path / f"x.{container.lower()}"
        soundfile.write(path, sine(44_100, 1), 44_100, format=container)
        check_audio([path])
        assert float(load_waveform(path, 1).abs().max()) == pytest.approx(0.5, abs=0.05)


def test_clips_are_cut_or_padded_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, sine(44_100, 1), 44_100, "FLOAT")
    long = load_waveform(path, 2)
    assert long.shape == (64_000,)
    assert torch.equal(long[32_100:], torch.zeros(64_000 - 32_100))
    assert torch.equal(load_waveform(path, 0.5), long[:16_000])  # decoding only the beginning changes nothing in it


def test_prepared_files_are_checked_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    write_wav(path, torch.from_numpy(sine(32_000, 1)).float(), 0)
    whole = path.read_bytes()
    assert inspect_audio(path) == (32_000, 1, 32_000, True)
    path.write_bytes(whole[:-1])
    assert find_fault(path) == ("truncated", f"{len(whole) - 1} of {len(whole)} bytes")
    write_wav(path, torch.empty(0), 0)
    assert find_fault(path) == ("unreadable", "empty (no samples)")


def test_files_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    for name in ("a.wav", "b.M4A", "c.txt", "d.TXT", "README", ".hidden.wav", "sub/e.opus", "sub/f.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".index").mkdir()
    (tmp_path / ".index" / "g.wav").touch()
    assert sorted(audio_files_in(tmp_path)) == ["a.wav", "b.M4A", "sub/e.opus"]
    assert passed_over(tmp_path) == {".txt": 2, "without a suffix": 1, "hidden": 2, ".jpg": 1}
