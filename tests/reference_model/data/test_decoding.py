"""Whole files are decoded whatever their headers say, cut ones are told from them, and no content does any harm."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sounds
import torch

from reference_model import InputError
from reference_model.data.audio import LONGEST, SAMPLE_RATE, decode, find_fault, inspect_audio
from reference_model.data.decoding import AudioInfo


def length(path: Path) -> float:
    return len(decode(path)) / SAMPLE_RATE


@pytest.mark.parametrize("name", sounds.FORMATS)
def test_whole_files_are_whole_and_halves_are_told_from_them(tmp_path: Path, name: str) -> None:
    """By itself, and with what taggers and downloads leave at its end."""
    path = tmp_path / name
    sounds.FORMATS[name](path, 2)
    whole = path.read_bytes()
    tags = (b"TAG" + b"a" * 125, bytes(1000)) if path.suffix not in (".caf", ".w64") else ()  # nobody tags these
    for rest in (b"", *tags):
        path.write_bytes(whole + rest)
        found = inspect_audio(path)
        assert isinstance(found, AudioInfo), (rest, found)
        assert found.seconds == pytest.approx(2, abs=0.12)
        if not found.exact or not rest:
            assert length(path) == pytest.approx(2, abs=0.1)
    path.write_bytes(whole[: len(whole) // 2])
    fault = find_fault(path)
    if name in sounds.KNOW_THEIR_LENGTH:
        assert fault is not None
        assert fault.status == ("unreadable" if name in ("a.m4a", "alac.m4a") else "truncated")  # their index is last
    else:
        assert fault is None


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_a_first_frame_that_counts(tmp_path: Path, mode: str) -> None:
    """Loud at first and quiet then: the length cannot be guessed from the first frames."""
    path = tmp_path / "a.mp3"
    sound = sounds.noise(44_100, 4) * (np.arange(4 * 44_100) < 44_100) + 0.1 * np.sin(0.03 * np.arange(4 * 44_100))
    soundfile.write(path, sound, 44_100, "MPEG_LAYER_III", format="MP3", compression_level=0.5, bitrate_mode=mode)
    frames = sounds.mp3_frames(path.read_bytes())
    for kept, tag in ((frames[1:], b""), (frames[1:], b"TAG" + b"a" * 125), (frames[9:], b"")):
        path.write_bytes(b"".join(kept) + tag)
        assert find_fault(path) is None
        assert length(path) == pytest.approx(1152 * len(kept) / 44_100, abs=0.06)
    path.write_bytes(b"".join(frames[: len(frames) // 2]))
    assert (find_fault(path) or ("",))[0] == "truncated"


def test_files_of_unknown_length_and_tags_before_the_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    sounds.by_soundfile("FLAC", "PCM_16")(path, 1)
    flac = path.read_bytes()
    piped = flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]
    tag = b"ID3\x04\0\0\0\0\0\x10" + bytes(16)
    ogg = tmp_path / "a.ogg"
    sounds.by_soundfile("OGG", "OPUS", 48_000)(ogg, 1)
    for content in (piped, tag + flac, tag + piped, sounds.open_ended(ogg.read_bytes())):
        path.write_bytes(content)
        assert find_fault(path) is None
        assert length(path) == pytest.approx(1, abs=0.02)
    path.write_bytes(sounds.wav(8_000, bytes(range(200)) * 80, promised=0x7FFFF000, riff=0x7FFFF024))
    assert find_fault(path) is None
    assert length(path) == 1


def test_a_damaged_flac_is_not_decoded_in_part(tmp_path: Path) -> None:
    """Its checksums tell; libsndfile and FFmpeg would otherwise leave a hole, or noise."""
    path = tmp_path / "a.flac"
    sounds.by_soundfile("FLAC", "PCM_16")(path, 1)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    sound = decode(path)
    for at in random.integers(9_000, len(whole), 30):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(random.integers(8))]) + whole[at + 1 :])
        with suppress(InputError):
            assert torch.equal(decode(path), sound)


def test_files_that_name_other_files_are_no_audio(tmp_path: Path) -> None:
    """FFmpeg would read the playlist's file, or fetch it."""
    other = tmp_path / "other.wav"
    sounds.by_soundfile("WAV", "PCM_16")(other, 1)
    path = tmp_path / "a.wav"
    for text in (
        "ffconcat version 1.0\nfile other.wav\n",
        f"ffconcat version 1.0\nfile '{other}'\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ):
        path.write_text(text)
        assert (find_fault(path) or ("",))[0] == "unreadable"
        with pytest.raises(InputError, match=r"expected readable audio, got .*a\.wav: not readable as audio"):
            decode(path)
    for name in ("concat:other.wav|other.wav", "file:other.wav", "data:audio.wav"):
        (tmp_path / name).write_bytes(other.read_bytes())
        assert find_fault(tmp_path / name) is None


@pytest.mark.parametrize("rate", [1, 50, 8_000, 44_100])
def test_only_the_beginning_of_a_long_file_is_decoded(tmp_path: Path, rate: int) -> None:
    """A rate of 1 Hz makes 720 kB last for 200 hours, which would be 92 GB at 32 kHz."""
    path = tmp_path / "long.wav"
    path.write_bytes(sounds.wav(rate, bytes(range(1, 251)) * (LONGEST * rate // 250 + 4_000), bits=8))
    assert find_fault(path) is None
    assert len(decode(path)) == LONGEST * SAMPLE_RATE
    assert len(decode(path, 2.0)) < 2.2 * SAMPLE_RATE + 210 * SAMPLE_RATE / rate


def test_a_flac_that_grows_beyond_memory_is_cut(tmp_path: Path) -> None:
    """Silence takes 14 bytes for 4,608 samples: 20 hours in a megabyte, and a header may promise more."""
    path = tmp_path / "bomb.flac"
    soundfile.write(path, np.zeros(44_100 * 1_000, np.int16), 44_100, "PCM_16", format="FLAC")
    assert path.stat().st_size < 1_000_000
    assert len(decode(path)) == LONGEST * SAMPLE_RATE


def test_mutated_files_end_in_a_status_or_in_sound(tmp_path: Path) -> None:
    """1,000 files with bytes replaced, cut out, or doubled; half of the changes are in the header."""
    random = np.random.default_rng(0)
    whole = {}
    for name, write in sounds.FORMATS.items():
        write(tmp_path / name, 0.2)
        whole[name] = (tmp_path / name).read_bytes()
    refused = 0
    for k in range(1_000):
        name = list(whole)[k % len(whole)]
        content = bytearray(whole[name])
        for _ in range(int(random.integers(1, 6))):
            end = min(len(content), 200) if random.integers(2) else len(content)
            at, size = int(random.integers(end)), int(random.integers(1, 9))
            kind = int(random.integers(4))
            if kind == 0:
                del content[at : at + size * 20]
            elif kind == 1:
                content[at:at] = content[at : at + size]
            elif kind == 2:
                content[at : at + size] = b"\xff" * size
            else:
                content[at : at + size] = random.bytes(size)
        (tmp_path / name).write_bytes(content)
        found = inspect_audio(tmp_path / name)
        try:
            waveform = decode(tmp_path / name)
        except InputError:
            refused += 1
        else:
            assert waveform.isfinite().all()
            assert len(waveform) <= LONGEST * SAMPLE_RATE
        assert isinstance(found, AudioInfo) or found.status in ("unreadable", "truncated")
    assert 100 < refused < 900


@pytest.mark.parametrize("samples", [400, 2_000, 5_715, 5_888, 6_000, 20_001])
def test_lengths_of_short_vorbis(tmp_path: Path, samples: int) -> None:
    """The last block may reach beyond the end by more than it has. FFmpeg errs by a block where all is one page."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, sounds.noise(8_000, samples / 8_000), 8_000, "VORBIS", format="OGG")
    found = inspect_audio(path)
    assert isinstance(found, AudioInfo)
    assert found.samples == pytest.approx(samples, abs=800)
    assert length(path) == pytest.approx(samples / 8_000, abs=0.033)
