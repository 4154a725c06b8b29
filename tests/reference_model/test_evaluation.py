"""Metrics against ranks counted by hand; metrics of a run, computed again from its folder."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.dataset import captions_of, read_split
from reference_model.evaluation import evaluate
from reference_model.evaluation import metrics as evaluation
from reference_model.evaluation.metrics import NotFinite, split_metrics
from reference_model.models.dual_encoder import saved_model
from reference_model.models.features import compute_features
from reference_model.runtime.devices import make_accelerator


def test_worked_by_hand() -> None:
    """Three clips, of 2, 1 and 1 captions, on a line: similarity is the product of one number each."""
    audio = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    metrics = split_metrics(audio, text, torch.tensor([0, 0, 1, 2]))
    # Captions to clips: 1st: 1, 0, .6 -> rank 1. 2nd: 0, 1, .8 -> rank 3. 3rd -> rank 1. 4th: 1, 0, .6 -> rank 2.
    assert metrics["text_to_audio"] == pytest.approx(
        {"R@1": 50, "R@5": 100, "R@10": 100, "R@50": 100, "median_rank": 1.5, "mean_rank": 1.75, "pool": 3,
         "mAP@10": 100 * (1 + 1 / 3 + 1 + 1 / 2) / 4, "mAP@16": 100 * (1 + 1 / 3 + 1 + 1 / 2) / 4}
    )  # fmt: skip
    # Clips to captions. 1st: 1, 0, 0, 1: own captions at 1 (tied with the 4th: rank 2) and 0 (with the 3rd: rank 4).
    # 2nd: 0, 1, 1, 0: own tied with the 2nd: rank 2. 3rd: .6, .8, .8, .6: own behind two, tied with one: rank 4.
    assert metrics["audio_to_text"] == pytest.approx(
        {"R@1": 0, "R@5": 100, "R@10": 100, "R@50": 100, "median_rank": 2, "mean_rank": (2 + 2 + 4) / 3, "pool": 4,
         "mAP@10": 100 * ((1 / 2 + 2 / 4) / 2 + 1 / 2 + 1 / 4) / 3,
         "mAP@16": 100 * ((1 / 2 + 2 / 4) / 2 + 1 / 2 + 1 / 4) / 3}
    )  # fmt: skip
    assert evaluation.sum_of_recalls(metrics) == pytest.approx(50 + 100 + 100 + 0 + 100 + 100)


@pytest.mark.parametrize("captions", [[1, 1, 1], [2, 1, 3], [5, 5]])
def test_chance_equals_counting_all_rankings(captions: list[int]) -> None:
    expected = evaluation.chance(captions)
    owners = [clip for clip, n in enumerate(captions) for _ in range(n)]
    for k in (1, 5):
        assert expected["text_to_audio"][f"R@{k}"] == pytest.approx(100 * min(k, len(captions)) / len(captions))
        # The first k captions of a random ranking are any k of them.
        firsts = itertools.product(itertools.combinations(owners, min(k, len(owners))), range(len(captions)))
        found = [clip in first for first, clip in firsts]
        assert expected["audio_to_text"][f"R@{k}"] == pytest.approx(100 * sum(found) / len(found))


def test_refuses_what_would_look_perfect() -> None:
    good = torch.eye(2)
    with pytest.raises(NotFinite, match="expected finite audio embeddings, got NaN or inf"):
        split_metrics(good * math.nan, good, torch.arange(2))
    with pytest.raises(NotFinite, match="expected finite text embeddings"):
        split_metrics(good, good / 0, torch.arange(2))
    with pytest.raises(ValueError, match=r"expected every row of y .* got none for 1 of 2, such as y\[1\], id 1"):
        split_metrics(good, good, torch.zeros(2, dtype=torch.int64))


def test_a_run_is_measured_again_on_its_own_data_and_elsewhere(trained: Path, corpus: Path, tmp_path: Path) -> None:
    stored = json.loads((trained / "metrics.json").read_text())
    moved = str(shutil.copytree(corpus, tmp_path / "moved"))
    for split, data in (("test", None), ("val", None), ("test", moved)):
        assert evaluate.evaluate_run(trained, split=split, data=data) == stored[split]
    with pytest.raises(InputError, match="expected the captions of the test split"):
        evaluate.evaluate_run(trained, split="test", data=str(tmp_path))
    with pytest.raises(InputError, match=r"expected a run with a finished epoch in .*, got no best\.safetensors"):
        evaluate.evaluate_run(tmp_path, split="test", data=None)


def test_metrics_and_diagnosis_are_those_of_the_embeddings(trained: Path, corpus: Path) -> None:
    config, accelerator = Config.read(trained / "config.json"), make_accelerator("no")
    model = saved_model(config, trained)
    model.to(accelerator.device)
    clips = read_split(corpus, "Synthetic", "test")
    features = compute_features(model, clips, model.text_encoder.tokenize(captions_of(clips)), config, accelerator)
    audio, text = evaluate.embeddings(model.heads, features, accelerator)
    assert (audio.shape, text.shape, audio.requires_grad) == ((6, 256), (30, 256), False)
    metrics, diagnosis = evaluate.evaluate(model.heads, features, accelerator)
    assert metrics == split_metrics(audio, text, features.clip_of_caption)
    # The diagnosis is of six pairs: every clip with the first of its five captions.
    assert diagnosis["positive"] == pytest.approx(float((audio * text[::5]).sum(1).mean()), abs=1e-5)
