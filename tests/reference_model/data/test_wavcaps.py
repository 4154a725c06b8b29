"""WavCaps is prepared from its archives, in parts or whole, as from its files; nothing in an archive leads outside."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pytest
from miniature import everything_in

from reference_model import InputError
from reference_model.data import prepare, sources
from reference_model.data.dataset import read_split
from reference_model.data.layouts import read_download


def run(raw: Path, root: Path, **settings: Any) -> prepare.Prepared:
    return prepare.prepare(raw, "WavCaps", root, **{"workers": 0, "hold_out": 40.0, **settings})


def archive_of(raw: Path, source: str = "SoundBible") -> Path:
    return raw / "Zip_files" / source / f"{source}.zip"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Twelve clips of SoundBible alone, in an archive."""
    return miniature.wavcaps(tmp_path / "raw", {"SoundBible": miniature.wavcaps_clips()["SoundBible"]})


def test_archives_and_files_become_what_the_plain_layout_becomes(tmp_path: Path) -> None:
    clips = miniature.wavcaps_clips()
    zipped, unpacked = (miniature.wavcaps(tmp_path / str(k), clips, zipped=k == 1) for k in (1, 0))
    assert len(miniature.split_archive(archive_of(zipped, "FreeSound"), 100_000)) > 3
    prepared = run(zipped, tmp_path / "zipped", blacklist="none")
    run(miniature.wavcaps_blacklists(unpacked, test_ac={"AudioSet": [], "FreeSound": []}), tmp_path / "unpacked")
    assert prepared.summary().startswith("held out of train, by a checksum of their names, for each split without ")
    named = {
        f"{source}_{Path(clip.file_name).stem}.wav": clip for source, of_source in clips.items() for clip in of_source
    }
    split = {row.file_name: row.split for row in prepared.rows}
    assert sorted(split) == sorted(named)
    plain = {
        part: [miniature.Clip(name, named[name].captions, named[name].samples) for name in named if split[name] == part]
        for part in miniature.SPLITS
    }
    run(miniature.standard(tmp_path / "plain", plain), tmp_path / "expected", hold_out=None)
    expected = everything_in(tmp_path / "expected")
    assert everything_in(tmp_path / "zipped") == everything_in(tmp_path / "unpacked") == expected


def test_places_and_formats_of_files(tmp_path: Path, small: Path) -> None:
    """Files come before archives, and --audio before both; of several formats the one that is usual."""
    for name in ("other/6.mp3", "other/6.wav", "other/6.ogg"):
        member(name)(small)
    unpacked = small / "waveforms" / "SoundBible_flac" / "deep"
    unpacked.mkdir(parents=True)
    for name in ("0.flac", "1.mp3", "1.flac", ".2.flac", "2.txt", "X.3.wav"):
        (unpacked / name).touch()
    found = {clip.file_name: clip.source for clip in read_all(small)}
    assert found["SoundBible_0.wav"] == unpacked / "0.flac"
    assert found["SoundBible_1.wav"] == unpacked / "1.flac"
    for number in (2, 3):
        source = found[f"SoundBible_{number}.wav"]
        assert isinstance(source, sources.ZipMember)
        assert (source.archive, Path(source.name).name) == (archive_of(small), f"{number}.flac")
    source = found["SoundBible_6.wav"]
    assert isinstance(source, sources.ZipMember)
    assert source.name == "other/6.wav"
    (elsewhere := tmp_path / "elsewhere" / "SoundBible").mkdir(parents=True)
    (elsewhere / "5.ogg").touch()
    found = {clip.file_name: clip.source for clip in read_all(small, audio=elsewhere.parent)}
    assert {source for source in found.values() if source} == {elsewhere / "5.ogg"}


def read_all(raw: Path, **settings: Any) -> list[sources.DownloadedClip]:
    parts = read_download(raw, "WavCaps", **{"hold_out": 40.0, **settings})
    return [clip for of_split in parts.values() for clip in of_split]


def test_entries_of_one_id_are_one_clip(small: Path) -> None:
    """FreeSound has a second table that repeats a part of the first."""
    table = small / "json_files" / "SoundBible" / "z_2s.json"
    entries = [{"id": "1.wav", "caption": miniature.wavcaps_clips()["SoundBible"][1].captions[0]}]
    table.write_text(json.dumps({"data": [*entries, {"id": "1", "caption": "Another"}]}))
    clips = {clip.file_name: clip for clip in read_all(small)}
    assert len(clips) == 12
    assert clips["SoundBible_1.wav"].captions == (entries[0]["caption"], "Another")


LISTS = {
    "test_ac": {"AudioSet": ["Y-cd_eF003.wav", "Yelsewhere-0.wav"], "FreeSound": ["5", "Not found", "0"]},
    "all_ac": {"AudioSet": ["Y-cd_eF003.wav", "Y-cd_eF000.wav"], "FreeSound": ["5", "0", "Not found", "1"]},
    "ub8k_esc50_vggsound": {"AudioSet": ["Y-cd_eF001.wav"], "FreeSound": []},
}
LEFT_OUT = {
    None: {"AudioSet_SL_Y-cd_eF003", "FreeSound_0", "FreeSound_5"},
    "all_ac": {"AudioSet_SL_Y-cd_eF000", "AudioSet_SL_Y-cd_eF003", "FreeSound_0", "FreeSound_1", "FreeSound_5"},
    "ub8k_esc50_vggsound": {"AudioSet_SL_Y-cd_eF001"},
    "none": set(),
}


def test_clips_of_other_data_sets_are_left_out(tmp_path: Path) -> None:
    """A list names sounds of AudioSet and of FreeSound alone; it moves no clip from one split to another."""
    raw = miniature.wavcaps_blacklists(miniature.wavcaps(tmp_path / "raw", miniature.wavcaps_clips()), **LISTS)
    split: dict[str, str] = {}
    for name, expected in LEFT_OUT.items():
        prepared = run(raw, tmp_path, blacklist=name)
        split = split or {row.file_name: row.split for row in prepared.rows}
        assert {row.file_name: row.split for row in prepared.rows} == split
        left_out = {row.file_name[:-4]: row for row in prepared.rows if row.status == "blacklisted"}
        assert left_out.keys() == expected
        assert {row.reason for row in left_out.values()} <= {f"in blacklist_exclude_{name or 'test_ac'}.json"}
        usable = {row.file_name for row in prepared.rows if row.status == "ok"}
        assert len(usable) == 36 - len(expected)
        assert {path.name for path in (tmp_path / "WavCaps" / "waveforms").glob("*/*")} == usable
        listed = [clip for part in miniature.SPLITS for clip in read_split(tmp_path, "WavCaps", part)]
        assert {clip.path.name for clip in listed} == usable
        table = prepared.summary().splitlines()
        assert re.split(" {2,}", table[1])[-3:-2] == (["blacklisted"] if expected else ["silent"])
        assert re.split(" {2,}", table[-1])[-3] == str(len(expected))


def test_what_an_archive_holds_leads_nowhere(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members with names outside, too large, encrypted, damaged, cut off, or of names that differ in case."""
    names = ["../../../evil/0.flac", "/1.flac", "2.FLAC", "A.flac", "a.flac", "5.flac", "6.flac", "8.flac", "11.flac"]
    clips = miniature.wavcaps_clips()["SoundBible"]
    with zipfile.ZipFile(archive_of(small), "w") as archive:
        for name, clip in zip(names, clips, strict=False):
            archive.writestr(name, miniature.encoded(clip))
        archive.writestr("7.flac", b"\0" * (sources.LARGEST // 2**10 + 1), zipfile.ZIP_DEFLATED)
    content = bytearray(archive_of(small).read_bytes())
    for damaged in (b"5.flac", b"6.flac"):
        local, central = content.index(damaged), content.rindex(damaged)
        if damaged == b"5.flac":  # a flag says that it is encrypted
            content[local - 24] |= 1
            content[central - 38] |= 1
        else:
            content[local + 2_000] ^= 255
    archive_of(small).write_bytes(content)
    table = small / "json_files" / "SoundBible" / "soundbible_final.json"
    table.write_text(table.read_text().replace('"id": "3"', '"id": "A"').replace('"id": "4"', '"id": "a"'))
    monkeypatch.setattr(sources, "LARGEST", sources.LARGEST // 2**10)
    before = everything_in(tmp_path)
    rows = {row.file_name[11:-4]: row for row in run(small, tmp_path, allow_missing=True).rows}
    status = {name: row.status for name, row in rows.items()}
    assert status == {
        **dict.fromkeys(("0", "1", "2", "A", "a", "8", "11"), "ok"), **dict.fromkeys(("5", "6", "7"), "unreadable"),
        **dict.fromkeys(("9", "10"), "missing"),
    }  # fmt: skip
    assert "encrypted" in rows["5"].reason
    assert "Bad CRC" in rows["6"].reason
    assert "more than 2097152" in rows["7"].reason
    assert rows["A"].sha256 != rows["a"].sha256
    written = everything_in(tmp_path).keys() - before.keys()
    assert all(name.startswith("WavCaps/") for name in written)


def test_an_archive_that_changed_is_prepared_again(tmp_path: Path, small: Path) -> None:
    run(small, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "write_wav", None)
        run(small, tmp_path)
    with zipfile.ZipFile(archive_of(small)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(archive_of(small), "w") as archive:
        for name, sound in zip(content, reversed(content.values()), strict=True):
            archive.writestr(name, sound)
    run(small, tmp_path)
    run(small, tmp_path / "new")
    assert everything_in(tmp_path / "WavCaps") == everything_in(tmp_path / "new" / "WavCaps")


def entry(**values: Any) -> Callable[[Path], object]:
    """Return a function that changes the first entry of the table."""

    def change(raw: Path) -> None:
        table = raw / "json_files" / "SoundBible" / "soundbible_final.json"
        content = json.loads(table.read_text())
        content["data"][0].update(values)
        table.write_text(json.dumps(content))

    return change


def member(name: str) -> Callable[[Path], object]:
    """Return a function that adds a member to the archive."""

    def change(raw: Path) -> None:
        with zipfile.ZipFile(archive_of(raw), "a") as archive:
            archive.writestr(name, b"")

    return change


TABLE = "json_files/SoundBible/soundbible_final.json"


@pytest.mark.parametrize(
    "change, words",
    [
        (entry(id="../0"), r"not a path, in entry 1 of .*final\.json, got '\.\./0'"),
        (entry(id="0\0"), r"not a path, in entry 1 of .*final\.json, got"),
        (entry(id=5), r"expected clips of WavCaps in .*\.json, got 5 as data\.0\.id, which should be a valid"),
        (entry(caption=" "), r"expected a caption with text in entry 1 of .*final\.json, got ' '"),
        (lambda raw: (raw / TABLE).write_text("[1"), "expected clips of WavCaps as JSON in .*, got "),
        (lambda raw: (raw / TABLE).write_text("[" * 100_000), "expected clips of WavCaps as JSON in .*, got a nesting"),
        (lambda raw: (raw / TABLE).unlink(), r"expected a table \*\.json in .*SoundBible, got none"),
        (lambda raw: archive_of(raw).unlink(), r"expected SoundBible\.zip or its files in .* or .*, got no sound; "),
        (lambda raw: archive_of(raw).write_text("no"), r"expected a zip archive with all its parts at .*zip, got a"),
        (lambda raw: miniature.split_archive(archive_of(raw), 9_999)[1].unlink(), r"all its parts at .*, got .*\.z02"),
        (member("other/0.flac"), r"one sound for '0' of SoundBible, got mnt/.*/0\.flac in .*zip and other/0\.flac"),
    ],
)  # fmt: skip
def test_bad_downloads_are_refused(small: Path, change: Callable[[Path], object], words: str) -> None:
    change(small)
    with pytest.raises(InputError, match=words) as refused:
        read_all(small)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (
            None,
            r"expected the clips to leave out at .*/blacklist_exclude_test_ac\.json, got nothing; --blacklist none ",
        ),
        ({"AudioSet": []}, r"expected ids of clips to leave out in .*_test_ac\.json, got no entry FreeSound"),
        (
            {"AudioSet": [], "FreeSound": [156]},
            r"in .*_test_ac\.json, got 156 as FreeSound\.0, which should be a valid",
        ),
    ],
)
def test_a_bad_blacklist_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    raw = miniature.wavcaps(tmp_path, {"FreeSound": miniature.wavcaps_clips()["FreeSound"]})
    if content is not None:
        miniature.wavcaps_blacklists(raw, test_ac=content)
    with pytest.raises(InputError, match=words) as refused:
        read_all(raw)
    assert "\n" not in str(refused.value)


def test_it_is_not_taken_for_another_data_set(small: Path) -> None:
    with pytest.raises(InputError, match=r"expected tables of Clotho in .*, got those of WavCaps; say"):
        read_download(small, "Clotho", hold_out=40.0)
    with pytest.raises(
        InputError, match="got train alone; --hold-out 5 takes 5 % of the clips of train for val and as"
    ):
        read_download(small, "WavCaps")
    plain = miniature.standard(small / "plain", miniature.clotho_clips((1, 1, 1)))
    with pytest.raises(InputError, match=r"expected --blacklist for WavCaps alone, got none for .*plain"):
        read_download(plain, "Mine", blacklist="none")
