"""The folder of labelled recordings: which files of which packages are in it, and that it is made once."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import write_tones

from reference_model import InputError
from reference_model.data.recordings import read_labels
from reference_model.evidence import recordings as evidence
from reference_model.evidence.packages import Package, read_packages
from reference_model.evidence.recordings import LABELS, make_recordings, read_label_sources

TABLE = """label,category,phrases,sources
dog,an animal,a dog barking;a bark,tones:dog/*.wav
owl,an animal,an owl hooting,tones:owl/0.wav;tones:owl/[12].wav;others:night/*.wav
"""


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Tables of packages and labels, for two packages that are unpacked already."""
    packages = tmp_path / "packages.csv"
    packages.write_text("name,version,sha256,licences,left_out\ntones,1,a,CC0,-\nothers,2,b,CC BY 4.0,-\n")
    (labels := tmp_path / "labels.csv").write_text(TABLE)
    write_tones(tmp_path / "tones", {"cat": 3, "dog": 4, "owl": 3})
    (tmp_path / "others/night").mkdir(parents=True)
    soundfile.write(tmp_path / "others/night/1.wav", np.random.default_rng(0).normal(0, 0.1, 32_000), 32_000)
    for name in ("tones", "others"):
        (statement := tmp_path / name / f"usr/share/doc/{name}/copyright").parent.mkdir(parents=True)
        statement.write_text(f"licence of {name}")

    def unpack(package: Package, file: Path, folder: Path) -> list[Path]:
        shutil.copytree(file, folder, dirs_exist_ok=True)
        return sorted(path.relative_to(folder) for path in folder.rglob("*.wav"))

    monkeypatch.setattr(evidence, "fetch", lambda package, _: tmp_path / package.name)
    monkeypatch.setattr(evidence, "unpack", unpack)
    return packages, labels


def make(tmp_path: Path, tables: tuple[Path, Path]) -> Path:
    (tmp_path / "debs").mkdir(exist_ok=True)
    return make_recordings(tmp_path / "out", tmp_path / "debs", packages=tables[0], labels=tables[1])


def test_the_recordings_of_each_label_with_their_origin(tmp_path: Path, tables: tuple[Path, Path]) -> None:
    out = make(tmp_path, tables)
    dog, owl = read_labels(out / "recordings", out / "phrases.csv")
    assert (len(dog.recordings), dog.phrases, dog.category) == (4, ("a dog barking", "a bark"), ("an animal",))
    assert (len(owl.recordings), owl.phrases) == (4, ("an owl hooting",))
    with (out / "sources.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["package"], row["path"]) for row in rows] == [
        *(("dog", "tones", f"dog/{k}.wav") for k in range(4)),
        ("owl", "others", "night/1.wav"),
        *(("owl", "tones", f"owl/{k}.wav") for k in range(3)),
    ]
    for row in rows:
        copied = (out / "recordings" / row["label"] / row["recording"]).read_bytes()
        assert copied == (tmp_path / row["package"] / row["path"]).read_bytes()
    checksums = {recording.checksum for label in (dog, owl) for recording in label.recordings}
    assert checksums == {row["sha256"] for row in rows}
    assert {path.name: path.read_text() for path in (out / "licences").iterdir()} == {
        "tones.txt": "licence of tones", "others.txt": "licence of others"
    }  # fmt: skip
    assert not list((tmp_path / "debs").iterdir())


def test_it_is_made_once_and_not_of_other_packages(tmp_path: Path, tables: tuple[Path, Path]) -> None:
    out = make(tmp_path, tables)
    (out / "sources.csv").unlink()
    make(tmp_path, tables)
    assert not (out / "sources.csv").exists()
    tables[0].write_text(tables[0].read_text().replace("others,2", "others,3"))
    with pytest.raises(InputError, match=r"to be made from these packages, got others: others .*choose another --out"):
        make(tmp_path, tables)
    (out / "made_from.json").unlink()
    with pytest.raises(InputError, match=r"got one without made_from.json"):
        make(tmp_path, tables)


@pytest.mark.parametrize(
    "sources, message",
    [
        ("tones:wolf/*.wav", r"expected recordings of wolf at wolf/\*.wav in tones, got none"),
        ("tones:cat/[01].wav", "expected at least 3 recordings of each label, got 2 of wolf"),
        ("tones:cat/*.wav;tones:cat/1.wav", "expected every recording once, got cat/1.wav of tones as wolf, and"),
        ("tones:cat/*.wav;tones:dog/1.wav", "expected every recording once, got dog/1.wav of tones as dog, and"),
        ("absent:*.wav", "expected sources in packages of the table, got absent"),
        ("cat/*.wav", "expected PACKAGE:PATTERN in the sources in line 4 of .*csv, got cat"),
        ("tones:cat/*.wav;", "expected PACKAGE:PATTERN in the sources in line 4"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, tables: tuple[Path, Path], sources: str, message: str) -> None:
    tables[1].write_text(f"{TABLE}wolf,an animal,a wolf,{sources}\n")
    with pytest.raises(InputError, match=message):
        make(tmp_path, tables)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "debs").iterdir())
    tables[1].write_text("label,sources\n")
    with pytest.raises(InputError, match=r"expected the header label,category,phrases,sources in .*"):
        make(tmp_path, tables)


def test_the_labels_of_the_evidence() -> None:
    """Every label has several phrases of its own, which are noun phrases, and sources in packages of the table."""
    labels, names = read_label_sources(LABELS), {package.name for package in read_packages()}
    assert len({label.label for label in labels}) == len(labels) > 60
    assert {name for label in labels for name, _ in label.sources} == names
    phrases = [phrase for label in labels for phrase in label.phrases.split(";")]
    assert len(set(phrases)) == len(phrases)
    assert all(len(label.phrases.split(";")) >= 2 for label in labels)
    assert all(phrase == phrase.strip().rstrip(".") for phrase in phrases)
