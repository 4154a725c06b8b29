"""A run that continues from its checkpoint ends as if it had not been interrupted; other data is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published_audio import FAMILIES
from runs import Interrupted, at_step, interrupt, make_nan
from safetensors.torch import load_file

from reference_model import InputError
from reference_model.config import Config
from reference_model.models import dual_encoder
from reference_model.run_folder import Diverged
from reference_model.runtime.tensors import load_tensors
from reference_model.training import setup
from reference_model.training.trainer import train


@pytest.mark.parametrize(
    "encoders, workers, audio",
    [("frozen", 0, None), ("fine-tuned", 0, None), ("fine-tuned", 1, None), ("fine-tuned", 0, "wav2vec2")],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    config: Config, tmp_path: Path, encoders: Any, workers: int, audio: str | None
) -> None:
    config = replace(config, encoders=encoders, workers=workers, epochs=3, decay_every=1)
    if audio is not None:
        for part in FAMILIES[audio]():
            part.save_pretrained(tmp_path / audio)
        config = replace(config, audio_encoder=str(tmp_path / audio))
    expected = train(config, tmp_path / "whole")
    with at_step(13, interrupt), pytest.raises(Interrupted):  # 5 steps an epoch: in the middle of the third
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    metrics = train(config, tmp_path / "run")
    assert metrics == expected
    assert [record["learning_rate"] for record in metrics["history"]] == pytest.approx([1e-3, 1e-4, 1e-5])
    theirs, ours = (load_file(tmp_path / run / "best.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


def test_a_bad_checkpoint_is_refused(config: Config, tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    (run / "config.json").write_text(json.dumps(config.as_dict()))
    (run / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"expected a safetensors file at .*checkpoint\.safetensors"):
        train(config, run)


def test_the_last_good_state_outlives_a_divergence(config: Config, tmp_path: Path) -> None:
    with at_step(3, make_nan), pytest.raises(Diverged):
        train(config, tmp_path / "run", checkpoint_minutes=0)
    tensors, progress = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert (progress["epoch"], progress["step"]) == (1, 2)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_other_data_and_other_frozen_encoders_are_refused_and_the_run_is_left_as_it_was(
    config: Config, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, moved = replace(config, encoders="frozen"), tmp_path / "run", tmp_path / "moved"
    with at_step(8, interrupt), pytest.raises(Interrupted):  # in the second epoch
        train(config, run)
    files = [p for p in run.rglob("*") if p.is_file() and p.name != "log.txt" and "events" not in p.name]
    before = {path: path.read_bytes() for path in files}
    table = shutil.copytree(corpus, moved) / "Synthetic" / "csv_files" / "train.csv"
    for old, new in (("low", "deep"), ("00003.wav", "other.wav")):
        text = table.read_text()
        table.write_text(text.replace(old, new))
        with pytest.raises(InputError, match="expected the clips and captions that"):
            train(replace(config, data=str(moved)), run)
        table.write_text(text)

    def other_model(*arguments: Any) -> Any:  # the file that the settings name may have been replaced
        torch.manual_seed(1)
        return dual_encoder.new_model(*arguments)

    monkeypatch.setattr(setup, "new_model", other_model)
    with pytest.raises(InputError, match=r"expected the frozen encoders that .* was begun with, got others in"):
        train(config, run)
    assert {path: path.read_bytes() for path in files} == before


def test_another_number_of_threads_is_said(config: Config, tmp_path: Path) -> None:
    """Sums are then formed in another order, and their last bits differ."""
    run, threads = tmp_path / "run", torch.get_num_threads()
    with at_step(3, interrupt), pytest.raises(Interrupted):
        train(config, run, checkpoint_minutes=0)
    try:
        torch.set_num_threads(threads + 1)
        with at_step(2, interrupt), pytest.raises(Interrupted):
            train(config, run, checkpoint_minutes=0)
    finally:
        torch.set_num_threads(threads)
    words = f"begun with {threads} threads, continued with {threads + 1}: not to the bit the same"
    assert (run / "log.txt").read_text().count(words) == 1
    train(config, run)
    assert json.loads((run / "time.json").read_text())["threads"] == threads
