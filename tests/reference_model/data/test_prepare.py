"""A download is prepared exactly and completely, in spite of every interruption."""

import hashlib
import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import miniature
import numpy as np
import pytest
import soundfile
import sounds
import torch
from miniature import everything_in

from reference_model import InputError
from reference_model.data import manifest, prepare
from reference_model.data.audio import LONGEST, decode, load_waveform
from reference_model.data.dataset import Clip, read_split
from reference_model.data.manifest import ManifestRow
from reference_model.runtime.signals import Stopped, handle_signals

ROOT = Path(__file__).parents[3]
SMALL = (4, 2, 2)  # clips of each split


def run(raw: Path, root: Path, dataset: str = "Clotho", **settings: Any) -> prepare.Prepared:
    return prepare.prepare(raw, dataset, root, **{"workers": 0, **settings})


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A download that a test may damage."""
    return miniature.clotho(tmp_path / "raw", SMALL)


def tables(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("csv_files/*"))


def statuses(rows: list[ManifestRow]) -> dict[tuple[str, str], str]:
    return {(row.split, row.file_name): row.status for row in rows if row.status != "ok"}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every original, appended when it is decoded."""
    originals: list[Path] = []

    def noting(path: Path) -> torch.Tensor:
        if "waveforms" not in path.parts:
            originals.append(path)
        return decode(path)

    monkeypatch.setattr(prepare, "decode", noting)
    return originals


@pytest.mark.parametrize(
    "layout", ["clotho", "aac_datasets_clotho", "audiocaps", "aac_datasets_audiocaps", "audiocaps_by_file_name"]
)
def test_every_layout_becomes_what_training_reads(tmp_path: Path, layout: str) -> None:
    """Names and captions are equal byte for byte, sounds bit for bit."""
    dataset, expected = "AudioCaps", miniature.audiocaps_clips()
    if layout.endswith("clotho"):
        dataset, expected = "Clotho", miniature.clotho_clips()
    run(getattr(miniature, layout)(tmp_path / "raw"), tmp_path, dataset)
    for split, clips in expected.items():
        read = read_split(tmp_path, dataset, split)
        assert [(clip.path.name, clip.captions) for clip in read] == [(c.file_name, c.captions) for c in clips]
        names = {path.name for path in (tmp_path / dataset / "waveforms" / split).iterdir()}
        assert names == {clip.file_name for clip in clips}
        for clip, original in zip(read, clips, strict=True):
            soundfile.write(tmp_path / "original.wav", original.samples, miniature.RATE)
            assert torch.equal(load_waveform(clip.path, 1.5), load_waveform(tmp_path / "original.wav", 1.5))


def test_prepared_files_are_the_originals_bit_for_bit(tmp_path: Path) -> None:
    """Rate, channels and format may be any; samples may exceed 1, which 16 bits could not hold."""
    raw = tmp_path / "raw"
    raw.mkdir()
    random = np.random.default_rng(0)
    kinds = [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", None), ("MP3", None)]
    names: dict[str, tuple[int, int]] = {}
    for rate, channels, (container, subtype) in itertools.product((8_000, 22_050, 32_000, 44_100), (1, 2, 8), kinds):
        if channels < 8 or subtype:
            name = f"{rate} {channels} {subtype}.{container if subtype == 'PCM_24' else container.lower()}"
            names[name] = rate, channels
            loud = random.uniform(-1, 1, (rate * 5 // 7 + 1, channels))
            soundfile.write(raw / name, loud, rate, subtype, format=container)
    (raw / "train.csv").write_text("file_name,caption\n" + "".join(f"{name},A {name}\n" for name in names))
    for split in ("val", "test"):
        (raw / f"{split}.csv").write_text(f"file_name,caption\n{split}.wav,x\n")
        soundfile.write(raw / f"{split}.wav", random.uniform(-1, 1, 20_000), 22_050)
    prepared = run(raw, tmp_path, "Mine")
    clips = read_split(tmp_path, "Mine", "train")
    assert len(clips) == len(names)
    for (name, rate_and_channels), clip, row in zip(names.items(), clips, prepared.rows, strict=False):
        assert clip.path.name == row.file_name == (name if name[-4:] in (".wav", ".WAV") else f"{name}.wav")
        assert clip.captions == (f"A {name}",)
        assert (row.source_sample_rate, row.source_channels) == rate_and_channels
        assert torch.equal(decode(clip.path), decode(raw / name))
        assert torch.equal(load_waveform(clip.path, 1), load_waveform(raw / name, 1))
        # An original is cut before it is resampled, which sums in another order.
        torch.testing.assert_close(load_waveform(clip.path, 0.3), load_waveform(raw / name, 0.3), rtol=0, atol=2e-6)
    assert max(row.peak or 0 for row in prepared.rows) > 1


def test_parallel_is_serial(tmp_path: Path) -> None:
    """Processes that are sent the sounds of rows make what one process makes of files."""
    run(miniature.clotho(tmp_path / "raw"), tmp_path / "one")
    clips = miniature.clotho_clips()
    rows = miniature.hugging_face(tmp_path / "rows", clips, "captions", miniature.SPLITS, "{split}.parquet")
    run(rows, tmp_path / "two", workers=2)
    assert everything_in(tmp_path / "one") == everything_in(tmp_path / "two")


def test_the_manifest_says_what_is_in_the_files(tmp_path: Path, small: Path) -> None:
    miniature.spoil(small / "development" / miniature.TRAPS[1], "no file")
    prepared = run(small, tmp_path, allow_missing=True)
    assert prepared.folder == tmp_path / "Clotho"
    assert manifest.read_manifest(prepared.folder / "manifest.csv") == prepared.rows
    assert [(row.split, row.file_name) for row in prepared.rows] == [
        (split, clip.file_name) for split, clips in miniature.clotho_clips(SMALL).items() for clip in clips
    ]
    missing = prepared.rows[1]
    assert missing == ManifestRow("train", " leading space.wav", "missing", reason="no file of this clip")
    for row in prepared.rows[:1] + prepared.rows[2:]:
        path = prepared.folder / "waveforms" / row.split / row.file_name
        samples, rate = soundfile.read(path, dtype="float32")
        assert (rate, samples.ndim, soundfile.info(path).subtype) == (32_000, 1, "FLOAT")
        assert (row.status, row.reason, row.seconds) == ("ok", "", len(samples) / 32_000)
        assert row.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert row.peak == np.abs(samples).max()
        assert (row.source_sample_rate, row.source_channels) == (miniature.RATE, 1)


def test_every_clip_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """All kinds of damage occur at once, in two splits; unusual formats are no fault."""
    raw = miniature.clotho(tmp_path / "raw", (len(miniature.FAULTS) + 2, 4, len(miniature.FAULTS) + 1))
    spoilt = {}
    for split, folder in (("train", "development"), ("test", "evaluation")):
        names = [clip.file_name for clip in miniature.clotho_clips((13, 0, 13))[split]]
        for name, kind in zip(names, miniature.FAULTS, strict=False):
            spoilt[split, name] = miniature.spoil(raw / folder / name, kind)
    unusual = np.random.default_rng(0).uniform(-1, 1, (8_000, 8))
    soundfile.write(raw / "validation" / "same name.wav", unusual, 8_000, "PCM_24")
    with pytest.raises(InputError) as refusal:
        run(raw, tmp_path)
    lines = str(refusal.value).splitlines()
    assert lines[0] == f"expected every clip to be usable, got {len(spoilt)} of 29 that are not:"
    assert lines[1].split()[:3] == ["split", "listed", "ok"]
    named = [line for line in lines if line.startswith("  ")]
    for ((split, name), status), line in zip(spoilt.items(), named, strict=True):
        assert line.startswith(f"  {split}  {name!r}  {status}: ")
        assert line.split(": ")[-1]
    assert lines[-1].startswith(f"no tables were written to {tmp_path}/Clotho/csv_files, manifest.csv has all of this")
    assert "has all of this: --allow" in lines[-1]
    assert statuses(manifest.read_manifest(tmp_path / "Clotho" / "manifest.csv")) == spoilt
    assert tables(tmp_path / "Clotho") == []
    assert len(list((tmp_path / "Clotho" / "waveforms").rglob("*.wav"))) == 29 - len(spoilt)

    assert statuses(run(raw, tmp_path, allow_missing=True).rows) == spoilt
    for split, clips in miniature.clotho_clips((13, 4, 12)).items():
        read = [(clip.path.name, clip.captions) for clip in read_split(tmp_path, "Clotho", split)]
        assert read == [(c.file_name, c.captions) for c in clips if (split, c.file_name) not in spoilt]


def test_a_split_without_clips_is_always_refused(tmp_path: Path, small: Path) -> None:
    for path in (small / "validation").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"(?s)got 2 of 8 .*csv_files, .*: no clip of val can be used; is"):
        run(small, tmp_path, allow_missing=True)
    assert tables(tmp_path / "Clotho") == []


@pytest.mark.parametrize("kind", [kind for kind in miniature.FAULTS if kind != "no file"])
def test_tables_of_before_do_not_outlive_damage(tmp_path: Path, small: Path, kind: str) -> None:
    """A source that is damaged after it was prepared invalidates the result; one that is deleted does not."""
    run(small, tmp_path)
    assert tables(tmp_path / "Clotho") == ["test.csv", "train.csv", "val.csv"]
    status = miniature.spoil(small / "development" / "same name.wav", kind)
    with pytest.raises(InputError, match=rf"train  'same name\.wav'  {status}: "):
        run(small, tmp_path)
    assert tables(tmp_path / "Clotho") == []
    assert not (tmp_path / "Clotho" / "waveforms" / "train" / "same name.wav").exists()


@pytest.mark.parametrize("later, longer", [(1, 0), (0, 1), (-1, 1)])
def test_replaced_originals_alone_are_prepared_again(
    tmp_path: Path, small: Path, decoded: list[Path], later: int, longer: int
) -> None:
    """A new original differs by a nanosecond in time; or in length, if an archive restored the old time."""
    run(small, tmp_path)
    assert len(decoded) == sum(SMALL)
    made = everything_in(tmp_path / "Clotho")
    decoded.clear()
    run(small, tmp_path)
    assert decoded == []
    assert everything_in(tmp_path / "Clotho") == made
    path = small / "development" / "same name.wav"
    before = path.stat()
    samples = soundfile.info(path).frames + 10_000 * longer
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, (samples, 2)), miniature.RATE)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + later))
    prepared = run(small, tmp_path)
    assert decoded == [path]
    assert prepared.rows[0].source_channels == 2
    assert torch.equal(decode(tmp_path / "Clotho" / "waveforms" / "train" / "same name.wav"), decode(path))


def test_damage_to_prepared_files_is_repaired_or_named(tmp_path: Path, small: Path) -> None:
    run(small, tmp_path)
    made = everything_in(tmp_path / "Clotho")
    path, original = (folder / "same name.wav" for folder in (tmp_path / "Clotho/waveforms/test", small / "evaluation"))
    time_of_original = original.stat().st_mtime_ns

    def damage() -> None:
        path.write_bytes(b"RIFF")
        os.utime(path, ns=(0, time_of_original))

    damage()
    run(small, tmp_path)
    assert everything_in(tmp_path / "Clotho") == made
    original.unlink()
    run(small, tmp_path)
    assert everything_in(tmp_path / "Clotho") == made
    damage()
    with pytest.raises(InputError, match=r"test  'same name\.wav'  unreadable: "):
        run(small, tmp_path)


def test_clips_that_are_listed_no_longer_are_removed(tmp_path: Path, small: Path) -> None:
    """A data set prepared from one download is brought up to date with another."""
    run(miniature.clotho(tmp_path / "larger"), tmp_path)
    left = tmp_path / "Clotho" / "waveforms" / "val" / ".x.wav.part" / "x.wav"
    left.parent.mkdir()
    left.write_bytes(b"what an interruption left")
    link = left.parent.with_name("link.wav")
    link.symlink_to(small)
    run(small, tmp_path)
    run(small, tmp_path / "new")
    assert everything_in(tmp_path / "Clotho") == everything_in(tmp_path / "new" / "Clotho")
    assert not left.parent.exists()
    assert not link.is_symlink()
    assert small.is_dir()


KILLED = """
import os, signal, sys
from pathlib import Path
from reference_model.data import prepare

write, before = prepare.write_wav, []

def killed(path, waveform, modified):
    if len(before) == 4:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    before.append(path)
    write(path, waveform, modified)

prepare.write_wav = killed
prepare.prepare(Path(sys.argv[1]), "Clotho", Path(sys.argv[2]), workers=0)
"""


def test_a_killed_preparation_continues(tmp_path: Path, small: Path, decoded: list[Path]) -> None:
    (unfinished := tmp_path / "Clotho" / ".manifest.csv.part").mkdir(parents=True)  # as of one killed at its start
    ended = subprocess.run([sys.executable, "-c", KILLED, small, tmp_path], cwd=ROOT, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert len(list((tmp_path / "Clotho" / "waveforms").rglob("*.wav"))) == 4 + 1
    half = tmp_path / "Clotho" / "waveforms" / "val" / ".same name.wav.part"
    assert half.exists()
    assert tables(tmp_path / "Clotho") == []
    run(small, tmp_path)
    assert len(decoded) == 4
    run(small, tmp_path / "expected")
    assert everything_in(tmp_path / "Clotho") == everything_in(tmp_path / "expected" / "Clotho")
    assert not half.exists()
    assert not unfinished.exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes by /proc")
def test_no_process_outlives_a_killed_one(tmp_path: Path) -> None:
    """Surviving workers would write at the same time as the next run."""
    long = tmp_path / "long.wav"
    soundfile.write(long, np.random.default_rng(0).uniform(-0.1, 0.1, 20 * 44_100), 44_100)
    names = [f"{k}.wav" for k in range(60)]
    for split in miniature.SPLITS:
        (tmp_path / "raw" / split).mkdir(parents=True)
        (tmp_path / "raw" / f"{split}.csv").write_text("file_name,caption\n" + "".join(f"{n},x\n" for n in names))
        for name in names:
            os.link(long, tmp_path / "raw" / split / name)
    options: list[str | Path] = ["--dataset", "Mine", "--raw", tmp_path / "raw", "--data", tmp_path, "--workers", "2"]
    command = [sys.executable, "-m", "reference_model", "prepare", *options]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    waveforms = tmp_path / "Mine" / "waveforms"
    while len(list(waveforms.glob("*/[0-9]*.wav"))) < 2:
        assert first.poll() is None
        time.sleep(0.05)
    assert len(Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()) >= 2
    first.kill()
    first.communicate(timeout=20)  # the workers share its standard error, which ends with the last of them
    assert not (tmp_path / "Mine" / "csv_files" / "train.csv").exists()
    assert len({path.stat().st_size for path in waveforms.glob("*/[0-9]*.wav")}) == 1  # whole ones


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_reported_and_leaves_nothing_half(tmp_path: Path, small: Path, workers: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # less than the longest clips; of workers too
    try:
        with pytest.raises(OSError, match="File too large"):
            run(small, tmp_path, workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = tmp_path / "Clotho"
    assert not list(folder.rglob("*.part*"))
    assert tables(folder) == []
    assert all(soundfile.info(path).frames >= 16_000 for path in folder.rglob("*.wav"))
    run(small, tmp_path)
    assert tables(folder) == ["test.csv", "train.csv", "val.csv"]


def test_wrong_places_and_names_are_refused(tmp_path: Path, small: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"expected to write .*file.*, got: .*; --data names another place"):
        run(small, tmp_path / "file")
    with pytest.raises(InputError, match="expected --dataset Clotho, got clotho"):
        run(small, tmp_path / "root", "clotho")
    for split in miniature.SPLITS:
        (tmp_path / f"{split}.csv").write_text(f"file_name,caption\n{split}a,x\n{split}a.wav,y\n")
    with pytest.raises(InputError, match=r"once \.wav is appended, got traina and traina\.wav in train"):
        run(tmp_path, tmp_path / "out", "Mine", audio=tmp_path)


def test_originals_are_never_overwritten(tmp_path: Path) -> None:
    raw = miniature.standard(tmp_path / "Clotho", miniature.clotho_clips(SMALL))
    before = everything_in(raw)
    (tmp_path / "link").symlink_to(raw)
    for given in (raw, tmp_path / "link", tmp_path / "other" / ".." / "Clotho"):
        with pytest.raises(InputError, match="expected to write elsewhere than where the originals are"):
            run(given, tmp_path)
    with pytest.raises(InputError, match="expected to write elsewhere"):
        run(miniature.clotho(tmp_path / "raw", SMALL), tmp_path, audio=raw / "waveforms")
    assert everything_in(raw) == before


@pytest.mark.parametrize(
    "content, words", [("", "without manifest.csv"), ("file_name,caption\n", "expected a manifest of prepared clips")]
)
def test_folders_with_other_contents_are_left_alone(tmp_path: Path, small: Path, content: str, words: str) -> None:
    other = miniature.standard(tmp_path / "Clotho", miniature.clotho_clips(SMALL))
    if content:
        (other / "manifest.csv").write_text(content)
    before = everything_in(other)
    with pytest.raises(InputError, match=words):
        run(small, tmp_path)
    assert everything_in(other) == before


def test_a_decoder_that_gives_less_than_promised(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage in the middle of a file makes some formats end early, without an error."""

    def shorter(path: Path) -> torch.Tensor:
        waveform = decode(path)
        return waveform[:-1] if path.parent.name == "evaluation" else waveform

    monkeypatch.setattr(prepare, "decode", shorter)
    with pytest.raises(InputError, match=r"test  'same name.wav'  truncated: \d+ of \d+ samples"):
        run(small, tmp_path)


def test_a_stop_signal_takes_effect_after_a_clip(tmp_path: Path, small: Path, decoded: list[Path]) -> None:
    """The same command continues later."""
    with pytest.raises(Stopped), handle_signals():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        run(small, tmp_path / "root")
    assert len(decoded) == 1
    run(small, tmp_path / "root")
    assert len(decoded) == len(set(decoded)) > 3


# The manifest.

HEADER = ",".join(manifest.MANIFEST_COLUMNS)
ROWS = [
    ManifestRow("train", " a, \"b\" 'c'.wav", "ok", 1 / 3, 44_100, 2, 1.0000001, "aa"),
    ManifestRow("train", "d.wav", "silent", 2.5, 22_050, 1, reason='peak, "low"'),
    ManifestRow("val", "e.wav", "missing", reason="no file of this clip"),
    ManifestRow("test", "f.wav", "ok", 2.0, 8_000, 1, 0.5, "aa"),
]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    manifest.write_manifest(path, [])
    assert manifest.read_manifest(path) == []
    manifest.write_manifest(path, ROWS)
    assert manifest.read_manifest(path) == ROWS


@pytest.mark.parametrize(
    "content", ["", "file_name,caption\n", HEADER + "\ntoo,few\n", HEADER + "\ntrain,a.wav,ok,long,,,,,\n"]
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"expected a manifest of prepared clips at .*manifest\.csv, got "):
        manifest.read_manifest(path)


def test_equal_sounds_are_listed_when_they_are_in_different_splits() -> None:
    assert manifest.in_several_splits(ROWS) == [f"train {ROWS[0].file_name!r} = test 'f.wav'"]
    assert manifest.in_several_splits([ROWS[0], ROWS[0]]) == []


def test_the_summary_stands_beside_the_paper() -> None:
    hours = [ManifestRow("test", "g.wav", "ok", 3600 * 36.5), ManifestRow("test", "h.wav", "silent", 3600)]
    lines = manifest.summary("Clotho", [*ROWS, *hours]).splitlines()
    assert [re.split(" {2,}", line) for line in lines] == [
        ["split", "listed", *manifest.STATUSES[:-1], "paper", "hours", "GB"],
        ["train", "2", "1", "0", "0", "0", "0", "1", "3,839", "0.00", "0.00"],
        ["val", "1", "0", "1", "0", "0", "0", "0", "1,045", "0.00", "0.00"],
        ["test", "3", "2", "0", "0", "0", "0", "1", "1,045", "36.50", "16.82"],  # of 32,000 samples of 4 bytes a second
        ["all", "6", "3", "1", "0", "0", "0", "2", "5,929", "36.50", "16.82"],
    ]
    assert "paper" not in manifest.summary("Mine", ROWS)


def test_checksums_are_those_of_the_split_or_of_the_file(tmp_path: Path) -> None:
    """The same file name in two splits is two sounds."""
    clips = {}
    for split in ("train", "test"):
        path = tmp_path / "Mine" / "waveforms" / split / "same.wav"
        path.parent.mkdir(parents=True)
        path.write_bytes(split.encode())
        clips[split] = [Clip(path, ("x",))]
    computed = {split: [hashlib.sha256(split.encode()).hexdigest()] for split in clips}
    assert {split: manifest.audio_checksums(tmp_path, "Mine", split, clips[split]) for split in clips} == computed
    manifest.write_manifest(tmp_path / "Mine" / "manifest.csv", [ManifestRow("train", "same.wav", "ok", sha256="aa")])
    assert manifest.audio_checksums(tmp_path, "Mine", "train", clips["train"]) == ["aa"]
    assert manifest.audio_checksums(tmp_path, "Mine", "test", clips["test"]) == computed["test"]


def test_one_bad_clip_ends_nothing(tmp_path: Path) -> None:
    """One of 1 Hz and 200 hours is cut, one of an odd rate is resampled, others that no decoder reads have a status."""
    raw = miniature.standard(tmp_path / "raw", miniature.clotho_clips((7, 2, 2)))
    names = [clip.file_name for clip in miniature.clotho_clips((7, 0, 0))["train"]]
    bomb, odd, text, channels, negative = (raw / "waveforms" / "train" / name for name in names[:5])
    bomb.write_bytes(sounds.wav(1, b"\x82" * (200 * 3600), bits=8))
    odd.write_bytes(sounds.wav(22_254, bytes(range(250)) * 200))
    text.write_text("ffconcat version 1.0\nfile odd.wav\n")
    channels.write_bytes(odd.read_bytes()[:22] + b"\xff\xff" + odd.read_bytes()[24:])
    negative.write_bytes(odd.read_bytes()[:24] + b"\0\0\0\0" + odd.read_bytes()[28:])
    rows = run(raw, tmp_path, "Mine", allow_missing=True).rows
    assert [row.status for row in rows] == ["ok", "ok", "unreadable", "unreadable", "unreadable", *["ok"] * 6]
    assert (rows[0].seconds, rows[0].reason) == (LONGEST, f"only the first {LONGEST} s of 720000 s")
    assert rows[1].source_sample_rate == 22_254
    assert all(row.reason for row in rows[2:5])


def test_names_of_data_sets_lead_to_no_other_folder(tmp_path: Path, small: Path) -> None:
    for name in ("../Mine", "/tmp/Mine", "..", "a/b", "a\0"):
        with pytest.raises(InputError, match="expected the name of a file, not a path, as --dataset, got"):
            run(small, tmp_path / "data", name)
    assert not (tmp_path / "Mine").exists()


def test_lossy_originals_are_not_prepared_twice(tmp_path: Path, decoded: list[Path]) -> None:
    """Their length is known to a tenth of a second only, until they are decoded."""
    for split in miniature.SPLITS:
        (tmp_path / "raw" / split).mkdir(parents=True)
        for k, (name, write) in enumerate(sounds.FORMATS.items()):
            write(tmp_path / "raw" / split / f"{k}{Path(name).suffix}", 0.8)
        rows = "".join(f"{k},sound {k}\n" for k in range(len(sounds.FORMATS)))
        (tmp_path / "raw" / f"{split}.csv").write_text(f"file_name,caption\n{rows}")
    first = run(tmp_path / "raw", tmp_path, "Mine")
    assert len(decoded) == 3 * len(sounds.FORMATS)
    assert run(tmp_path / "raw", tmp_path, "Mine").rows == first.rows
    assert len(decoded) == 3 * len(sounds.FORMATS)


def test_the_summary_counts_clips_that_are_much_longer_than_meant() -> None:
    """Clips of 20 s where AudioCaps has 10 are of another download."""
    rows = [ManifestRow("train", f"{k}.wav", "ok", seconds) for k, seconds in enumerate([9.5, 10.0, 10.4, 20.0, 61.25])]
    first, *table = prepare.Prepared(Path("AudioCaps"), rows).summary().splitlines()
    assert first == "much longer than the 10 s of AudioCaps: 2 of 5 clips; train '4.wav' has 61.2 s"
    assert table == manifest.summary("AudioCaps", rows).splitlines()
    for name, few in (("AudioCaps", rows[:3]), ("Mine", rows), ("Clotho", rows[:4])):
        assert prepare.Prepared(Path(name), few).summary() == manifest.summary(name, few)
