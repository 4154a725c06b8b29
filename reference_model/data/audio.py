"""Audio files: finding and checking them, reading them as waveforms, and writing those at 32 kHz."""

import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import av
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from reference_model import InputError
from reference_model.data.containers import UNKNOWN_LENGTH
from reference_model.data.decoding import TOLERANCE, AudioInfo, Fault, inspect, mono_blocks
from reference_model.data.resampling import resample

SAMPLE_RATE = 32_000  # Hz, of prepared files, and of waveforms unless an encoder asks for others; section 3.2
HOP = 320  # samples between the frames of a spectrogram; section 3.2
SHORTEST = 31 * HOP  # samples; ResNet-38 halves time five times, and of a shorter clip nothing would remain
LONGEST = 300  # seconds; what follows in longer files is never decoded

# The usual names of the formats that are decoded, those first that are preferred where a clip is there in several.
_NAMES = "wav flac ogg mp3 opus m4a aif webm oga weba mka mkv mp4 m4b mov 3gp aac wma mp2 mpga aiff aifc au snd caf w64"
_RARE_NAMES = "rf64 wv tta ape ac3 eac3 amr avi flv"
SUFFIXES = tuple(f".{name}" for name in f"{_NAMES} {_RARE_NAMES}".split())


def inspect_audio(path: Path) -> AudioInfo | Fault:
    """Return format and length of an audio file, or why it cannot be used; it is read to its end, but not decoded."""
    try:
        str(path).encode()
        if not path.exists():
            return Fault("missing", "no such file")
        if not path.is_file():
            return Fault("unreadable", "no file, but a folder or the like")
        size = path.stat().st_size
        if size == 0:
            return Fault("unreadable", "empty (0 bytes)")
        samples = _prepared_samples(path)
        if samples is None:
            return inspect(path)
        whole = len(_wav_header(samples)) + 4 * samples
        if size < whole:
            return Fault("truncated", f"{size} of {whole} bytes")
        return AudioInfo(SAMPLE_RATE, 1, samples, exact=True) if samples else Fault("unreadable", "empty (no samples)")
    except UnicodeEncodeError:
        return Fault("unreadable", "its name is not UTF-8")
    except Exception as error:  # whatever a decoder raises, it is this file's fault alone
        return Fault("unreadable", _reason(error))


def samples_when_decoded(info: AudioInfo) -> tuple[int, int]:
    """Return how many samples at 32 kHz :func:`decode` makes of a file, and how many more or fewer it may be."""
    samples = -(-info.samples * SAMPLE_RATE // info.rate)
    return min(samples, LONGEST * SAMPLE_RATE), 0 if info.exact else round(2 * TOLERANCE * SAMPLE_RATE)


def find_fault(path: Path) -> Fault | None:
    """Check an audio file to its end, without decoding it."""
    found = inspect_audio(path)
    return found if isinstance(found, Fault) else None


def _reason(error: Exception) -> str:
    """Return what a decoder said, without the name of the file."""
    said = error.strerror if isinstance(error, OSError | av.FFmpegError) else str(error)
    return f"not readable as audio ({said or type(error).__name__})"


def audio_files_in(folder: Path) -> Iterator[str]:
    """Yield the audio files in a folder and its subfolders, by their names relative to it, in no particular order.

    Audio files are recognised by their suffixes, in capitals or not. Links are followed, and no folder is entered
    twice. Names that begin with a dot are left out.
    """
    return (name for name, other in _files_in(folder) if not other)


def passed_over(folder: Path) -> Counter[str]:
    """Count the files and folders that :func:`audio_files_in` leaves out, by what they are."""
    return Counter(other for _, other in _files_in(folder) if other)


def _files_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield every file in a folder, and what it is if it is no audio."""
    entered: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        for name in (*files, *folders):
            whole = os.path.relpath(os.path.join(parent, name), folder)
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                yield whole, "hidden"
            elif name in folders:
                continue
            else:
                yield whole, "" if suffix in SUFFIXES else suffix or "without a suffix"
        folders[:] = [name for name in folders if not name.startswith(".")]


def check_audio(files: Iterable[Path]) -> None:
    """Check all files before any of them is used; the InputError names every one that is not readable as audio."""
    paths = list(files)
    with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
        faults = list(tqdm(pool.map(find_fault, paths), "checking audio files", len(paths), leave=False, unit="file"))
    bad = [f"  {path}: {': '.join(found)}" for path, found in zip(paths, faults, strict=True) if found]
    if bad:
        raise InputError("\n".join([f"expected readable audio, got {len(bad)} bad of {len(paths)} files:", *bad]))


def decode(path: Path, seconds: float | None = None, rate: int = SAMPLE_RATE) -> Tensor:
    """Decode an audio file of any rate and channel count to mono at ``rate`` Hz, ``[samples]``: the resampled mean.

    With ``seconds``, only this much of its beginning is decoded, and a little more for the resampling filter; without,
    ``LONGEST`` seconds at most. That takes 1 GB at 192 kHz and 0.5 GB at 48 kHz, whatever the file promises. Files that
    cannot be decoded, and samples that are not finite, are an InputError.
    """
    limit = LONGEST if seconds is None else min(seconds, LONGEST)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no file, but a folder or the like")
        is_prepared = path.is_file() and _prepared_samples(path) is not None
        blocks = _prepared_blocks(path, limit) if is_prepared else mono_blocks(path, limit)
        stored_rate, first = next(blocks)
        waveform = resample(
            (_finite(block, path) for block in chain([first], (b for _, b in blocks))), stored_rate, rate
        )
    except InputError:
        raise
    except StopIteration:
        raise InputError(f"expected readable audio, got {path}: empty (no samples)") from None
    except Exception as error:  # whatever a decoder raises, it is this file's fault alone
        raise InputError(f"expected readable audio, got {path}: {_reason(error)}") from error
    return waveform if seconds is not None else waveform[: LONGEST * rate]


def _finite(block: Tensor, path: Path) -> Tensor:
    if not block.isfinite().all():
        raise InputError(f"expected finite samples, got NaN or inf in {path}")
    return block


def _prepared_blocks(path: Path, seconds: float) -> Iterator[tuple[int, Tensor]]:
    """Read the beginning of a file that :func:`write_wav` wrote, as :func:`mono_blocks` does, in one block."""
    with soundfile.SoundFile(path) as audio:
        block = torch.from_numpy(audio.read(int((seconds + 0.1) * SAMPLE_RATE) + 1, dtype="float32"))
    if len(block):
        yield SAMPLE_RATE, block


def load_waveform(path: Path, seconds: float, rate: int = SAMPLE_RATE) -> Tensor:
    """Decode an audio file to mono at ``rate`` Hz of a fixed length, ``[samples]``, cut or zero-padded at its end."""
    samples = round(seconds * rate)
    waveform = decode(path, seconds, rate)[:samples]
    return torch.nn.functional.pad(waveform, (0, samples - len(waveform)))


def write_wav(path: Path, waveform: Tensor, modified: int) -> None:
    """Write 32 kHz mono, ``[samples]``, as WAV of 32-bit floats, last modified at a time in nanoseconds.

    libsndfile would write the time of day into the file, and the same clip would have another checksum every time.
    """
    path.write_bytes(_wav_header(len(waveform)) + waveform.numpy().astype("<f4").tobytes())
    os.utime(path, ns=(modified, modified))


def _wav_header(samples: int) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32)  # 3: floats
    fact = struct.pack("<4sII", b"fact", 4, samples)
    data = struct.pack("<4sI", b"data", 4 * samples)
    chunks = b"WAVE" + form + fact + data
    return struct.pack("<4sI", b"RIFF", len(chunks) + 4 * samples) + chunks


def _prepared_samples(path: Path) -> int | None:
    """Return the number of samples that a file written by :func:`write_wav` promises; None: it is another file."""
    with path.open("rb") as file:
        header = file.read(len(_wav_header(0)))
    samples = int.from_bytes(header[-4:], "little") // 4
    return samples if 4 * samples < UNKNOWN_LENGTH and header == _wav_header(samples) else None
