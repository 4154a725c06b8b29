"""Data, model and batches of a run."""

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from reference_model import InputError
from reference_model.config import Config
from reference_model.run_folder import Diverged
from reference_model.training.setup import spread_seed
from reference_model.training.trainer import train


def test_bad_data_is_refused_before_training(config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the captions of the train split"):
        train(replace(config, data=str(tmp_path)), tmp_path / "b")
    with pytest.raises(InputError, match="expected at least one batch of 500 pairs, got 80"):
        train(replace(config, batch_size=500), tmp_path / "b")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_sample_that_is_not_finite_is_no_divergence(
    config: Config, corpus: Path, tmp_path: Path, split: str, workers: int
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    bad = data / "Synthetic" / "waveforms" / split / "00001.wav"
    soundfile.write(bad, [0.0, math.nan, 0.0], 32_000, "FLOAT")
    with pytest.raises(InputError) as refusal:
        train(replace(config, data=str(data), workers=workers), tmp_path / "run")
    assert not isinstance(refusal.value, Diverged)
    assert str(refusal.value) == f"expected finite samples, got NaN or inf in {bad}"


def test_every_process_draws_other_numbers() -> None:
    numbers = itertools.product((0, 1), (1, 2), (1, 2), (0, 1))  # seed, epoch, step, process
    assert len({spread_seed(*each) for each in numbers}) == 16
