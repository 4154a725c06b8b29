"""The synthetic corpus depends on its seed alone, has the standard layout, and its captions describe its sounds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from miniature import everything_in

from reference_model import InputError
from reference_model.data import synthetic
from reference_model.data.corpus import Corpus
from reference_model.data.dataset import read_split
from reference_model.data.synthetic import EVENTS, SOUNDS, Event, Scene, draw_scenes, render, synthesize
from reference_model.training.pretrain import read_tags

SMALL = Corpus(train=4, val=2, test=2, seconds=0.5)


def test_the_same_settings_make_the_same_files_and_what_is_there_stays(tmp_path: Path) -> None:
    """Thus an interrupted rendering continues."""
    corpora = SMALL, SMALL, replace(SMALL, seed=1)
    folder, *others = (synthesize(corpus, tmp_path / str(k)) for k, corpus in enumerate(corpora))
    first, second, other = map(everything_in, (folder, *others))
    assert first == second
    assert first.keys() == other.keys()
    assert not {name for name, _ in first.items() & other.items() if name.endswith(".wav")}
    kept = folder / "waveforms/train/00000.wav"
    before = kept.stat().st_mtime_ns
    for gone in ("waveforms/train/00003.wav", "waveforms/test/00001.wav", "csv_files/test.csv"):
        (folder / gone).unlink()
    synthesize(SMALL, folder.parent)
    assert everything_in(folder) == first
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="to be new or of the same settings, got a corpus of others"):
        synthesize(replace(SMALL, train=5), folder.parent)
    (tmp_path / "foreign" / "Synthetic").mkdir(parents=True)
    with pytest.raises(InputError, match=r"got a folder without corpus\.json"):
        synthesize(SMALL, tmp_path / "foreign")
    with pytest.raises(InputError, match="expected at least 2 clips a split"):
        Corpus(train=1)


def test_tags_and_captions_are_of_the_same_scene(tmp_path: Path) -> None:
    def named(kinds: Any, caption: str) -> set[str]:
        """The kinds of which the caption has one of the names, as whole words."""
        words = f" {caption.lower().replace(',', '')} "
        return {kind for kind, names in kinds.items() if any(f" {name} " in words for name in names)}

    synthesize(Corpus(train=40, val=2, test=2, seconds=0.5), tmp_path)
    sounds = {kind: names for kind, (_, names) in SOUNDS.items()}
    for split, number in (("train", 40), ("val", 2), ("test", 2)):
        clips, tags = read_split(tmp_path, "Synthetic", split), read_tags(tmp_path, "Synthetic", split)
        assert list(tags) == [clip.path.name for clip in clips]
        assert len(tags) == number
        for clip in clips:
            info = soundfile.info(clip.path)
            assert (info.samplerate, info.channels, info.frames) == (32_000, 1, 16_000)
            events = [Event(kind, register, level) for register, level, kind in map(str.split, tags[clip.path.name])]
            assert 1 <= len(events) <= 2
            assert set(events) <= set(EVENTS)
            assert len(set(clip.captions)) == 5
            for caption in clip.captions:
                assert named(sounds, caption) == {event.kind for event in events}
                assert named(synthetic.REGISTERS, caption) == {event.register for event in events}
                assert named(synthetic.LEVELS, caption) <= {event.level for event in events}


def test_scenes_of_a_split_are_different() -> None:
    scenes = draw_scenes(np.random.default_rng(0), 500)
    assert len(set(scenes)) == 500
    assert len(draw_scenes(np.random.default_rng(0), 2000)) == 2000
    assert {scene.joint for scene in scenes} == {"alone", "then", "while"}
    assert {event.kind for scene in scenes for event in scene.events} == set(SOUNDS)
    with pytest.raises(InputError, match="expected a split of fewer clips than there are different scenes"):
        draw_scenes(np.random.default_rng(0), 10_000)


def test_loud_is_louder_and_high_is_higher() -> None:
    def wave_of(seed: int, *event: str) -> np.ndarray[Any, Any]:
        return render(np.random.default_rng(seed), Scene((Event(*event),), "alone"), 1.0)

    def powers(level: str) -> list[float]:
        return [float((wave_of(k, kind, "mid", level) ** 2).mean()) for k, kind in enumerate(SOUNDS)]

    def centre(kind: str, register: str) -> float:
        wave = wave_of(0, kind, register, "loud")
        spectrum = np.abs(np.fft.rfft(wave)) ** 2
        return float((spectrum * np.fft.rfftfreq(len(wave), 1 / 32_000)).sum() / spectrum.sum())

    assert min(powers("loud")) > 4 * max(powers("quiet"))
    for kind in SOUNDS:
        assert centre(kind, "low") < centre(kind, "mid") < centre(kind, "high")


def test_every_event_renders_without_clipping() -> None:
    for k, event in enumerate(EVENTS):
        wave = render(np.random.default_rng(k), Scene((event,), "alone"), 0.5)
        assert np.isfinite(wave).all()
        assert (np.abs(wave) >= 1).mean() < 0.02


def test_captions_name_what_sounds_in_its_order() -> None:
    first, second = Event("tone", "low", "loud"), Event("hiss", "high", "quiet")
    captions = {synthetic.describe(np.random.default_rng(k), Scene((first, second), "then")) for k in range(200)}
    assert len(captions) > 100
    for caption in captions:
        tone = min(place for name in SOUNDS["tone"][1] if (place := caption.find(name)) >= 0)
        hiss = min(place for name in SOUNDS["hiss"][1] if (place := caption.find(name)) >= 0)
        backwards = "comes after" in caption or caption.startswith("Before")
        assert (tone > hiss) == backwards
        assert caption[0].isupper()
        assert any(word in caption.lower() for word in ("low", "deep"))
