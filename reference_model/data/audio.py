"""Audio files: finding and checking them, reading them as waveforms at 32 kHz, and writing those."""

import functools
import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.transforms import Resample
from tqdm import tqdm

from reference_model import InputError

SAMPLE_RATE = 32_000  # Hz, of every waveform in memory; section 3.2
HOP = 320  # samples between the frames of a spectrogram; section 3.2
SHORTEST = 31 * HOP  # samples; ResNet-38 halves time five times, and of a shorter clip nothing would remain

# The usual names of the formats that libsndfile reads.
SUFFIXES = frozenset(
    (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64")
)


class Fault(NamedTuple):
    """The reason why an audio file cannot be used."""

    status: str  # "missing", "unreadable", "truncated"; of a decoded one also "too short" or "silent"
    reason: str


def find_fault(path: Path) -> Fault | None:
    """Check the header, the size and the last sample of an audio file, without decoding all of it."""
    try:
        if not path.exists():
            return Fault("missing", "no such file")
        if not path.is_file():
            return Fault("unreadable", "no file, but a folder or the like")
        size = path.stat().st_size
        if size == 0:
            return Fault("unreadable", "empty (0 bytes)")
        with path.open("rb") as file:
            start = file.read(12)
        if start[:4] == b"RIFF" and start[8:] == b"WAVE":
            (promised,) = struct.unpack("<I", start[4:8])
            # Programs that stream leave 0 or 2^32 - 1 for "unknown"; some omit the last byte of padding.
            if promised not in (0, 2**32 - 1) and promised + 8 > size + 8:
                return Fault("truncated", f"{size} of {promised + 8} bytes")
        with soundfile.SoundFile(path) as audio:
            if audio.frames == 0:
                return Fault("unreadable", "empty (no samples)")
            audio.seek(audio.frames - 1)
            if len(audio.read(1)) != 1:
                return Fault("truncated", "its last sample cannot be read")
    except soundfile.LibsndfileError as error:
        return Fault("unreadable", f"not readable as audio ({error.error_string})")
    except UnicodeEncodeError:
        return Fault("unreadable", "its name is not UTF-8")
    except (OSError, RuntimeError) as error:
        return Fault("unreadable", f"not readable ({error})")
    return None


def audio_files_in(folder: Path) -> Iterator[str]:
    """Yield the audio files in a folder and its subfolders, by their names relative to it, in no particular order.

    Audio files are recognised by their suffixes, in capitals or not. Links are followed, and no folder is entered
    twice. Names that begin with a dot are left out.
    """
    entered: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.relpath(os.path.join(parent, name), folder)


def check_audio(files: Iterable[Path]) -> None:
    """Check all files before any of them is used; the InputError names every one that is not readable as audio."""
    paths = list(files)
    with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
        faults = list(tqdm(pool.map(find_fault, paths), "checking audio files", len(paths), leave=False, unit="file"))
    bad = [f"  {path}: {': '.join(found)}" for path, found in zip(paths, faults, strict=True) if found]
    if bad:
        raise InputError("\n".join([f"expected readable audio, got {len(bad)} bad of {len(paths)} files:", *bad]))


@functools.cache
def _resampler(rate: int) -> Resample:
    """Resample to 32 kHz with a windowed sinc; the constants are those of librosa's "kaiser_best"."""
    width, rolloff, beta = 64, 0.9475937167399596, 14.769656459379492
    return Resample(rate, SAMPLE_RATE, "sinc_interp_kaiser", width, rolloff, beta)


def decode(path: Path, seconds: float | None = None) -> Tensor:
    """Decode an audio file of any rate and channel count to 32 kHz mono, ``[samples]``: the resampled channel mean.

    With ``seconds``, only this much of its beginning is decoded, and a little more for the resampling filter. Files
    that cannot be decoded, and samples that are not finite, are an InputError.
    """
    try:
        with soundfile.SoundFile(path) as audio:
            rate = audio.samplerate
            frames = -1 if seconds is None else int((seconds + 0.1) * rate) + 1
            decoded = audio.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise InputError(f"expected readable audio, got {path}: {error}") from error
    if not np.isfinite(decoded).all():
        raise InputError(f"expected finite samples, got NaN or inf in {path}")
    waveform = torch.from_numpy(decoded).mean(1)
    return waveform if rate == SAMPLE_RATE else _resampler(rate)(waveform)


def load_waveform(path: Path, seconds: float) -> Tensor:
    """Decode an audio file to 32 kHz mono of a fixed length, ``[samples]``, cut or zero-padded at its end."""
    samples = round(seconds * SAMPLE_RATE)
    waveform = decode(path, seconds)[:samples]
    return torch.nn.functional.pad(waveform, (0, samples - len(waveform)))


def write_wav(path: Path, waveform: Tensor, modified: int) -> None:
    """Write 32 kHz mono, ``[samples]``, as WAV of 32-bit floats, last modified at a time in nanoseconds.

    libsndfile would write the time of day into the file, and the same clip would have another checksum every time.
    """
    samples = waveform.numpy().astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32)  # 3: floats
    fact = struct.pack("<4sII", b"fact", 4, len(waveform))
    data = struct.pack("<4sI", b"data", len(samples))
    chunks = b"WAVE" + form + fact + data + samples
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(chunks)) + chunks)
    os.utime(path, ns=(modified, modified))
