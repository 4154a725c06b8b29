"""The files in the folder of a run or of a saved model, by name; and the state of the run in a folder."""

from pathlib import Path
from typing import Any

from reference_model import InputError
from reference_model.config import Config
from reference_model.runtime.files import read_json, require_same_settings

CONFIG = "config.json"
CHECKPOINT = "checkpoint.safetensors"  # while the run is under way
LOG = "log.txt"
TENSORBOARD = "tensorboard"  # a folder
CURVES = "curves.png"
TEXT_ENCODER = "text_encoder"  # a folder: BERT's settings and the tokenizer
FROZEN_WEIGHTS = "frozen.safetensors"  # the parameters of frozen encoders; BEST_WEIGHTS holds everything else
BEST_WEIGHTS = "best.safetensors"  # of the best epoch so far
TEST_EMBEDDINGS = "test_embeddings.safetensors"  # of the best weights: audio [N, D] and text [M, D]
TIME = "time.json"  # seconds of work, and the machine
METRICS = "metrics.json"  # when the run is finished
DIVERGED = "diverged.json"  # when the run has diverged

# In the folder of a saved model, which has CONFIG, TEXT_ENCODER and METRICS too.
MODEL_WEIGHTS = "model.safetensors"  # all weights


class Diverged(InputError):
    """The loss, or an embedding, is no longer finite."""


def open_run(config: Config, folder: Path) -> dict[str, Any] | None:
    """Make the folder of a run if there is none, and return the metrics of the run; None if it is not finished.

    Raises:
        InputError: the folder holds something else, or a run of another configuration.
        Diverged: the folder holds this run, and it has diverged.
    """
    if (folder / CONFIG).exists():
        stored, expected = Config.read(folder / CONFIG).deciding(), "new or a run of this configuration"
        require_same_settings(folder, stored, config.deciding(), expected=expected, got="a run of another ({})")
        if (folder / DIVERGED).exists():
            raise Diverged(read_json(folder / DIVERGED)["reason"])
        if not (folder / METRICS).exists():
            return None
        (folder / CHECKPOINT).unlink(missing_ok=True)  # the process was killed before it removed this file
        return stored_metrics(folder)
    if folder.exists() and (
        not folder.is_dir() or any(path.name != LOG and not path.name.startswith(".") for path in folder.iterdir())
    ):
        raise InputError(
            f"expected {folder} to be new or a run's folder, got something without {CONFIG}; choose another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected to write a run in {folder}, got: {error}; --out names another folder") from error
    return None


def stored_metrics(folder: Path) -> dict[str, Any]:
    """Return the content of ``metrics.json`` of a finished run."""
    return read_json(folder / METRICS)
