"""Decoding of downloaded audio with FFmpeg, packet by packet: as much as is asked for is ever in memory."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from torch import Tensor

from reference_model.data.containers import UNKNOWN_LENGTH, missing_end, promised_mp3_frames

# FFmpeg's names of the formats that hold their sound themselves. Playlists, which FFmpeg reads too, name other files.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,eac3,epaf,flac,flv,iff,ircam,matroska,mov,mp3,mpegts,nistsphere,ogg,tta,"
    "voc,w64,wav,wv"
)
_SAY_THEIR_LENGTH = ("aiff", "ape", "au", "avi", "caf", "flac", "mov,mp4,m4a,3gp,3g2,mj2", "nistsphere", "tta", "wv")
_SAY_IT_FOR_ALL_STREAMS = ("flv", "matroska,webm")
_LOSSLESS = ("ape", "flac", "tta", "wavpack")
TOLERANCE = Fraction(1, 10)  # seconds, of lengths of lossy audio: codecs pad both ends


class Fault(NamedTuple):
    """The reason why an audio file cannot be used."""

    status: str  # "missing", "unreadable", "truncated"; of a decoded one also "too short" or "silent"
    reason: str


class AudioInfo(NamedTuple):
    """The format and the length of an audio file."""

    rate: int  # Hz
    channels: int
    samples: int  # of each channel
    exact: bool  # whether decoding gives just as many samples; otherwise about as many

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return self.samples / self.rate


def inspect(path: Path) -> AudioInfo | Fault:
    """Read an audio file to its end without decoding it; any exception means that it is no readable audio."""
    with path.open("rb") as file:
        missing, frames = missing_end(file, path.stat().st_size), promised_mp3_frames(file)
    if missing is not None:
        return Fault("truncated", missing)
    with _opened(path) as (container, stream):
        context = stream.codec_context
        rate, channels, form = context.sample_rate, context.layout.nb_channels, container.format.name
        whole, exact = _promised_seconds(container, stream), _is_exact(container, stream)
        packets, seconds, last_is_whole = _seconds_of_packets(container, stream)
    if form == "mp3" and frames is not None and packets < frames - 2:
        return Fault("truncated", f"{packets} of {frames} frames")
    if whole is not None and (seconds < whole - (0 if exact else TOLERANCE) or not last_is_whole):
        return Fault("truncated", f"less than the {float(whole):.2f} s that it promises")
    if not packets:
        return Fault("unreadable", "empty (no samples)")
    return AudioInfo(rate, channels, round(seconds * rate), exact)


def mono_blocks(path: Path, seconds: float) -> Iterator[tuple[int, Tensor]]:
    """Decode the beginning of an audio file; yields its rate with the mean of its channels, ``[samples]``, in blocks.

    At least ``seconds`` are decoded, and a little more for the filter that resamples them.
    """
    rate = remaining = 0
    for frame in _frames(path):
        if not rate:
            rate = frame.sample_rate
            remaining = int(seconds * rate + max(0.1 * rate, 200)) + 1
        if frame.sample_rate != rate:
            raise ValueError(f"{rate} Hz at first, then {frame.sample_rate} Hz")
        block = _samples(frame)[:remaining].mean(1)
        remaining -= len(block)
        yield rate, block
        if not remaining:
            return


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, AudioStream]]:
    """Open an audio file, and yield it with its stream of audio; pictures and films in it are never decoded."""
    options = {"format_whitelist": FORMATS, "codec_whitelist": _audio_decoders()}
    options["max_probe_packets"] = "1"  # or it would read 5 MB of each WAV file, looking for DTS in it
    # A file, not its name: FFmpeg takes some names for those of protocols.
    with path.open("rb") as file, av.open(file, container_options=options, metadata_errors="replace") as container:
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream):
            raise ValueError("no sound in it")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
        yield container, stream


@functools.cache
def _audio_decoders() -> str:
    """Return the names of FFmpeg's decoders of audio."""
    names = []
    for name in av.codecs_available:
        with suppress(av.codec.codec.UnknownCodecError):  # it only encodes
            if av.Codec(name, "r").type == "audio":
                names.append(name)
    return ",".join(sorted(names))


def _is_exact(container: InputContainer, stream: AudioStream) -> bool:
    """Return whether the lengths of packets and headers are those of what is decoded, to the sample."""
    name = stream.codec_context.name
    return container.format.name not in _SAY_IT_FOR_ALL_STREAMS and (name.startswith("pcm_") or name in _LOSSLESS)


def _promised_seconds(container: InputContainer, stream: AudioStream) -> Fraction | None:
    """Return the length that the header states; None where there is none, or where FFmpeg only guesses it."""
    promised = None
    if container.format.name in _SAY_THEIR_LENGTH and stream.duration and stream.time_base:
        promised = stream.duration * stream.time_base
    elif container.format.name in _SAY_IT_FOR_ALL_STREAMS and stream.duration is None and container.duration:
        promised = Fraction(container.duration, av.time_base)
    context = stream.codec_context
    if promised is None or not context.sample_rate:
        return None
    if context.name.startswith("pcm_"):
        promised = max(promised, Fraction(stream.frames, context.sample_rate))
    bytes_promised = promised * context.sample_rate * context.format.bytes * context.layout.nb_channels
    return promised if bytes_promised < UNKNOWN_LENGTH else None


def _seconds_of_packets(container: InputContainer, stream: AudioStream) -> tuple[int, Fraction, bool]:
    """Read all packets; return their number, their length, and whether the last one is whole, which FLAC knows."""
    packets = length = end = 0
    last = None
    for packet in _packets(container, stream):
        if packet.size:
            packets, last = packets + 1, packet
            duration = packet.duration or 0
            if duration >= 2**31:  # the last packet of short Vorbis ends before it begins, and FFmpeg has no sign here
                duration -= 2**32
            length += duration
            end = max(end, (packet.pts or 0) + duration)
    is_whole = True
    if stream.codec_context.name == "flac" and last is not None:
        try:
            stream.codec_context.decode(last)
        except av.FFmpegError:
            is_whole = False
    return packets, max(length, end) * (stream.time_base or Fraction(0)), is_whole


def _packets(container: InputContainer, stream: AudioStream) -> "Iterator[av.Packet[Any]]":
    """Yield the packets of a file, and at its end an empty one; tags and zeros after the sound may be no packets."""
    with suppress(av.InvalidDataError, av.ArgumentError):
        yield from (packet for packet in container.demux(stream) if packet.size)
    yield av.Packet()


def _frames(path: Path) -> Iterator[AudioFrame]:
    """Yield what is decoded, and see that a lossless file gives all that it promises.

    A few packets of lossy audio may fail: a cut MP3 begins in the middle of its bit reservoir.
    """
    with _opened(path) as (container, stream):
        promised, exact = _promised_seconds(container, stream), _is_exact(container, stream)
        failed, samples, spared = 0, 0, 0 if exact else 3
        for packets, packet in enumerate(_packets(container, stream)):
            try:
                for frame in stream.decode(packet if packet.size else None):
                    samples += frame.samples
                    yield frame
            except av.FFmpegError as error:
                failed += 1
                if failed > spared + spared * packets // 30:
                    raise ValueError(f"{failed} of {packets} packets cannot be decoded ({error.strerror})") from error
        seconds = Fraction(samples, stream.codec_context.sample_rate or 1)
        if exact and promised is not None and seconds < promised:
            raise ValueError(f"{float(seconds):.2f} of {float(promised):.2f} s")


def _samples(frame: AudioFrame) -> Tensor:
    """Return float32 ``[samples, channels]``; integers become fractions of their largest, as libsndfile does."""
    decoded = frame.to_ndarray()
    decoded = decoded.T if frame.format.is_planar else decoded.reshape(-1, frame.layout.nb_channels)
    samples = np.ascontiguousarray(decoded, np.float32)
    if decoded.dtype == np.uint8:
        samples -= 128
        samples /= 128
    elif decoded.dtype.kind == "i":
        samples /= 2.0 ** (8 * decoded.itemsize - 1)
    return torch.from_numpy(samples)
