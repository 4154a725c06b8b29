"""mteb evaluates a saved model on tasks with local data, and finds what our own metrics say."""

from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from reference_model import InputError
from reference_model.data.dataset import captions_of, clip_of_caption, read_split
from reference_model.evaluation.metrics import split_metrics
from reference_model.search.mteb_model import MtebModel
from reference_model.search.retriever import Retriever


def about(category: Any) -> TaskMetadata:
    """Return what mteb wants to know of a task; a2t is audio to text, t2a text to audio."""
    return TaskMetadata(
        name=f"Local-{category}",
        description="Local data.",
        type="Any2AnyRetrieval",
        dataset={"path": "local", "revision": "1"},
        category=category,
        modalities=["audio", "text"],
        eval_langs=["eng-Latn"],
        main_score="hit_rate_at_5",
    )


class AudioToText(AbsTaskRetrieval):
    """Retrieval between the clips and captions of a split."""

    metadata = about("a2t")
    k_values = (1, 5, 10)

    def __init__(self, corpus: Path) -> None:
        super().__init__()
        self.clips = read_split(corpus, "Synthetic", "test")

    def load_data(self, *_: Any, **__: Any) -> None:
        """Make the data sets; a clip is an array of numbers, not a file."""
        owner = clip_of_caption(self.clips).tolist()
        sounds = [dict(zip(("array", "sampling_rate"), soundfile.read(clip.path), strict=True)) for clip in self.clips]
        audio = Dataset.from_dict({"id": [f"clip {k}" for k in range(len(sounds))], "audio": sounds})
        captions = captions_of(self.clips)
        text = Dataset.from_dict({"id": [f"caption {k}" for k in range(len(captions))], "text": captions})
        relevant: dict[str, dict[str, int]] = {}
        for k, clip in enumerate(owner):
            pair = (f"caption {k}", f"clip {clip}")
            query, candidate = pair if self.metadata.category == "t2a" else pair[::-1]
            relevant.setdefault(query, {})[candidate] = 1
        queries, corpus = (text, audio) if self.metadata.category == "t2a" else (audio, text)
        split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
        self.dataset = {"default": {"test": split}}  # type: ignore[dict-item]
        self.data_loaded = True


class TextToAudio(AudioToText):
    """The other direction."""

    metadata = about("t2a")


def test_the_hit_rates_are_our_recalls(trained: Path, corpus: Path, tmp_path: Path) -> None:
    retriever = Retriever.from_pretrained(trained, device="cpu")
    retriever.save_pretrained(tmp_path / "saved")
    model = MtebModel(Retriever.from_pretrained(tmp_path / "saved", device="cpu"), "tiny")
    clips = read_split(corpus, "Synthetic", "test")
    audio, text = retriever.embed_audio([clip.path for clip in clips]), retriever.embed_text(captions_of(clips))
    expected = split_metrics(audio, text, clip_of_caption(clips))
    assert 0 < expected["text_to_audio"]["R@1"] < 100
    for direction, task in (("text_to_audio", TextToAudio(corpus)), ("audio_to_text", AudioToText(corpus))):
        result = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False, num_proc=1)
        (scores,) = result.task_results[0].scores["test"]
        for k in task.k_values:
            assert 100 * scores[f"hit_rate_at_{k}"] == pytest.approx(expected[direction][f"R@{k}"], abs=1e-2)
        if direction == "text_to_audio":  # one relevant candidate: no definition of the mean precision differs
            assert 100 * scores["map_at_10"] == pytest.approx(expected[direction]["mAP@10"], abs=1e-2)
    assert result.model_name == "crossmodal_losses/tiny"


class Decoder:
    """What ``datasets`` makes of an audio file with torchcodec: it decodes when it is asked for a name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> Any:
        """Return one of the two."""
        return dict(zip(("array", "sampling_rate"), soundfile.read(self.path), strict=True))[name]


def test_clips_are_embedded_as_their_files_are(trained: Path, corpus: Path) -> None:
    """At any rate, with one channel or several."""
    retriever = Retriever.from_pretrained(trained, device="cpu")
    model = MtebModel(retriever, "tiny")
    paths = [clip.path for clip in read_split(corpus, "Synthetic", "test")[:2]]
    (first, rate), (second, _) = (soundfile.read(path) for path in paths)
    channels = np.stack([second, second * 0.5, second * 1.5])
    items = [{"array": first.tolist(), "sampling_rate": rate}, {"array": channels, "sampling_rate": rate}]
    found = model.encode([{"id": ["a"], "audio": items[:1]}, {"id": ["b"], "audio": items[1:]}])
    assert (found.dtype, found.shape) == (np.float32, (2, 256))
    assert np.allclose(found, retriever.embed_audio(paths), atol=1e-5)
    assert np.allclose(model.encode([{"audio": [Decoder(path) for path in paths]}]), found, atol=1e-5)
    slower = model.encode([{"audio": [{"array": first, "sampling_rate": rate // 2}]}])
    assert not np.allclose(slower[0], found[0], atol=1e-3)
    text = model.encode([{"id": ["a", "b"], "text": ["a dog", "a cat"]}])
    assert torch.equal(torch.from_numpy(text), retriever.embed_text(["a dog", "a cat"]))


def test_what_tells_models_apart_is_their_weights(trained: Path, tmp_path: Path) -> None:
    retriever = Retriever.from_pretrained(trained, device="cpu")
    same, other = (MtebModel(Retriever.from_pretrained(trained, device="cpu"), "a") for _ in range(2))
    next(other.model.model.parameters()).data += 1
    changed = MtebModel(other.model, "a")
    models: Any = (MtebModel(retriever, "a"), same, changed)
    revisions = [model.mteb_model_meta.revision for model in models]
    assert revisions[0] == revisions[1] != revisions[2]


def test_items_of_both_modalities_are_refused(trained: Path) -> None:
    model = MtebModel(Retriever.from_pretrained(trained, device="cpu"), "tiny")
    batches: list[tuple[Any, str]] = [({"audio": [], "text": []}, "audio and text"), ({"image": []}, "neither")]
    for batch, got in batches:
        with pytest.raises(InputError, match=f"expected items of audio or of text, got {got}"):
            model.encode([batch])
