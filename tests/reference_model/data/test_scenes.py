"""Scenes of recordings: tags and captions say what sounds in them, and no recording is heard in two splits."""

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from miniature import everything_in
from recordings import LABELS, heard, write_tones
from runs import CommandLine

from reference_model import InputError
from reference_model.data import corpus as corpora
from reference_model.data import scenes
from reference_model.data.dataset import read_split
from reference_model.data.recordings import Label, label_of
from reference_model.data.scenes import Event, Scene, SceneCorpus, describe, draw_scenes, render, synthesize_scenes
from reference_model.runtime.signals import Stopped
from reference_model.training.pretrain import read_tags

SMALL = SceneCorpus(train=12, val=4, test=4, seconds=1.0)
TABLE = "label,category,phrases\ndog,an animal,a dog barking;a bark\n"


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def made(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder with the corpora Scenes and Events, of one seed."""
    data = tmp_path_factory.mktemp("data")
    synthesize_scenes(SMALL, tones, data, name="Scenes")
    synthesize_scenes(replace(SMALL, events=1), tones, data, name="Events")
    return data


@pytest.fixture(autouse=True, scope="module")
def small_shifts() -> Iterator[None]:
    """The tones stay where they are known again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "HIGHEST", 0.1)
        yield


def splits_in(folder: Path) -> dict[str, set[str]]:
    """Return the names of the recordings of each split, as the corpus records them."""
    splits: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    with (folder / "recordings.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            splits[row["split"]].add(row["recording"])
    return splits


def test_no_recording_is_heard_in_two_splits_of_scenes_and_events(made: Path) -> None:
    """An encoder that learns to tag the events has heard nothing that the scenes are tested with."""
    in_scenes, in_events = (splits_in(made / name) for name in ("Scenes", "Events"))
    assert in_scenes == in_events
    assert sum(map(len, in_scenes.values())) == len(set().union(*in_scenes.values())) == sum(LABELS.values())
    heard_in: dict[str, set[str]] = {split: set() for split in in_scenes}
    for name in ("Scenes", "Events"):
        for split, recordings in heard_in.items():
            for clip in read_split(made, name, split):
                found = heard(soundfile.read(clip.path)[0])
                tags = read_tags(made, name, split)[clip.path.name]
                assert sorted(map(label_of, found)) == sorted(tags)
                recordings |= found
    assert heard_in["train"] <= in_scenes["train"]
    assert heard_in["val"] == in_scenes["val"]
    assert heard_in["test"] == in_scenes["test"]


def test_a_corpus_has_clips_of_one_length_and_different_captions(made: Path) -> None:
    counts = set()
    for split, number in (("train", 12), ("val", 4), ("test", 4)):
        clips = read_split(made, "Scenes", split)
        assert len(clips) == number
        for clip in clips:
            info = soundfile.info(clip.path)
            assert (info.samplerate, info.channels, info.frames) == (32_000, 1, 32_000)
            assert len(set(clip.captions)) == 5
            events = read_tags(made, "Scenes", split)[clip.path.name]
            counts.add(len(events))
            for caption in clip.captions:
                assert set(re.findall("cat|dog|owl", caption.lower())) <= set(events)
        assert all(len(tags) == 1 for tags in read_tags(made, "Events", split).values())
    assert counts == {1, 2, 3}


def test_the_same_settings_and_recordings_make_the_same_files_and_an_interruption_changes_none(
    made: Path, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(corpora, "raise_if_stop_requested", Mock(side_effect=[*[None] * 14, Stopped]))
        with pytest.raises(Stopped):
            synthesize_scenes(SMALL, tones, tmp_path, name="Scenes")
    kept = tmp_path / "Scenes/waveforms/train/00000.wav"
    before = kept.stat().st_mtime_ns
    synthesize_scenes(SMALL, tones, tmp_path, name="Scenes")
    assert kept.stat().st_mtime_ns == before
    assert everything_in(tmp_path / "Scenes") == everything_in(made / "Scenes")


def test_other_settings_recordings_and_phrases_are_refused(made: Path, tones: Path, tmp_path: Path) -> None:
    def refused(settings: SceneCorpus, sounds: Path, phrases: Path | None = None) -> None:
        with pytest.raises(InputError, match="to be new or of the same settings, got a corpus of others"):
            synthesize_scenes(settings, sounds, made, name="Scenes", phrases=phrases)

    refused(replace(SMALL, seed=1), tones)
    refused(replace(SMALL, events=2), tones)
    (table := tmp_path / "phrases.csv").write_text(TABLE)
    refused(SMALL, tones, table)
    other = write_tones(tmp_path / "other", {"cat": 3, "dog": 4, "owl": 4})
    refused(SMALL, other)
    with pytest.raises(InputError, match="expected 1 to 3 events, got 4"):
        SceneCorpus(events=4)
    with pytest.raises(InputError, match="expected at least 3 labels, as many as a scene has, got 2"):
        synthesize_scenes(SMALL, write_tones(tmp_path / "few", {"cat": 3, "dog": 3}), tmp_path, name="Few")
    (other / "owl/3.wav").write_text("no sound")
    with pytest.raises(InputError, match=r"expected readable audio, got .*owl/3.wav"):
        synthesize_scenes(SMALL, other, tmp_path, name="New")
    assert not (tmp_path / "New").exists()


def test_scenes_of_a_split_are_different_while_there_are_others() -> None:
    labels = [f"label {k:02d}" for k in range(20)]
    drawn = draw_scenes(np.random.default_rng(0), labels, 3, 400)
    assert {len(scene.events) for scene in drawn} == {1, 2, 3}
    assert {scene.joint for scene in drawn} == {"alone", "then", "while"}
    assert {event.level for scene in drawn for event in scene.events} == {"loud", "quiet"}
    several = [(scene.joint, *(event.label for event in scene.events)) for scene in drawn if len(scene.events) > 1]
    assert len(several) > len(set(several)) - 1 == len(several) - 1
    assert {scene.events[0].label for scene in drawn if len(scene.events) == 1} == set(labels)
    for scene in drawn:
        names = [event.label for event in scene.events]
        assert len(set(names)) == len(names)
        assert scene.joint != "while" or names == sorted(names)
    assert {len(scene.events) for scene in draw_scenes(np.random.default_rng(0), labels, 1, 50)} == {1}


def part_with_sound(waveform: Any, hertz: float) -> tuple[float, float]:
    """Return the beginning and the end of a tone in seconds, to a hundredth."""
    tone = waveform * np.exp(-2j * np.pi * hertz * np.arange(len(waveform)) / 32_000)
    level = np.abs(tone.reshape(-1, 320).mean(1))
    places = np.flatnonzero(level > 0.3 * level.max()) / 100
    return float(places[0]), float(places[-1])


@pytest.mark.parametrize("joint", ["then", "while"])
def test_events_sound_one_after_the_other_or_at_once(monkeypatch: pytest.MonkeyPatch, joint: str) -> None:
    monkeypatch.setattr(scenes, "HIGHEST", 0.0)
    hertz = {"a": 500.0, "b": 3000.0}
    scene = Scene((Event("a", "loud"), Event("b", "quiet")), joint)
    for seed in range(10):
        times = np.arange(9600 if seed % 2 else 20_000) / 32_000

        def tone(_: np.random.Generator, label: str, times: Any = times) -> Any:
            return np.sin(2 * np.pi * hertz[label] * times)

        wave = render(np.random.default_rng(seed), scene, 2.0, tone)
        assert len(wave) == 64_000
        assert np.abs(wave).max() <= 0.99
        (a, end_of_a), (b, end_of_b) = (part_with_sound(wave, of_label) for of_label in hertz.values())
        if joint == "then":
            assert end_of_a <= b
        else:
            assert min(end_of_a, end_of_b) - max(a, b) > 0.9 * min(end_of_a - a, end_of_b - b)


def test_loud_is_louder_and_nothing_else_in_the_recording_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "background", lambda _, samples: np.zeros(samples))
    tone = np.sin(np.arange(16_000) / 5)

    def peak(level: str, sound: Any, seed: int) -> float:
        scene = Scene((Event("a", level),), "alone")
        return float(np.abs(render(np.random.default_rng(seed), scene, 1.0, lambda *_: sound)).max())

    loud = [peak("loud", tone, seed) for seed in range(8)]
    quiet = [peak("quiet", tone, seed) for seed in range(8)]
    assert min(loud) > 1.4 * max(quiet)
    assert peak("loud", 0.01 * tone, 0) == pytest.approx(loud[0])
    assert not scenes.scale(np.random.default_rng(0), np.zeros(100), "loud").any()
    click = np.append(np.ones(2), np.zeros(9 * 32_000))
    assert np.isfinite(
        render(np.random.default_rng(0), Scene((Event("a", "loud"),), "alone"), 1.0, lambda *_: click)
    ).all()


A = Label("a", ("a dog barking",), ("an animal",), ())
B = Label("b", ("a bell", "a ringing bell"), ("metal",), ())
C = Label("c", ("rain",), (), ())
BY_NAME = {"a": A, "b": B, "c": C}


def captions_of(joint: str, *labels: str) -> set[str]:
    scene = Scene(tuple(Event(label, "loud") for label in labels), joint)
    return {describe(np.random.default_rng(seed), scene, BY_NAME) for seed in range(300)}


def test_captions_name_what_sounds_in_its_order() -> None:
    dog, bell = "dog barking|an animal", "bell|metal"
    captions = captions_of("then", "a", "b")
    assert len(captions) > 60
    left_out = 0
    for caption in captions:
        first, second = (re.search(names, caption, re.IGNORECASE) for names in (dog, bell))
        if first is None or second is None:
            left_out += 1
        else:
            assert (first.start() > second.start()) == bool(re.search(" after |before it|preceded", caption)), caption
        assert caption[0].isupper()
    assert 0 < left_out < 0.6 * len(captions)
    at_once = captions_of("while", "a", "b", "c")
    assert not any(re.search("then|after|before|followed|preceded", caption) for caption in at_once)
    assert {caption.split()[0] for caption in at_once} >= {"A", "Rain"}  # any of them comes first
    assert any("quiet" in caption or "far away" in caption for caption in captions_of("alone", "a")) is False
    assert any("nearby" in caption for caption in captions_of("alone", "a"))


def test_a_label_with_one_name_has_five_captions() -> None:
    """Upper and lower case and punctuation, which training takes away, are not all by which they differ."""
    captions = {re.sub("[^a-z ]", "", caption.lower()) for caption in captions_of("alone", "c")}
    assert len(captions) >= 5


def test_the_command(tones: Path, tmp_path: Path, command_line: CommandLine) -> None:
    (table := tmp_path / "phrases.csv").write_text(TABLE)
    arguments = ["synthesize", "--out", tmp_path, "--train", 2, "--val", 2, "--test", 2, "--seconds", 0.5]
    refused = command_line(*arguments, "--events", 1, status=1)
    assert refused.output.startswith("Error: expected --sounds with --phrases and --events, got none")
    done = command_line(*arguments, "--sounds", tones, "--phrases", table, "--events", 1, "--name", "Events")
    assert f"{tmp_path / 'Events'} holds 2 + 2 + 2 clips" in done.output
    assert "--dataset Events --model tiny --clip-seconds 0.5" in done.output
    assert (tmp_path / "Events/recordings.csv").is_file()
    command_line(*arguments, "--sounds", tones)
    assert (tmp_path / "Scenes/corpus.json").is_file()
    refused = command_line(*arguments, "--sounds", tones, "--name", "../x", status=1)
    assert refused.output == "Error: expected the name of a file, not a path, as --name, got '../x'\n"
