"""Metrics of a run, computed again from its folder."""

import json
import shutil
from pathlib import Path

import pytest

from reference_model import InputError
from reference_model.config import Config
from reference_model.data.dataset import captions_of, read_split
from reference_model.evaluation.evaluate import embeddings, evaluate, evaluate_run
from reference_model.evaluation.metrics import retrieval_metrics
from reference_model.models.bert import tokenize
from reference_model.models.dual_encoder import saved_model
from reference_model.models.features import compute_features
from reference_model.runtime.devices import make_accelerator


def test_a_run_is_measured_again_on_its_own_data_and_elsewhere(trained: Path, corpus: Path, tmp_path: Path) -> None:
    stored = json.loads((trained / "metrics.json").read_text())
    assert evaluate_run(trained, split="test", data=None) == stored["test"]
    assert evaluate_run(trained, split="val", data=None) == stored["val"]
    moved = str(shutil.copytree(corpus, tmp_path / "moved"))
    assert evaluate_run(trained, split="test", data=moved) == stored["test"]
    with pytest.raises(InputError, match="expected the captions of the test split"):
        evaluate_run(trained, split="test", data=str(tmp_path))


def test_a_folder_without_a_finished_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run with a finished epoch in .*, got no best\.safetensors"):
        evaluate_run(tmp_path, split="test", data=None)


def test_metrics_and_diagnosis_are_those_of_the_embeddings(trained: Path, corpus: Path) -> None:
    config = Config.read(trained / "config.json")
    model, tokenizer = saved_model(config, trained)
    accelerator = make_accelerator("no")
    model.to(accelerator.device)
    clips = read_split(corpus, "Synthetic", "test")
    features = compute_features(model, clips, tokenize(tokenizer, captions_of(clips)), config, accelerator)
    audio, text = embeddings(model.heads, features, accelerator)
    assert (audio.shape, text.shape) == ((6, 256), (30, 256))
    metrics, diagnosis = evaluate(model.heads, features, accelerator)
    assert metrics == retrieval_metrics(audio, text, features.clip_of_caption)
    # The diagnosis is of six pairs: every clip with the first of its five captions.
    assert diagnosis["positive"] == pytest.approx(float((audio * text[::5]).sum(1).mean()), abs=1e-5)
    assert not audio.requires_grad
