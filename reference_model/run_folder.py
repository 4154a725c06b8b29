"""The files in the folder of a run or of a saved model, by name; and the state of the run in a folder."""

from pathlib import Path
from typing import Any

from pydantic import FiniteFloat
from typing_extensions import NotRequired, TypedDict

from reference_model import InputError
from reference_model.config import Config
from reference_model.runtime.files import require_same_settings
from reference_model.runtime.records import read_json

CONFIG = "config.json"
CHECKPOINT = "checkpoint.safetensors"  # while the run is under way
LOG = "log.txt"
TENSORBOARD = "tensorboard"  # a folder
CURVES = "curves.png"
TEXT_ENCODER = "text_encoder"  # a folder: settings and tokenizer
AUDIO_ENCODER = "audio_encoder"  # a folder, of those in the Hugging Face layout alone: settings and feature extractor
FROZEN_WEIGHTS = "frozen.safetensors"  # the parameters of frozen encoders; BEST_WEIGHTS holds everything else
BEST_WEIGHTS = "best.safetensors"  # of the best epoch so far
TEST_EMBEDDINGS = "test_embeddings.safetensors"  # of the best weights: audio [N, D] and text [M, D]
TIME = "time.json"  # seconds of work, and the machine
METRICS = "metrics.json"  # when the run is finished
DIVERGED = "diverged.json"  # when the run has diverged

# In the folder of a saved model, which has CONFIG, the encoders' folders and METRICS too.
MODEL_WEIGHTS = "model.safetensors"  # all weights


KIND = "the metrics of a run"

# Of one direction; the names that the tables, the report and the model card read.
Recalls = TypedDict(
    "Recalls",
    {
        "R@1": FiniteFloat,
        "R@5": FiniteFloat,
        "R@10": FiniteFloat,
        "mAP@10": NotRequired[FiniteFloat],
        "mAP@16": NotRequired[FiniteFloat],
        "median_rank": NotRequired[FiniteFloat],
    },
)


class Measured(Recalls):
    """The metrics of one direction, and the number of candidates."""

    pool: int


class OfDirections(TypedDict):
    """The metrics of a split."""

    text_to_audio: Measured
    audio_to_text: Measured


class Chance(TypedDict):
    """The recalls of random rankings."""

    text_to_audio: Recalls
    audio_to_text: Recalls


class TableMetrics(TypedDict):
    """The part of ``metrics.json`` that the paper's tables show."""

    test: OfDirections
    chance: Chance
    collapsed: bool


class Epoch(TypedDict):
    """The record of a finished epoch."""

    epoch: int
    loss: FiniteFloat
    learning_rate: FiniteFloat
    val: OfDirections
    diagnosis: dict[str, float]  # NaN where a split has one clip


class Clips(TypedDict):
    """The number of clips of each split."""

    train: int
    val: int
    test: int


class RunMetrics(TableMetrics):
    """The content of ``metrics.json``."""

    val: OfDirections
    best_epoch: int
    clips: Clips
    versions: dict[str, str]
    history: list[Epoch]


class Time(TypedDict):
    """The content of ``time.json``."""

    seconds: FiniteFloat
    machine: str


class Reason(TypedDict):
    """The content of ``diverged.json``, and of the record of a run that failed, as far as it is read."""

    reason: str


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
            raise Diverged(stored_reason(folder / DIVERGED))
        if not (folder / METRICS).exists():
            return None
        (folder / CHECKPOINT).unlink(missing_ok=True)  # the process was killed before it removed this file
        metrics: dict[str, Any] = read_json(folder / METRICS, dict[str, Any], KIND)
        return metrics
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


def stored_metrics(folder: Path, form: Any = RunMetrics) -> dict[str, Any]:
    """Return the content of ``metrics.json`` of a finished run, which has this form."""
    metrics: dict[str, Any] = read_json(folder / METRICS, form, KIND)
    return metrics


def stored_time(folder: Path) -> Time:
    """Return the content of ``time.json`` of a finished run."""
    time: Time = read_json(folder / TIME, Time, "the time that a run took")
    return time


def stored_reason(file: Path) -> str:
    """Return the reason in the record of a run that failed or diverged."""
    reason: str = read_json(file, Reason, "the reason why a run ended")["reason"]
    return reason
