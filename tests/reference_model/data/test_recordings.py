"""Labelled recordings: what is a label, what captions call it, which split a recording is in, and what is refused."""

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from recordings import write_tones

from reference_model import InputError
from reference_model.data.recordings import (
    Label,
    Recording,
    check_recordings,
    digest,
    label_of,
    load_recording,
    read_labels,
    split_recordings,
)


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"))


def touch(folder: Path, *names: str) -> Path:
    """Write files that differ; only their names and contents are read."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_labels_are_names_of_folders_or_of_files_without_a_number(tmp_path: Path) -> None:
    assert {name: label_of(name) for name in ("a/b/c 1.wav", "x-y_12.ogg", "dog 3.wav", "dog3.FLAC", "one.wav")} == {
        "a/b/c 1.wav": "a", "x-y_12.ogg": "x-y", "dog 3.wav": "dog", "dog3.FLAC": "dog", "one.wav": "one"
    }  # fmt: skip
    names = ["car_horn-1.wav", "car_horn-2.ogg", "car_horn.mp3", "b/x.wav", "b/deep/er.wav", "b/y.wav", "b/notes.txt"]
    labels = read_labels(touch(tmp_path, *names, ".hidden.wav"))
    assert [(label.name, [recording.name for recording in label.recordings]) for label in labels] == [
        ("b", ["b/deep/er.wav", "b/x.wav", "b/y.wav"]),
        ("car_horn", ["car_horn-1.wav", "car_horn-2.ogg", "car_horn.mp3"]),
    ]
    assert [(label.phrases, label.category) for label in labels] == [(("b",), ()), (("car horn",), ())]


def test_a_table_says_what_captions_call_a_label(tmp_path: Path, tones: Path) -> None:
    table = tmp_path / "phrases.csv"
    table.write_text("label,category,phrases\ndog,an animal; a pet,a dog barking ;a bark\n")
    cat, dog, _ = read_labels(tones, table)
    assert (dog.category, dog.phrases) == (("an animal", "a pet"), ("a dog barking", "a bark"))
    assert (cat.category, cat.phrases) == ((), ("cat",))
    assert digest([cat, dog]) != digest(read_labels(tones)[:2])


@pytest.mark.parametrize(
    "rows, message",
    [
        ("name,phrases\ndog,a dog\n", r"expected the header label,category,phrases in .*csv, got name,phrases"),
        ("", r"expected the header label,category,phrases in .*csv, got nothing"),
        ("label,category,phrases\nwolf,x,y\n", "expected labels that have recordings, got wolf in line 2 of .*csv"),
        ("label,category,phrases\ndog,x,y\ndog,x,z\n", "expected each label once, got dog again in line 3 of .*csv"),
        ("label,category,phrases\ndog,x,y;;z\n", "expected phrases between all ; in line 2 of .*csv, got an empty one"),
        ("label,category,phrases\ndog,,y\n", r"expected 3 fields with text in line 2 of .*csv, got \['dog', '', 'y'\]"),
    ],
)
def test_wrong_tables_of_phrases_are_refused(tmp_path: Path, tones: Path, rows: str, message: str) -> None:
    table = tmp_path / "phrases.csv"
    table.write_text(rows)
    with pytest.raises(InputError, match=f"^{message}$"):
        read_labels(tones, table)
    with pytest.raises(InputError, match=r"expected a table label,category,phrases at .*other.csv, got no file"):
        read_labels(tones, tmp_path / "other.csv")


@pytest.mark.parametrize(
    "names, message",
    [
        (["notes.txt"], r"expected recordings as .*/LABEL/NAME.wav or .*/LABEL-1.wav, got no audio file"),
        (
            ["a/1.wav", "a/2.wav", "b-1.wav", "c-1.wav", "c-2.wav", "c-3.wav"],
            "expected at least 3 recordings of each label, one for each split, got 2 of a, 1 of b in .*",
        ),
        (["Dog/1.wav", "dog-1.wav"], "expected one spelling of each label, got Dog and dog in .*"),
        (["car_horn/1.wav", "car horn/1.wav"], "expected one spelling of each label, got car horn and car_horn in .*"),
        (["a;b/1.wav"], "expected a label of printable .*, got 'a;b' of .*"),
        (["12.wav"], "expected a label of printable .*, got '' of .*12.wav"),
        ([" a/1.wav"], "expected a label of printable .*, got ' a' of .*"),
    ],
)
def test_folders_that_cannot_be_labels_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        read_labels(touch(tmp_path, *names))
    with pytest.raises(InputError, match=r"expected a folder of recordings at .*nowhere, got none"):
        read_labels(tmp_path / "nowhere")


def test_a_recording_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.wav", "a/2.wav", "a/3.wav", "b/1.wav", "b/2.wav", "b/3.wav")
    shutil.copy(tmp_path / "a/2.wav", tmp_path / "b/2.wav")
    with pytest.raises(InputError, match=r"expected different recordings in .*, got a/2.wav and b/2.wav alike"):
        read_labels(tmp_path)


def labels_of(numbers: dict[str, int]) -> list[Label]:
    return [
        Label(name, (name,), (), tuple(Recording(f"{name}/{k}.wav", f"checksum {name} {k}") for k in range(number)))
        for name, number in numbers.items()
    ]


def test_every_recording_is_in_one_split_and_the_seed_decides_which() -> None:
    labels = labels_of({"a": 3, "b": 7, "c": 12, "d": 30})
    splits = split_recordings(labels, 0)
    assert {split: [len(part) for part in by_label.values()] for split, by_label in splits.items()} == {
        "train": [1, 5, 8, 20], "val": [1, 1, 2, 5], "test": [1, 1, 2, 5]
    }  # fmt: skip
    for label in labels:
        parts = [splits[split][label.name] for split in splits]
        assert sorted(itertools.chain(*parts), key=str) == sorted(label.recordings, key=str)
    held_out = {split_recordings(labels, seed)["test"]["d"] for seed in range(5)}
    assert len(held_out) == 5
    # The other labels, the order, and the names of files decide nothing.
    alone = split_recordings(labels[3:], 0)
    renamed = [Label("d", (), (), tuple(Recording("x", one.checksum) for one in reversed(labels[3].recordings)))]
    assert alone["test"]["d"] == splits["test"]["d"]
    checksums = [one.checksum for one in split_recordings(renamed, 0)["test"]["d"]]
    assert checksums == [one.checksum for one in splits["test"]["d"]]


def test_a_recording_is_loaded_without_silence_and_with_a_peak_of_one(tones: Path) -> None:
    for name, rate in (("cat/0.wav", 32_000), ("cat/1.wav", 44_100)):
        sound = load_recording(tones / name)
        assert np.abs(sound).max() == pytest.approx(1)
        assert len(sound) / 32_000 == pytest.approx(0.4, abs=0.005), rate


def test_recordings_that_cannot_be_used_are_all_named(tmp_path: Path) -> None:
    write_tones(tmp_path, {"a": 3, "b": 3})
    labels = read_labels(tmp_path)

    def load(name: str) -> Any:
        return load_recording(tmp_path / name)

    check_recordings(labels, load)
    soundfile.write(tmp_path / "a/1.wav", np.zeros(32_000), 32_000)
    with pytest.raises(InputError, match=r"^expected 0.02 s of sound or more, got 0.000 s in .*a/1.wav$"):
        check_recordings(labels, load)
    (tmp_path / "b/0.wav").write_text("no sound")
    with pytest.raises(InputError) as refused:
        check_recordings(labels, load)
    first, *others = str(refused.value).splitlines()
    assert first == "expected usable recordings, got 2 bad of 6:"
    assert [re.findall(r"\w/\d.wav", line) for line in others] == [["a/1.wav"], ["b/0.wav"]]
