"""Files in, tensors out: layouts, names, formats, and every fault named before training starts."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import BatchSampler, RandomSampler

from reference_model import InputError
from reference_model.data.audio import check_audio, load_waveform
from reference_model.data.dataset import (
    Clip,
    FromFiles,
    Pairs,
    Share,
    captions_of,
    clip_of_caption,
    collate,
    pad_tokens,
    read_split,
)


def write_csv(root: Path, text: str, *, split: str = "test", encoding: str = "utf-8") -> Path:
    path = root / "Mini" / "csv_files" / f"{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def test_one_caption_a_row_or_five(tmp_path: Path) -> None:
    write_csv(tmp_path, "file_name,caption\na.wav,One\nb.wav,Two\na.wav,Three\n")
    a, b = read_split(tmp_path, "Mini", "test")
    assert a == Clip(tmp_path / "Mini/waveforms/test/a.wav", ("One", "Three"))
    assert b.captions == ("Two",)
    write_csv(tmp_path, "file_name,caption_1,caption_2\na.wav,One,Two\n", split="val")
    (clip,) = read_split(tmp_path, "Mini", "val")
    assert clip.captions == ("One", "Two")
    assert captions_of([a, b]) == ["One", "Three", "Two"]
    assert clip_of_caption([a, b]).tolist() == [0, 0, 1]


def test_names_and_captions_are_used_as_they_stand(tmp_path: Path) -> None:
    """The traps of the real files."""
    names = [" leading space.wav", "-starts.wav", "Q&amp;A.wav", "it's '#1' (take 2).WAV.wav", "x" * 129 + ".wav"]
    quoted = [f'"{name}","A ""quoted"" caption, with a comma and “curly” é"' for name in names]
    write_csv(tmp_path, "\ufefffile_name,caption\r\n" + "\r\n".join(quoted))
    clips = read_split(tmp_path, "Mini", "test")
    assert [clip.path.name for clip in clips] == names
    assert clips[0].captions == ('A "quoted" caption, with a comma and “curly” é',)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "expected the header file_name,caption .* got nothing"),
        ("name,caption\na.wav,One\n", "expected the header file_name,caption .* got name,caption"),
        ("file_name,caption\n", "expected at least one clip .* got the header alone"),
        ("file_name,caption\na.wav,One\nb.wav\n", "expected 2 fields with text in line 3 of .*test.csv"),
        ("file_name,caption\na.wav,One\nb.wav, \n", "expected 2 fields with text in line 3 of .*test.csv"),
        ("file_name,caption\na.wav,One,Two\n", "expected 2 fields with text in line 2"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, words: str) -> None:
    write_csv(tmp_path, text)
    with pytest.raises(InputError, match=words):
        read_split(tmp_path, "Mini", "test")


def test_missing_and_misencoded_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected the captions of the val split at .*val\.csv, got no file"):
        read_split(tmp_path, "Mini", "val")
    write_csv(tmp_path, "file_name,caption\na.wav,café\n", encoding="latin-1")
    with pytest.raises(InputError, match=r"expected a CSV file in UTF-8 at .*test\.csv"):
        read_split(tmp_path, "Mini", "test")


def sine(rate: int, seconds: float, frequency: float = 440) -> np.ndarray[Any, Any]:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    good, folder = tmp_path / "good.wav", tmp_path / "folder.wav"
    soundfile.write(good, sine(32_000, 1), 32_000)
    whole = good.read_bytes()
    contents = {
        "empty.wav": b"",
        "header only.wav": whole[:44],
        "truncated.wav": whole[: len(whole) // 2],
        "text.wav": b"this is no audio, although it is called so",
        "no samples.wav": whole[:4] + struct.pack("<I", 36) + whole[8:40] + struct.pack("<I", 0),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    folder.mkdir()
    soundfile.write(tmp_path / "whole.flac", sine(44_100, 2), 44_100)
    (tmp_path / "truncated.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:20_000])
    too_long = "x" * 300 + ".wav"
    bad = [too_long, *contents, "folder.wav", "truncated.flac", "not there.wav"]
    clips = [Clip(tmp_path / name, ("x",)) for name in [*bad, "good.wav", "whole.flac"]]
    with pytest.raises(InputError) as refusal:
        check_audio(clip.path for clip in clips)
    lines = str(refusal.value).splitlines()
    assert lines[0] == f"expected readable audio, got {len(bad)} bad of {len(clips)} files:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [str(tmp_path / name) for name in bad]
    check_audio(clip.path for clip in clips[-2:])


def test_headers_of_streamed_files_are_no_fault(tmp_path: Path) -> None:
    """Programs that write WAV into a pipe do not know the size and leave the largest number."""
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
    """Channels that hold the sine at different levels; their mean, at 32 kHz, is that sine at the mean level."""
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
    """Its pass band ends at 0.9476 of 16 kHz, and above 16 kHz nothing is left that would fold back."""
    path = tmp_path / "x.wav"
    soundfile.write(path, sine(48_000, 1, frequency), 48_000, "FLOAT")
    level = float(load_waveform(path, 1)[4_000:28_000].abs().max()) / 0.5
    assert level == pytest.approx(kept, abs=1e-4 if kept != 0.9 else 0.05)


def test_ogg_and_mp3_are_read(tmp_path: Path) -> None:
    for container in ("OGG", "MP3"):
        path = tmp_path / f"x.{container.lower()}"
        soundfile.write(path, sine(44_100, 1), 44_100, format=container)
        check_audio([path])
        waveform = load_waveform(path, 1)
        assert float(waveform.abs().max()) == pytest.approx(0.5, abs=0.05)


def test_clips_are_cut_or_padded_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, sine(44_100, 1), 44_100, "FLOAT")
    long = load_waveform(path, 2)
    assert long.shape == (64_000,)
    assert torch.equal(long[32_100:], torch.zeros(64_000 - 32_100))
    short = load_waveform(path, 0.5)
    assert torch.equal(short, long[:16_000])  # decoding only the beginning changes nothing in it


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, np.array([0.0, np.nan, 0.0]), 32_000, "FLOAT")
    with pytest.raises(InputError, match=r"expected finite samples, got NaN or inf in .*x\.wav"):
        load_waveform(path, 1)
    with pytest.raises(InputError, match=r"expected readable audio, got .*nowhere\.wav"):
        load_waveform(tmp_path / "nowhere.wav", 1)


def test_every_pair_is_a_caption_with_its_clip(corpus: Path) -> None:
    clips = read_split(corpus, "Synthetic", "val")
    pairs = Pairs(clips, [[k] for k in range(30)], 0.5)
    assert len(pairs) == 30
    assert pairs[29]["token_ids"] == [29]
    assert torch.equal(pairs[29]["waveform"], load_waveform(clips[5].path, 0.5))
    batch = collate([pairs[0], pairs[7]])
    assert batch["audio"]["waveforms"].shape == (2, 16_000)
    assert batch["text"]["input_ids"].tolist() == [[0], [7]]
    assert batch["ids"].tolist() == [0, 1]
    padded = pad_tokens([[5, 6, 7], [8]])
    assert padded["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_number_of_workers_changes_nothing(corpus: Path) -> None:
    """Nor does beginning in the middle of an epoch, as a run that continues does."""
    clips = read_split(corpus, "Synthetic", "val")
    pairs = Pairs(clips, [[k] for k in range(30)], 0.5)

    def sentences_and_clips(workers: int, step: int) -> list[tuple[list[int], list[int], torch.Tensor]]:
        order = RandomSampler(pairs, generator=torch.Generator().manual_seed(1))
        share = Share(BatchSampler(order, 8, drop_last=True), 0, 1)
        batches = list(FromFiles(pairs, share, workers, torch.device("cpu")).from_step(step))
        return [
            (b["text"]["input_ids"].flatten().tolist(), b["ids"].tolist(), b["audio"]["waveforms"]) for b in batches
        ]

    expected = sentences_and_clips(0, 0)
    assert len(expected) == 3
    for captions, ids, waveforms in expected:
        assert ids == [caption // 5 for caption in captions]
        assert torch.equal(waveforms[3], load_waveform(clips[ids[3]].path, 0.5))
    for workers, step in ((2, 0), (0, 1), (2, 2)):
        for whole, batch in zip(expected[step:], sentences_and_clips(workers, step), strict=True):
            assert batch[:2] == whole[:2]
            assert torch.equal(batch[2], whole[2])
