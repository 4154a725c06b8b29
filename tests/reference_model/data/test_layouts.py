"""Clips and captions are read from the layout of training, and from every layout of a download, unchanged."""

from pathlib import Path

import miniature
import numpy as np
import pytest
import soundfile

from reference_model import InputError
from reference_model.data.dataset import Clip, captions_of, clip_of_caption, read_split
from reference_model.data.layouts import clip_seconds, read_download


def write_csv(root: Path, text: str, *, split: str = "test", encoding: str = "utf-8") -> None:
    path = root / "Mini" / "csv_files" / f"{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


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
    with pytest.raises(InputError, match=r"expected the captions of the train split at .*train\.csv, got no file"):
        read_split(tmp_path, "Mini", "train")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "expected the header file_name,caption .* in .*test.csv, got nothing"),
        ("name,caption\na.wav,One\n", "expected the header file_name,caption .* got name,caption"),
        ("file_name\na.wav\n", "expected the header file_name,caption .* got file_name"),
        ("file_name,caption\n", "expected at least one clip in .*test.csv, got the header alone"),
        ("file_name,caption\na.wav,One\nb.wav\n", "expected 2 fields with text in line 3 of .*test.csv"),
        ("file_name,caption\na.wav,One\nb.wav, \n", "expected 2 fields with text in line 3 of .*test.csv"),
        ("file_name,caption\na.wav,One,Two\n", "expected 2 fields with text in line 2"),
        ("file_name,caption\na.wav,café\n", r"expected a CSV file in UTF-8 at .*test\.csv"),
    ],
)
def test_bad_tables_are_refused_in_training_and_in_a_download(tmp_path: Path, text: str, words: str) -> None:
    for split in ("train", "val"):
        write_csv(tmp_path, "file_name,caption\na.wav,One\n", split=split)
    write_csv(tmp_path, text, encoding="latin-1")
    with pytest.raises(InputError, match=words):
        read_split(tmp_path, "Mini", "test")
    with pytest.raises(InputError, match=words):
        read_download(tmp_path / "Mini", "Mini")


def check(raw: Path, dataset: str, expected: dict[str, list[miniature.Clip]], audio: Path | None = None) -> None:
    """Require that a download is read with the same names, captions and sounds, in the same order."""
    found = read_download(raw, dataset, audio=audio)
    assert list(found) == ["train", "val", "test"]
    for split, clips in expected.items():
        assert [(c.file_name, c.captions) for c in found[split]] == [(c.file_name, c.captions) for c in clips]
        for read, clip in zip(found[split], clips, strict=True):
            assert isinstance(read.source, Path), read.file_name
            assert np.array_equal(soundfile.read(read.source, dtype="int16")[0], clip.samples), read


def test_every_layout_of_clotho(tmp_path: Path) -> None:
    clips = miniature.clotho_clips()
    published, tool = miniature.clotho(tmp_path / "published"), miniature.aac_datasets_clotho(tmp_path / "aac")
    check(published, "Clotho", clips)
    check(tool, "Clotho", clips)
    check(tool / "CLOTHO_v2.1", "Mine", clips)
    check(miniature.standard(tmp_path / "ours", clips), "Clotho", clips)
    (tmp_path / "elsewhere").mkdir()
    for folder in miniature.CLOTHO_SPLITS:
        (published / folder).rename(tmp_path / "elsewhere" / folder)
    assert {clip.source for clip in read_download(published, "Clotho")["val"]} == {None}
    check(published, "Clotho", clips, audio=tmp_path / "elsewhere")


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("names", miniature.CLIP_NAMES)
def test_every_name_of_a_clip_of_audiocaps(tmp_path: Path, names: str, flat: bool) -> None:
    check(miniature.audiocaps(tmp_path, names=names, flat=flat), "AudioCaps", miniature.audiocaps_clips())


def test_every_layout_of_audiocaps(tmp_path: Path) -> None:
    clips, both = miniature.audiocaps_clips(), tmp_path / "both"
    miniature.aac_datasets_clotho(both)
    miniature.aac_datasets_audiocaps(both)
    check(both, "Clotho", miniature.clotho_clips())
    check(both / "AUDIOCAPS", "Mine", clips)
    newer = miniature.aac_datasets_audiocaps(tmp_path / "newer")
    (inside := newer / "AUDIOCAPS" / "csv_files_v1").mkdir()  # since aac-datasets 0.7
    for split in miniature.SPLITS:
        (newer / "AUDIOCAPS" / f"{split}.csv").rename(inside / f"{split}.csv")
    for raw in (
        both,
        miniature.aac_datasets_audiocaps(tmp_path / "alone"),
        newer,
        newer / "AUDIOCAPS",
        miniature.audiocaps_by_file_name(tmp_path / "flat"),
        miniature.audiocaps_by_file_name(tmp_path / "split", flat=False),
        miniature.standard(tmp_path / "ours", clips),
        miniature.audiocaps(tmp_path / "beside", clips_in="."),
        miniature.audiocaps(tmp_path / "among", clips_in=".", flat=True),
    ):
        check(raw, "AudioCaps", clips)


def test_videos_are_told_apart(tmp_path: Path) -> None:
    """Ids are prefixes and suffixes of other file names; a start time is part of the name, not of the id."""
    folder = miniature.audiocaps(tmp_path, (1, 1, 1), clips_in="audio")
    header = "audiocap_id,youtube_id,start_time,caption\n"
    videos = ["Ybcdefghijk", "bcdefghijkl", "-cdefgh_120", "cdefghi_120"]
    (folder / "test.csv").write_text(header + "".join(f"{k},{v},30,{v} heard\n" for k, v in enumerate(videos)))
    names = {
        "Ybcdefghijk.wav": videos[0],
        "Ybcdefghijkl.mp3": videos[1],
        "bcdefghijkl.MP3": None,  # the other name comes first
        "-cdefgh_120_50.wav": None,  # other times
        "-cdefgh_120_50000_60000.wav": None,
        "-cdefgh_120_30000_38500.ogg": videos[2],
        "cdefghi_120_30.ogg": None,  # .flac comes first
        "cdefghi_120_30.flac": videos[3],
    }
    for name in names:
        (folder / "audio" / "test" / name).touch()
    found = {clip.captions[0]: clip.source for clip in read_download(folder, "AudioCaps")["test"]}
    expected = {f"{video} heard": folder / "audio" / "test" / name for name, video in names.items() if video}
    assert found == expected
    (folder / "audio" / "test" / "-cdefgh_120_30000_38500.ogg").unlink()
    found = {clip.captions[0]: clip.source for clip in read_download(folder, "AudioCaps")["test"]}
    assert found["-cdefgh_120 heard"] is None


def test_a_name_in_two_splits_needs_a_folder_for_each(tmp_path: Path) -> None:
    for split in miniature.SPLITS:
        (tmp_path / f"{split}.csv").write_text("file_name,caption\nsame.wav,x\n")
    (tmp_path / "same.wav").touch()
    with pytest.raises(InputError, match=r"got .*same\.wav for same\.wav of train and for same\.wav of val; a folder"):
        read_download(tmp_path, "Mine")


@pytest.mark.parametrize("name", ["../x.wav", "a/b.wav", "/tmp/x.wav", ".", ".."])
def test_names_and_ids_that_are_paths_are_refused(tmp_path: Path, name: str) -> None:
    clotho, audiocaps = miniature.clotho(tmp_path / "c", (1, 1, 1)), miniature.audiocaps(tmp_path / "a", (1, 1, 1))
    for folder, table, row in (
        (clotho, "clotho_captions_validation.csv", f"{name},1,2,3,4,5\n"),
        (audiocaps, "train.csv", "7,../../x,30,Outside\n"),
    ):
        with (folder / table).open("a") as file:
            file.write(row)
        with pytest.raises(InputError, match=f"not a path, in line 3 of .*{table}, got"):
            read_download(folder, "Clotho" if folder == clotho else "AudioCaps")


@pytest.mark.parametrize(
    "text, words",
    [
        ("youtube_id,caption\na,One\n", "expected the header file_name,caption .* got youtube_id,caption"),
        ("youtube_id,start_time,caption\na,soon,One\n", "expected start_time in seconds in line 2 of .*val.csv"),
        ("youtube_id,start_time,caption\na,1,One\na,2,Two\n", "expected one start_time .* another in line 3 of .*val"),
    ],
)
def test_bad_tables_of_videos_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (miniature.audiocaps(tmp_path, (1, 1, 1)) / "val.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_download(tmp_path, "AudioCaps")


def test_unknown_layouts_are_refused_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got no folder"):
        read_download(tmp_path / "nowhere", "Clotho")
    with pytest.raises(InputError, match="got an empty folder"):
        read_download(tmp_path, "Clotho")
    (tmp_path / "clotho_captions_development.csv").touch()
    (tmp_path / "development").mkdir()
    (tmp_path / "CLOTHO_v2.1").mkdir()
    (tmp_path / "CLOTHO_v2.1" / "inside.txt").touch()
    with pytest.raises(InputError) as refusal:
        read_download(tmp_path, "Clotho")
    first, *layouts, found = str(refusal.value).splitlines()
    assert first == f"expected tables of one of these layouts in {tmp_path} or in CLOTHO_v2.1 there:"
    assert layouts == [
        "  csv_files/{train,val,test}.csv",
        "  clotho_captions_{development,validation,evaluation}.csv",
        "  clotho_csv_files/clotho_captions_{development,validation,evaluation}.csv",
        "  {train,val,test}.csv",
        "  csv_files_v1/{train,val,test}.csv",
        "  {train,validation,test}/state.json, or data/{train,validation,test}-*.parquet, of Hugging Face",
        "  json_files/SOURCE/*.json of WavCaps",
    ]
    assert found == "got CLOTHO_v2.1/, CLOTHO_v2.1/inside.txt, clotho_captions_development.csv, development/"


def test_one_data_set_is_not_taken_for_another(tmp_path: Path) -> None:
    clotho, audiocaps = miniature.clotho(tmp_path / "c"), miniature.audiocaps(tmp_path / "a")
    for folder, name, other in ((clotho, "Clotho", "AudioCaps"), (audiocaps, "AudioCaps", "Clotho")):
        with pytest.raises(InputError, match=f"expected tables of {other} in .*, got those of {name}; say --d"):
            read_download(folder, other)
    check(clotho, "Mine", miniature.clotho_clips())
    by_file_name = miniature.audiocaps_by_file_name(tmp_path / "f")  # tables that any data set may have
    check(by_file_name, "Clotho", miniature.audiocaps_clips())


def test_two_downloads_are_not_one(tmp_path: Path) -> None:
    miniature.aac_datasets_clotho(tmp_path, (1, 1, 1))
    (tmp_path / "CLOTHO_v2.1").rename(tmp_path / "CLOTHO_v2")
    miniature.aac_datasets_clotho(tmp_path, (1, 1, 1))
    with pytest.raises(InputError, match=r"expected one download of Clotho in .*, got CLOTHO_v2, CLOTHO_v2\.1; name"):
        read_download(tmp_path, "Clotho")


def test_folders_of_clips_are_not_guessed(tmp_path: Path) -> None:
    folder = miniature.audiocaps(tmp_path, (1, 1, 1), clips_in="one")
    (folder / "another").mkdir()
    (folder / ".hidden").mkdir()
    with pytest.raises(InputError, match=r"expected one folder of clips .* given by --audio, got another, one"):
        read_download(folder, "AudioCaps")
    check(folder, "AudioCaps", miniature.audiocaps_clips((1, 1, 1)), audio=folder / "one")
    for name, got in (("nowhere", "nothing"), ("train.csv", "a file")):
        with pytest.raises(InputError, match=f"expected the folder of the clips at .*{name}, got {got}"):
            read_download(folder, "AudioCaps", audio=folder / name)


def test_lengths_of_clips() -> None:
    """Section 3.1: clips of AudioCaps have 10 seconds, those of Clotho 30 at most."""
    assert {name: clip_seconds(name, None) for name in ("AudioCaps", "Clotho")} == {"AudioCaps": 10, "Clotho": 30}
    assert clip_seconds("Mine", 4.0) == clip_seconds("Clotho", 4.0) == 4
    with pytest.raises(InputError, match="expected --clip-seconds for a data set other than AudioCaps, Clotho, Synt"):
        clip_seconds("Mine", None)


def audiocaps_of_one(folder: Path, file: str) -> Path | None:
    """Return the audio file that is found for a clip of two captions, of the one file there is."""
    header, rows = (
        "audiocap_id,youtube_id,start_time,caption\n",
        "{0}7,abcdefghi_{0},30,One\n{0}8,abcdefghi_{0},30,Two\n",
    )
    for k, split in enumerate(miniature.SPLITS):
        (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.csv").write_text(header + rows.format(k))
    (folder / "audio" / "test" / file).touch()
    (clip,) = read_download(folder, "AudioCaps")["test"]
    assert clip.file_name == "Yabcdefghi_2.wav"
    assert clip.source is None or isinstance(clip.source, Path)
    return clip.source


STEMS = ["abcdefghi_2", "Yabcdefghi_2", "abcdefghi_2_30", "Yabcdefghi_2_30000_40000", "27", "28"]


@pytest.mark.parametrize("extension", [".m4a", ".webm", ".opus", ".mp4", ".MKA", ".Aac", ".mp3"])
@pytest.mark.parametrize("stem", STEMS)
def test_downloads_have_any_extension_and_may_be_named_by_the_id_of_a_caption(
    tmp_path: Path, stem: str, extension: str
) -> None:
    assert audiocaps_of_one(tmp_path, stem + extension) == tmp_path / "audio" / "test" / (stem + extension)
    assert audiocaps_of_one(tmp_path / "other", f"2{stem}{extension}") is None
    assert audiocaps_of_one(tmp_path / "text", f"{stem}.txt") is None


@pytest.mark.parametrize(
    "listed, there",
    [
        ("a", "a.wav"), ("a", "a.M4A"), ("a.b", "a.b.flac"), ("a.wav", "a.mp3"), ("a.WAV", "a.webm"), ("a", "a"),
        ("caf\u00e9.wav", "cafe\u0301.wav"), ("cafe\u0301.wav", "caf\u00e9.wav"), ("cafe\u0301", "caf\u00e9.opus"),
    ],
)  # fmt: skip
def test_names_in_tables_may_lack_the_extension_or_write_accents_otherwise(
    tmp_path: Path, listed: str, there: str
) -> None:
    for split in miniature.SPLITS:
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}.csv").write_text(f"file_name,caption\n{listed},x\nb.wav,y\nb.flac,z\n")
        (tmp_path / split / "b.wav").touch()
        (tmp_path / split / there).touch()
    clip, wav, flac = read_download(tmp_path, "Mine")["train"]
    assert (clip.file_name, clip.source) == (listed, tmp_path / "train" / there)
    assert wav.source == tmp_path / "train" / "b.wav"
    assert flac.source is None  # the file is that of another clip


def test_bad_rows_of_all_tables_are_named_at_once(tmp_path: Path) -> None:
    folder = miniature.audiocaps(tmp_path, (2, 2, 2))
    bad = {
        "train": ["7,x,soon,One", "8,../x,1,Two"],
        "val": ["9,x", "9,x,1" + "0" * 400 + ",Three"],
        "test": ['5,y,1,"x'],
    }
    for split, rows in bad.items():
        with (folder / f"{split}.csv").open("a") as file:
            file.write("\n".join(rows) + "\n")
    with pytest.raises(InputError) as refused:
        read_download(folder, "AudioCaps")
    assert str(refused.value).startswith("expected tables without faults, got 5:\n")
    assert [str(refused.value).count(f"{split}.csv") for split in miniature.SPLITS] == [2, 2, 1]


def test_mutated_tables_are_read_or_refused_in_words(tmp_path: Path) -> None:
    """1,000 tables with bytes replaced, cut out or doubled: what is read has captions, and no file outside."""
    folders = [miniature.audiocaps(tmp_path / "a", (3, 1, 1)), miniature.clotho(tmp_path / "c", (3, 1, 1))]
    tables = [folders[0] / "train.csv", folders[1] / "clotho_captions_development.csv"]
    whole, random, refused = [table.read_bytes() for table in tables], np.random.default_rng(0), 0
    for k in range(1_000):
        content = bytearray(whole[k % 2])
        for _ in range(int(random.integers(1, 4))):
            at, size = int(random.integers(len(content))), int(random.integers(1, 9))
            parts = (b"", bytes(content[at : at + size]) * 2, random.bytes(size), b'"', b"\n", b"\0", b"../", b",")
            content[at : at + size] = parts[int(random.integers(len(parts)))]
        tables[k % 2].write_bytes(content)
        try:
            clips = read_download(folders[k % 2], "Mine")["train"]
        except InputError as error:
            assert str(error).startswith("expected "), error  # noqa: PT017
            refused += 1
        else:
            assert all(clip.captions and all(map(str.strip, clip.captions)) for clip in clips)
            assert all(Path(clip.file_name).name == clip.file_name for clip in clips)
            assert all(folders[k % 2] in clip.source.parents for clip in clips if isinstance(clip.source, Path))
    assert 300 < refused < 1_000
