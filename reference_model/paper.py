"""The rows of the paper's tables 1 and 2 as named experiments; ``paper_tables.json`` has settings and recalls."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reference_model import InputError

PAPER_TABLES = Path(__file__).with_name("paper_tables.json")
SETTINGS = ("dataset", "encoders", "loss", "batch_size", "learning_rate")
TABLES = ("1", "2")
TABLE_2_BATCH_SIZE = 128  # its other half, batch size 32, repeats table 1
STAND_IN_FOR = "AudioCaps"  # whose rows another data set takes
DECAY_FACTOR = 0.1  # of the learning rate, every Config.decay_every epochs; section 3.2

# The settings in which the paper's text and its published code differ; Config says what each means.
PROTOCOLS: dict[str, dict[str, Any]] = {
    # The text, sections 2.3 and 3.2. Dropout: that of the published encoders.
    "paper": {
        "frozen_mode": "eval",
        "spec_augment": False,
        "dropout": 0.1,
        "clip_norm": 0.0,
        "nt_xent_factor": 1.0,
        "weighted_rule": "equation-6",
        "mask_same_clip": False,
        "select_on": "both-directions",
    },
    # The code, github.com/XinhaoMei/audio-text_retrieval.
    "released": {
        "frozen_mode": "train",
        "spec_augment": True,
        "dropout": 0.2,
        "clip_norm": 2.0,
        "nt_xent_factor": 0.5,
        "weighted_rule": "mined",
        "mask_same_clip": True,
        "select_on": "text-to-audio",
    },
}

Settings = dict[str, Any]


def name_of(row: Mapping[str, Any]) -> str:
    """audiocaps-frozen-nt_xent; with the batch size at its end where table 2 departs from table 1."""
    name = f"{row['dataset'].lower()}-{row['encoders']}-{row['loss']}"
    return f"{name}-batch-{row['batch_size']}" if row["batch_size"] == TABLE_2_BATCH_SIZE else name


@functools.cache
def _rows(table: str) -> list[dict[str, Any]]:
    """As published, in the order of the table."""
    rows: list[dict[str, Any]] = json.loads(PAPER_TABLES.read_text(encoding="utf-8"))[f"table_{table}"]
    return rows


@functools.cache
def experiments() -> dict[str, Settings]:
    """Name to settings, in the order of the tables."""
    return {name_of(row): {name: row[name] for name in SETTINGS} for table in TABLES for row in _rows(table)}


@functools.cache
def published() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Name to direction to metric to mean and standard deviation, in percent."""
    directions = ("text_to_audio", "audio_to_text")
    return {name_of(row): {way: row[way] for way in directions} for table in TABLES for row in _rows(table)}


def chosen(
    tables: Sequence[str], *, datasets: Sequence[str] = (), encoders: Sequence[str] = (), losses: Sequence[str] = ()
) -> dict[str, list[Settings]]:
    """The rows of these tables, in their order: all of them, or those of the data sets, encoders and losses given.

    A data set that the paper does not have takes the rows of AudioCaps.

    Raises:
        InputError: a table is left without rows.
    """
    of_paper = dict.fromkeys(row["dataset"] for row in experiments().values())
    kept: dict[str, list[Settings]] = {}
    for table in tables:
        kept[table] = [
            {**{name: row[name] for name in SETTINGS}, "dataset": dataset}
            for dataset in datasets or of_paper
            for row in _rows(table)
            if row["dataset"] == (dataset if dataset in of_paper else STAND_IN_FOR)
            and row["encoders"] in (encoders or [row["encoders"]])
            and row["loss"] in (losses or [row["loss"]])
        ]
        if not kept[table]:
            raise InputError(f"expected rows of table {table}, got none of these data sets, encoders and losses")
    return kept
