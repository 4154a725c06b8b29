"""Headers that promise too much, or nothing, are told from files whose end is missing."""

import io
import struct
from pathlib import Path

import pytest
import sounds
from hypothesis import given
from hypothesis import strategies as st

from reference_model.data.containers import missing_end, promised_mp3_frames

DATA = bytes(range(250)) * 4


def end_of(content: bytes) -> str | None:
    return missing_end(io.BytesIO(content), len(content))


@pytest.mark.parametrize("promised", [0, 1000, 0x7F000000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("riff", [0, 36, 0x7FFFF024, 0xFFFFFFFF, 1_000_000])
def test_wav_files_from_a_pipe_are_whole(promised: int, riff: int) -> None:
    """The length of the samples is what counts: programs that cannot know it write 0 or about 2^31 or 2^32."""
    assert end_of(sounds.wav(8_000, DATA, promised=promised, riff=riff)) is None


@given(st.integers(0, 500), st.integers(0, 3), st.booleans())
def test_a_wav_file_is_whole_up_to_its_last_sample(cut: int, chunks: int, is_big_endian: bool) -> None:
    before = (struct.pack("<4sI", b"LIST", 5) + b"five.\0") * chunks  # chunks are padded to an even length
    content = sounds.wav(8_000, DATA, chunks=before)
    if is_big_endian:
        order = [(0, b"RIFX"), (16, struct.pack(">I", 16)), (len(content) - 1004, struct.pack(">I", 1000))]
        order += [(40 + 14 * k, struct.pack(">I", 5)) for k in range(chunks)]
        for at, part in order:
            content = content[:at] + part + content[at + 4 :]
    after = b"LIST" + struct.pack("<I", 100) + bytes(10)  # a chunk that is cut, after the samples
    assert end_of(content) is None
    assert end_of(content + after) is None
    expected = f"{len(content) - cut} of {len(content)} bytes" if cut else None
    assert end_of(content[: len(content) - cut]) == expected


def test_a_wav_file_that_ends_in_its_header_is_cut() -> None:
    content = sounds.wav(8_000, DATA)
    assert end_of(content[:40]) == f"40 of {len(content)} bytes"
    assert end_of(sounds.wav(8_000, DATA, chunks=bytes(8 * 5000))) is None  # chunks without end are not followed


def test_ogg_files_are_whole_up_to_the_end_of_a_page(tmp_path: Path) -> None:
    sounds.by_soundfile("OGG", "VORBIS")(tmp_path / "a.ogg", 3)
    whole = (tmp_path / "a.ogg").read_bytes()
    pages = {k for k in range(len(whole)) if whole.startswith(b"OggS", k)} | {len(whole)}
    assert len(pages) > 4
    complete = {size for size in range(28, len(whole) + 1) if end_of(whole[:size]) is None}
    assert complete <= pages
    assert len(whole) in complete
    assert end_of(sounds.open_ended(whole)) is None


@pytest.mark.parametrize("tags", [0, 1, 2])
def test_the_first_frame_of_an_mp3_may_promise_their_number(tmp_path: Path, tags: int) -> None:
    sounds.by_soundfile("MP3", "MPEG_LAYER_III")(tmp_path / "a.mp3", 2)
    frames = sounds.mp3_frames((tmp_path / "a.mp3").read_bytes())
    tag = b"ID3\x04\0\0" + bytes([0, 0, 40, 3]) + bytes(40 * 128 + 3)
    assert promised_mp3_frames(io.BytesIO(tag * tags + b"".join(frames))) == len(frames) - 1
    assert promised_mp3_frames(io.BytesIO(tag * tags + b"".join(frames[1:]))) is None
    fraunhofer = frames[0][:4] + bytes(32) + b"VBRI" + bytes(10) + struct.pack(">I", 77) + bytes(100)
    assert promised_mp3_frames(io.BytesIO(tag * tags + fraunhofer)) == 77
    unknown = frames[0].replace(b"Info\0\0\0\x0f", b"Info\0\0\0\x0e").replace(b"Xing\0\0\0\x0f", b"Xing\0\0\0\x0e")
    assert promised_mp3_frames(io.BytesIO(tag * tags + unknown)) is None


@given(st.binary(max_size=300), st.sampled_from([b"", b"RIFF", b"RIFX", b"RF64", b"riff", b"OggS", b"ID3"]))
def test_any_bytes_are_judged(content: bytes, start: bytes) -> None:
    for whole in (start + content, start + content[:4] + b"WAVE" + content[4:]):
        assert isinstance(end_of(whole), str | None)
        assert isinstance(promised_mp3_frames(io.BytesIO(whole)), int | None)
