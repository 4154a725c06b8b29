"""Audio files in every format that is decoded, made by soundfile and by PyAV, whole and damaged."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

RATES = {1: 32, 2: 40, 3: 48, 4: 56, 5: 64, 6: 80, 7: 96, 8: 112, 9: 128, 10: 160, 11: 192, 12: 224, 13: 256, 14: 320}


def noise(rate: int, seconds: float, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, round(rate * seconds)).astype(np.float32)


def wav(
    rate: int, data: bytes, *, bits: int = 16, riff: int | None = None, promised: int | None = None, chunks: bytes = b""
) -> bytes:
    """Return a WAV file of one channel, whose header may promise other lengths than it has."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * bits // 8, bits // 8, bits)
    riff = 4 + len(form) + len(chunks) + 8 + len(data) if riff is None else riff
    promised = len(data) if promised is None else promised
    return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + form + chunks + struct.pack("<4sI", b"data", promised) + data


def by_soundfile(container: str, subtype: str, rate: int = 44_100) -> Callable[[Path, float], None]:
    return lambda path, seconds: soundfile.write(path, noise(rate, seconds), rate, subtype, format=container)


def by_ffmpeg(form: str, codec: str, rate: int = 44_100, **options: str) -> Callable[[Path, float], None]:
    def write(path: Path, seconds: float) -> None:
        with av.open(str(path), "w", format=form, options=options) as container:
            stream: Any = container.add_stream(codec, rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray(noise(rate, seconds)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)

    return write


# File names, and functions that write that file with so many seconds of noise. Of the first, half is told from whole.
KNOW_THEIR_LENGTH: dict[str, Callable[[Path, float], None]] = {
    "16.wav": by_soundfile("WAV", "PCM_16"),
    "8.wav": by_soundfile("WAV", "PCM_U8"),
    "float.wav": by_soundfile("WAV", "FLOAT"),
    "gsm.wav": by_soundfile("WAV", "GSM610", 8_000),
    "adpcm.wav": by_soundfile("WAV", "MS_ADPCM"),
    "long.wav": by_soundfile("RF64", "PCM_16"),
    "a.w64": by_soundfile("W64", "PCM_16"),
    "a.aiff": by_soundfile("AIFF", "PCM_16"),
    "a.au": by_soundfile("AU", "PCM_16"),
    "a.caf": by_soundfile("CAF", "PCM_16"),
    "alac.caf": by_soundfile("CAF", "ALAC_16"),
    "a.flac": by_soundfile("FLAC", "PCM_16"),
    "24.flac": by_soundfile("FLAC", "PCM_24"),
    "vorbis.ogg": by_soundfile("OGG", "VORBIS"),
    "opus.ogg": by_soundfile("OGG", "OPUS", 48_000),
    "flac.ogg": by_ffmpeg("ogg", "flac"),
    "a.mp3": by_soundfile("MP3", "MPEG_LAYER_III"),
    "lame.mp3": by_ffmpeg("mp3", "libmp3lame"),
    "fast.m4a": by_ffmpeg("mp4", "aac", movflags="faststart"),
    "parts.m4a": by_ffmpeg("mp4", "aac", movflags="frag_keyframe+empty_moov+default_base_moof"),
    "opus.webm": by_ffmpeg("webm", "libopus", 48_000),
    "aac.mka": by_ffmpeg("matroska", "aac"),
    "a.flv": by_ffmpeg("flv", "libmp3lame"),
    "a.avi": by_ffmpeg("avi", "libmp3lame"),
    "a.tta": by_ffmpeg("tta", "tta"),
    "a.wv": by_ffmpeg("wv", "wavpack"),
    "a.m4a": by_ffmpeg("ipod", "aac"),
    "alac.m4a": by_ffmpeg("ipod", "alac"),
}
OTHERS = {
    "live.webm": by_ffmpeg("webm", "libopus", 48_000, live="1"),
    "ac3.mka": by_ffmpeg("matroska", "ac3", live="1"),
    "bare.mp3": by_ffmpeg("mp3", "libmp3lame", write_xing="0"),
    "a.mp2": by_ffmpeg("mp2", "mp2"),
    "a.aac": by_ffmpeg("adts", "aac"),
    "a.ac3": by_ffmpeg("ac3", "ac3"),
}
FORMATS = {**KNOW_THEIR_LENGTH, **OTHERS}


def mp3_frames(mp3: bytes) -> list[bytes]:
    """Return the frames of an MP3 of 44.1 kHz; the first one states their number, where the encoder wrote it."""
    at, found = 0, []
    while at + 4 <= len(mp3):
        size = 144_000 * RATES[mp3[at + 2] >> 4] // 44_100 + (mp3[at + 2] >> 1 & 1)
        found.append(mp3[at : at + size])
        at += size
    return found


def open_ended(ogg: bytes) -> bytes:
    """Return an Ogg file without the flag that its last page is the last, as recorders of telephones write it."""
    content = bytearray(ogg)
    last = content.rindex(b"OggS")
    content[last + 5] &= ~4
    content[last + 22 : last + 26] = bytes(4)
    checksum = 0
    for byte in content[last:]:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ 0x04C11DB7 if checksum & 0x80000000 else checksum << 1) & 0xFFFFFFFF
    content[last + 22 : last + 26] = checksum.to_bytes(4, "little")
    return bytes(content)
