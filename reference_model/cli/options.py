"""Options that several commands share."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import click

from reference_model.config import (
    ADDED_SETTINGS,
    AUDIO_CHECKPOINTS,
    Encoders,
    FrozenMode,
    Pooling,
    Precision,
    SelectOn,
    Size,
    Trained,
    WeightedRule,
)
from reference_model.paper import DECAY_EVERY, EPOCHS, PROTOCOLS

Command = Callable[..., None]
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
ENCODERS, SIZE, PRECISION = (click.Choice(get_args(kind)) for kind in (Encoders, Size, Precision))


class FiniteRange(click.FloatRange):
    """A range without infinity, and without NaN, which click finds in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or refuse it."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not finite.", param, ctx)
        return number


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command these options, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# For each setting of PROTOCOLS the type or the values of its option, and the help.
_PROTOCOL_OPTIONS: dict[str, tuple[Any, str]] = {
    "frozen_mode": (click.Choice(get_args(FrozenMode)), "Frozen encoders: constant, or with dropout and drift."),
    "spec_augment": (bool, "Erase stripes of the spectrograms, where the audio encoder is in train mode."),
    "dropout": (float, "Dropout of encoders of Hugging Face and of ResNet-38's residual blocks, in train mode."),
    "clip_norm": (float, "Scale larger gradients down to this norm; 0: none."),
    "direction_weights": ((float, float), "Of the loss with audio, and with text, as anchors; 0.5 0.5 is their mean."),
    "weighted_rule": (click.Choice(get_args(WeightedRule)), "The loss that triplet_weighted is."),
    "mask_same_clip": (bool, "Captions of one clip are no negatives of each other, except in nt_xent."),
    "select_on": (click.Choice(get_args(SelectOn)), "The best epoch has the highest sum of these recalls."),
}


def _protocol_option(name: str) -> Callable[[Command], Command]:
    """Return the option of one setting of the protocols, with its value in both of them in the help."""
    kind, text = _PROTOCOL_OPTIONS[name]
    values = ", ".join(f"{protocol}: {_in_words(preset[name])}" for protocol, preset in PROTOCOLS.items())
    return click.option(f"--{name.replace('_', '-')}", type=kind, help=f"{text} {values}.")


def _in_words(value: Any) -> str:
    """Format a value as it is typed on the command line."""
    if isinstance(value, dict):
        return ", ".join([*(f"{_in_words(pair)} with {loss}" for loss, pair in value.items()), "1 1 with others"])
    if isinstance(value, list):
        return " ".join(map(_in_words, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value


# Settings of a run that are no part of a row of the tables.
run_options = with_options(
    click.option("--data", default="data", help="The folder that holds a folder for each data set."),
    click.option("--model", type=SIZE, default="full", help="full: the paper's sizes; tiny: for two CPU cores."),
    click.option(
        "--audio-encoder",
        default=ADDED_SETTINGS["audio_encoder"],
        help=f"{', '.join(AUDIO_CHECKPOINTS)}; or any of Hugging Face by name, or its folder, with its own rate.",
    ),
    click.option(
        "--audio-checkpoint",
        show_default=", ".join(AUDIO_CHECKPOINTS.values()) + "; of the tiny model new weights",
        help="The file of PANNs from Zenodo, record 3987831; for the tiny model that of pretrain.",
    ),
    click.option(
        "--text-encoder",
        show_default="bert-base-uncased; of the tiny model a small BERT with new weights",
        help="Any of Hugging Face by name, or its folder.",
    ),
    click.option(
        "--text-pooling",
        type=click.Choice(get_args(Pooling)),
        default=ADDED_SETTINGS["text_pooling"],
        help="What stands for a caption: the output for its first token, or the mean over its tokens.",
    ),
    click.option(
        "--train",
        "trained",
        type=click.Choice(get_args(Trained)),
        default=ADDED_SETTINGS["trained"],
        help="With fine-tuned encoders: those that learn. Features of the other one are computed once.",
    ),
    click.option("--epochs", type=int, default=EPOCHS, help="Each sees every caption once."),
    click.option("--decay-every", type=int, default=DECAY_EVERY, help="Epochs between falls of the rate to 1/10."),
    click.option(
        "--protocol",
        "protocol_name",
        type=click.Choice(list(PROTOCOLS)),
        default="paper",
        help="What the paper's text says, or what its published code did; the next options change it one by one.",
    ),
    *map(_protocol_option, _PROTOCOL_OPTIONS),
    click.option("--learn-temperature", is_flag=True, help="Learn the temperature of the loss, and a bias it has."),
    click.option(
        "--queue",
        type=int,
        default=ADDED_SETTINGS["queue"],
        help="Embeddings of earlier pairs that are further negatives; captions of one clip are none of each other.",
    ),
    click.option(
        "--captions-together", is_flag=True, help="Batches hold all captions of a clip: the positives of sup_con."
    ),
    click.option(
        "--gradient-cache-micro-batch", type=int, help="Pairs embedded at a time: less memory, one more forward pass."
    ),
    click.option("--clip-seconds", type=float, help="AudioCaps 10, Clotho 30, Synthetic 1.5; others need it."),
    click.option("--precision", type=PRECISION, default="no", help="Of the encoders; losses are always in float32."),
    click.option("--workers", type=int, default=2, help="Processes that read audio."),
    click.option(
        "--features", type=FOLDER, show_default="DATA/DATASET/features", help="Of frozen encoders, kept for all runs."
    ),
    click.option("--checkpoint-minutes", type=FiniteRange(0), default=10.0, help="Time between saves within an epoch."),
)


def run_settings(options: Mapping[str, Any], row: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return settings of :class:`reference_model.config.Config` from the values of options, None where not given.

    Those that were not given come from the row of a table, the protocol, and the size of the model.
    """
    settings = dict(options)
    defaults = {**PROTOCOLS[settings.pop("protocol_name")], **(row or {})}
    if settings["model"] == "full":
        checkpoint = AUDIO_CHECKPOINTS.get(settings["audio_encoder"])
        defaults |= {"audio_checkpoint": checkpoint, "text_encoder": "bert-base-uncased"}
    if settings["audio_encoder"] not in AUDIO_CHECKPOINTS:
        defaults["spec_augment"] = False
    if settings["direction_weights"] is not None:
        settings["direction_weights"] = list(settings["direction_weights"])  # as grid.json has them
    return {name: defaults.get(name) if value is None else value for name, value in settings.items()}
