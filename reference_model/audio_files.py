"""Audio files: what is wrong with one, and its waveform at 32 kHz."""

import functools
import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio.transforms import Resample
from tqdm import tqdm

from reference_model import InputError
from reference_model.audio_encoder import SAMPLE_RATE


def _fault(path: Path) -> str | None:
    """What is wrong with an audio file; its header, its end and its size are looked at, not every sample."""
    try:
        if not path.is_file():
            return "missing"
        size = path.stat().st_size
        if size == 0:
            return "empty (0 bytes)"
        with path.open("rb") as file:
            start = file.read(12)
        if start[:4] == b"RIFF" and start[8:] == b"WAVE":
            (promised,) = struct.unpack("<I", start[4:8])
            # Writers that stream leave 0 or 2^32 - 1, "unknown"; some forget the last byte of padding.
            if promised not in (0, 2**32 - 1) and promised + 8 > size + 8:
                return f"truncated ({size} of {promised + 8} bytes)"
        with soundfile.SoundFile(path) as audio:
            if audio.frames == 0:
                return "empty (no samples)"
            audio.seek(audio.frames - 1)
            if len(audio.read(1)) != 1:
                return "truncated (its last sample cannot be read)"
    except soundfile.LibsndfileError as error:
        return f"not readable as audio ({error.error_string})"
    except (OSError, RuntimeError) as error:
        return f"not readable ({error})"
    return None


def check_audio(files: Iterable[Path]) -> None:
    """Look at every file before anything is trained on any of them.

    Raises:
        InputError: files are missing, empty, truncated or no audio; names every one of them.
    """
    paths = list(files)
    with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
        faults = list(tqdm(pool.map(_fault, paths), "checking audio files", len(paths), leave=False, unit="file"))
    bad = [f"  {path}: {fault}" for path, fault in zip(paths, faults, strict=True) if fault]
    if bad:
        raise InputError("\n".join([f"expected readable audio, got {len(bad)} bad of {len(paths)} files:", *bad]))


@functools.cache
def _resampler(rate: int) -> Resample:
    """To 32 kHz by a windowed sinc; these constants are those of librosa's "kaiser_best"."""
    return Resample(
        rate,
        SAMPLE_RATE,
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )


def load_waveform(path: Path, seconds: float) -> Tensor:
    """An audio file of any rate and channel count as 32 kHz mono, ``[samples]``, cut or zero-padded at its end.

    Raises:
        InputError: the file cannot be decoded, or holds samples that are not finite.
    """
    samples = round(seconds * SAMPLE_RATE)
    try:
        with soundfile.SoundFile(path) as audio:
            rate = audio.samplerate
            # What lies beyond the fixed length (and the reach of the resampling filter) need not be decoded.
            decoded = audio.read(int((seconds + 0.1) * rate) + 1, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise InputError(f"expected readable audio, got {path}: {error}") from error
    if not np.isfinite(decoded).all():
        raise InputError(f"expected finite samples, got NaN or inf in {path}")
    waveform = torch.from_numpy(decoded).mean(1)
    if rate != SAMPLE_RATE:
        waveform = _resampler(rate)(waveform)
    waveform = waveform[:samples]
    return torch.nn.functional.pad(waveform, (0, samples - len(waveform)))
