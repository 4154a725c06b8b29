"""A data set of Hugging Face with the sounds inside is prepared as its files would be, and never loaded whole."""

import os
import pickle
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
from miniature import everything_in

from reference_model import InputError
from reference_model.data import prepare
from reference_model.data.audio import decode, write_wav
from reference_model.data.dataset import read_split
from reference_model.data.hugging_face import Table
from reference_model.data.layouts import read_download

SMALL = (4, 2, 2)  # clips of each split
ENGLISH, CLOTHO = ("train", "validation", "test"), ("development", "validation", "evaluation")
Rows = dict[str, list[dict[str, Any]]]


def run(raw: Path, root: Path, dataset: str = "Mine", **settings: Any) -> prepare.Prepared:
    return prepare.prepare(raw, dataset, root, **{"workers": 0, **settings})


@pytest.mark.parametrize(
    "dataset, captions, splits, to",
    [
        ("Clotho", "captions", ENGLISH, "{split}"),
        ("Clotho", "caption_1", CLOTHO, "{split}.parquet"),
        ("Clotho", "captions", ("dev", "val", "eval"), "{split}/{part}.parquet"),
        ("Clotho", "caption", ("train", "dev", "test"), "data/{split}-{part}-of-00002.parquet"),
        ("AudioCaps", "caption", ENGLISH, "data/{split}-{part}-of-00002-0123456789abcdef.parquet"),
        ("AudioCaps", "caption", ENGLISH, "default/{split}/{part}.parquet"),
        ("AudioCaps", "caption", ENGLISH, "{split}"),
    ],
)
def test_every_layout_becomes_what_the_files_become(
    tmp_path: Path, dataset: str, captions: str, splits: tuple[str, ...], to: str
) -> None:
    """Waveforms, tables and manifest are the same, byte for byte, but for times; a second run decodes nothing."""
    clips = miniature.clotho_clips(SMALL) if dataset == "Clotho" else miniature.audiocaps_clips(SMALL)
    raw = miniature.hugging_face(tmp_path / "raw[1]*", clips, captions, splits, to)
    prepared = run(raw, tmp_path / "ours", dataset)
    run(miniature.standard(tmp_path / "files", clips), tmp_path / "theirs", dataset)
    assert everything_in(tmp_path / "ours") == everything_in(tmp_path / "theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "write_wav", None)
        assert run(raw, tmp_path / "ours", dataset).rows == prepared.rows


def tables(folder: Path, change: Callable[[Rows], object] = lambda _: None, *, captions: str = "captions") -> Path:
    """Write parquet files of Clotho's clips, whose rows a function may change."""
    rows = {split: miniature.rows_of(clips, captions) for split, clips in miniature.clotho_clips(SMALL).items()}
    change(rows)
    for split, of_split in rows.items():
        miniature.write_table(folder / f"{split}.parquet", of_split)
    return folder


def test_sounds_of_any_format_need_no_name(tmp_path: Path) -> None:
    """The ending of a name may be wrong."""
    kinds = ("FLAC", "WAV", "OGG", "MP3", "AIFF")
    (clip,) = miniature.clotho_clips((1, 1, 1))["train"]
    contents = {kind: miniature.encoded(clip, kind) for kind in kinds}

    def change(rows: Rows) -> None:
        rows["train"] = [
            {"audio": {"bytes": content, "path": None}, "captions": [kind]} for kind, content in contents.items()
        ]
        rows["val"] = [
            {"audio": {"bytes": content, "path": f"{kind}.{wrong}"}, "captions": [kind]}
            for (kind, content), wrong in zip(contents.items(), ("wav", "flac", "mp3", "wav", "ogg"), strict=True)
        ]

    run(tables(tmp_path / "raw", change), tmp_path)
    train, val = read_split(tmp_path, "Mine", "train"), read_split(tmp_path, "Mine", "val")
    for unnamed, named, (kind, content) in zip(train, val, contents.items(), strict=True):
        (tmp_path / "original").write_bytes(content)
        assert unnamed.captions == named.captions == (kind,)
        assert re.fullmatch(r"[0-9a-f]{16}\.wav", unnamed.path.name)
        assert torch.equal(decode(unnamed.path), decode(tmp_path / "original"))
        assert torch.equal(decode(named.path), decode(unnamed.path))


def test_rows_of_equal_sounds_are_one_clip(tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        first = rows["train"][0]
        for name in ("another.wav", None, first["audio"]["path"]):
            rows["train"].append({"audio": {**first["audio"], "path": name}, "captions": [f"Also {name}"]})

    download = read_download(tables(tmp_path, change), "Mine")
    assert [len(download[split]) for split in miniature.SPLITS] == [4, 2, 2]
    clip = download["train"][0]
    assert clip.file_name == "same name.wav"
    assert clip.captions[5:] == ("Also another.wav", "Also None", "Also same name.wav")


def test_a_name_leads_nowhere(tmp_path: Path) -> None:
    """Folders in the name of a sound are left out; what lies under that name is not opened."""
    (tmp_path / "outside.wav").write_bytes(miniature.encoded(miniature.clotho_clips()["train"][5], "WAV"))
    names = ["../../evil.wav", "/etc/cron.d/evil2.wav", "C:\\sounds\\evil3.wav", "x" * 300]

    def change(rows: Rows) -> None:
        for row, name in zip(rows["train"], names, strict=True):
            row["audio"]["path"] = name
        rows["train"].append({"audio": {"bytes": None, "path": str(tmp_path / "outside.wav")}, "captions": ["No"]})

    raw = tables(tmp_path / "raw", change)
    before = everything_in(tmp_path)
    rows = run(raw, tmp_path, allow_missing=True).rows
    assert [(row.file_name, row.status) for row in rows[:5]] == [
        ("evil.wav", "ok"), ("evil2.wav", "ok"), ("evil3.wav", "ok"),
        ("x" * 300 + ".wav", "unreadable"), ("outside.wav", "missing"),
    ]  # fmt: skip
    written = everything_in(tmp_path).keys() - before.keys()
    assert all(name.startswith("Mine/") for name in written)


def test_every_sound_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    silence = miniature.Clip("", (), np.zeros(miniature.RATE, np.int16))
    soundfile.write(tmp_path / "nan.wav", np.full(miniature.RATE, np.nan), miniature.RATE, "FLOAT")
    bad = [b"", (tmp_path / "nan.wav").read_bytes(), None, miniature.encoded(silence)]

    def change(rows: Rows) -> None:
        for row, content in zip(rows["train"], bad, strict=True):
            row["audio"]["bytes"] = content
        sound = rows["val"][0]["audio"]
        sound["bytes"] = sound["bytes"][: len(sound["bytes"]) // 2]
        rows["train"] += miniature.rows_of(miniature.clotho_clips((6, 0, 0))["train"][5:], "captions")

    raw = tables(tmp_path / "raw", change)
    with pytest.raises(InputError, match="got 5 of 9 that are not"):
        run(raw, tmp_path)
    rows = run(raw, tmp_path, allow_missing=True).rows
    assert [row.status for row in rows if row.split == "train"] == [
        "unreadable",
        "unreadable",
        "missing",
        "silent",
        "ok",
    ]
    assert [row.status for row in rows if row.split == "val"] == ["truncated", "ok"]
    assert all(row.reason and str(tmp_path) not in row.reason for row in rows if row.status != "ok")
    assert rows[1].reason == "NaN or inf in the sound of  leading space.wav"


def test_an_interrupted_preparation_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tables(tmp_path / "raw")
    written: list[Path] = []

    def interrupted(path: Path, *arguments: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write_wav(path, *arguments)

    monkeypatch.setattr(prepare, "write_wav", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(raw, tmp_path)
    (left := tmp_path / "Mine" / "waveforms" / "val" / ".x.part").mkdir()  # by a killed process
    (left / "original.flac").touch()
    written.append(Path())
    run(raw, tmp_path)
    assert len(written) == 1 + 8
    assert not left.exists()
    assert not list((tmp_path / "Mine").rglob("original*"))
    run(raw, tmp_path / "whole")
    assert everything_in(tmp_path / "Mine") == everything_in(tmp_path / "whole" / "Mine")


def test_replaced_tables_are_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tables(tmp_path / "raw")
    run(raw, tmp_path)
    decoded: list[str] = []

    def noting(path: Path) -> torch.Tensor:
        decoded.append(path.name)
        return decode(path)

    monkeypatch.setattr(prepare, "decode", noting)
    time = (raw / "val.parquet").stat().st_mtime_ns
    os.utime(raw / "val.parquet", ns=(time, time + 1))
    run(raw, tmp_path)
    assert [name for name in decoded if name.startswith("original")] == ["original.wav"] * 2


def damage(path: Path, column: str) -> bytes:
    """Write zeros over a column of the middle row group of a parquet file; return the file as it was."""
    whole, groups = path.read_bytes(), pyarrow.parquet.read_metadata(path)
    group = groups.row_group(groups.num_row_groups // 2)
    (chunk,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column)
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    content = bytearray(whole)
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    return whole


def test_a_file_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    """Sounds that cannot be read are unusable, the others are kept, and all are there when the file is replaced."""
    clips = miniature.audiocaps_clips((12, 2, 2))
    raw = miniature.hugging_face(tmp_path / "raw", clips, "caption", ENGLISH, "{split}.parquet")
    whole = damage(raw / "train.parquet", "audio.bytes")
    words = r"(?s)got 2 of 16 that are not:.*expected rows with .* in \S*/train\.parquet, got .* after row 6\n"
    with pytest.raises(InputError, match=words):
        run(raw, tmp_path, "AudioCaps")
    rows = run(raw, tmp_path, "AudioCaps", allow_missing=True).rows
    assert [row.status for row in rows] == ["ok"] * 6 + ["unreadable"] * 2 + ["ok"] * 8
    assert len(read_split(tmp_path, "AudioCaps", "train")) == 10
    (raw / "train.parquet").write_bytes(whole)
    run(raw, tmp_path, "AudioCaps")
    run(raw, tmp_path / "new", "AudioCaps")
    assert everything_in(tmp_path / "AudioCaps") == everything_in(tmp_path / "new" / "AudioCaps")


def test_rows_whose_captions_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """Nothing is known of the clips, so that they could not be listed."""
    raw = tables(tmp_path / "raw")
    whole = damage(raw / "train.parquet", "captions.list.element")
    with pytest.raises(InputError, match=r"expected rows with .*/train\.parquet, got .* after row 2$") as refused:
        run(raw, tmp_path, allow_missing=True)
    assert "\n" not in str(refused.value)
    (raw / "train.parquet").write_bytes(whole)
    assert {row.status for row in run(raw, tmp_path).rows} == {"ok"}


def test_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """Less than a tenth of 100 MB is ever in memory."""
    random, size = np.random.default_rng(0), 2**18
    rows = [{"audio": {"bytes": random.bytes(size), "path": f"{k}.wav"}, "captions": ["x"]} for k in range(400)]
    for name in ("table.parquet", "saved"):
        table, held = Table(miniature.write_table(tmp_path / name, rows)), []
        before = pyarrow.total_allocated_bytes()
        for row, expected in zip(table.rows(["audio"]), rows, strict=True):
            assert row == {"audio": expected["audio"]}
            held.append(pyarrow.total_allocated_bytes() - before)
        assert max(held) < len(rows) * size / 10


def test_nothing_is_fetched_and_no_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a hub repository may bring a script, a pickle and a page with addresses of other files."""

    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("expected no connection")

    raw = tables(tmp_path / "raw")
    (raw / "raw.py").write_text("raise SystemExit(3)")
    (raw / "train.pkl").write_bytes(pickle.dumps(os.getcwd, protocol=0).replace(b"getcwd", b"_exit"))
    (raw / "README.md").write_text("---\nconfigs:\n- data_files: https://example.org/x.parquet\n---\n")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for constants in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    assert len(read_download(raw, "Mine")["train"]) == 4
    assert not asked


def first(**values: Any) -> Callable[[Rows], object]:
    """Return a function that changes entries of the first row of train."""
    return lambda rows: rows["train"][0].update(values)


def every(change: Callable[[dict[str, Any]], object]) -> Callable[[Rows], object]:
    """Return a function that changes every row."""
    return lambda rows: [change(row) for of_split in rows.values() for row in of_split]


def videos(*starts: Any, video: Any = "abc") -> Callable[[Rows], object]:
    """Return a function that makes the rows of train those of one video."""

    def change(rows: Rows) -> None:
        for row, start in zip(rows["train"], starts, strict=True):
            row.update(youtube_id=video, start_time=start)

    return change


SOUND = miniature.sound_of(miniature.clotho_clips()["train"][7])


@pytest.mark.parametrize(
    "change, words",
    [
        (every(lambda row: row.pop("audio")), r"expected a column audio with .*train\.parquet, got captions$"),
        (every(lambda row: row.update(audio="a.wav")), "expected a column audio with the bytes .*, got one of string"),
        (every(lambda row: row.update(text=row.pop("captions"))), "expected a column caption, .*, got audio, text"),
        (first(captions=None), r"expected captions with text in row 1 of .*train\.parquet, got \[None\]"),
        (first(captions=[]), r"expected captions with text in row 1 of .*train\.parquet, got \[\]"),
        (first(captions=["a", " "]), r"expected captions with text in row 1 of .*, got \['a', ' '\]"),
        (every(lambda row: row.update(captions=[5])), r"(?s)got 8:.*captions with text in row 1 of .*, got \[5\]"),
        (first(audio={**SOUND, "path": "x/.."}), r"not a path, in row 1 of .*train\.parquet, got '\.\.'"),
        (first(audio={**SOUND, "path": "a\0.wav"}), r"not a path, in row 1 of .*train\.parquet, got"),
        (first(audio={**SOUND, "path": " leading space.wav"}), r"one sound for ' leading space.wav' of row 1 .* row 2"),
        (first(audio={"bytes": None, "path": None}), "expected the bytes of an audio file or its name in row 1 of"),
        (videos(1, 1, 2, 1), r"expected one start_time for 'Yabc\.wav' of row 1 of .*, got another in row 3 of"),
        (videos(1, 1, 1, 1, video="../x"), r"(?s)got 4:.*not a path, in row 1 of .*, got 'Y\.\./x\.wav'"),
        (videos(1, 1, 1, 1, video=" "), r"(?s)got 4:.*expected a youtube_id in row 1 of .*, got ' '"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused(tmp_path: Path, change: Callable[[Rows], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        read_download(tables(tmp_path, change), "Mine")
    assert ("\n" in str(refused.value)) == ("got 8:" in words or "got 4:" in words)


def move(old: str, new: str) -> Callable[[Path], object]:
    """Return a function that moves a file in a folder."""

    def change(folder: Path) -> None:
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (move("val.parquet", "val.txt"), "expected train, val and test in .*, got train, test alone; --hold-out 5 "),
        (move("train.parquet", "train.txt"), "expected a split train in .*, got test, val"),
        (move("val.parquet", "train_v2-0.parquet"), "splits train, val and test in .*, got test, train, train_v2"),
        (move("val.parquet", "training.parquet"), "splits train, val and test in .*, got test, train, training"),
        (move("val.parquet", "other/val.parquet"), r"of one data set in .*, got \., other; name the one that is meant"),
        (lambda raw: (raw / "val.parquet").write_text("PAR1"), r"expected rows with .*val\.parquet, got"),
        (lambda raw: os.truncate(raw / "val.parquet", 30_000), r"expected rows with .*val\.parquet, got"),
        (lambda raw: (raw / "state.json").write_text("{"), r"expected the state of a data set as JSON in .*state\."),
        (lambda raw: (raw / "state.json").write_text("{}"), r"expected rows with sounds and captions in .*, got"),
    ],
)  # fmt: skip
def test_bad_folders_are_refused(tmp_path: Path, change: Callable[[Path], object], words: str) -> None:
    raw = tables(tmp_path)
    change(raw)
    with pytest.raises(InputError, match=words) as refused:
        read_download(raw, "Mine")
    assert "\n" not in str(refused.value)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = miniature.hugging_face(
        tmp_path / "raw", miniature.audiocaps_clips(SMALL), "caption", ENGLISH, "{split}.parquet"
    )
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"audio": tmp_path}, "expected no --audio for .*raw, whose tables hold the sounds"),
        ({"hold_out": 5.0}, "expected --hold-out for a download without val or test, got all three in"),
        ({"dataset": "Clotho"}, "expected tables of Clotho in .*, got those of AudioCaps; say --dataset AudioCaps"),
    )
    for settings, words in refused:
        with pytest.raises(InputError, match=words):
            read_download(raw, **{"dataset": "Mine", **settings})
    saved = miniature.hugging_face(tmp_path / "saved", miniature.clotho_clips(SMALL), "caption", ENGLISH, "{split}")
    for folder, package, module in ((raw, "pyarrow", "pyarrow.parquet"), (saved, "datasets", "datasets")):
        monkeypatch.setitem(sys.modules, module, None)
        words = rf"expected the package {package}, which reads .*; pip install -c .*datasets\.txt"
        with pytest.raises(InputError, match=words):
            read_download(folder, "Mine")


def test_one_data_set_that_was_saved_alone_is_to_train_on(tmp_path: Path) -> None:
    clips = miniature.clotho_clips((40, 0, 0))["train"]
    miniature.write_table(tmp_path / "raw", miniature.rows_of(clips, "captions"))
    rows = run(tmp_path / "raw", tmp_path, hold_out=20.0).rows
    assert sorted(row.file_name for row in rows) == sorted(clip.file_name for clip in clips)
    assert {row.split for row in rows} == {"train", "val", "test"}
    for row in rows:
        (clip,) = (clip for clip in clips if clip.file_name == row.file_name)
        soundfile.write(tmp_path / "original.wav", clip.samples, miniature.RATE)
        prepared = tmp_path / "Mine" / "waveforms" / row.split / row.file_name
        assert torch.equal(decode(prepared), decode(tmp_path / "original.wav"))
