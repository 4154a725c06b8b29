"""Everything that the paper says: data sets, settings, and the rows of tables 1 and 2 as named experiments.

Mei et al. 2022, "On Metric Learning for Audio-Text Cross-Modal Retrieval". The settings of the losses are defaults of
:mod:`crossmodal_losses`, the length of clips is in :mod:`reference_model.data.layouts`.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reference_model import InputError

PAPER_TABLES = Path(__file__).with_name("paper_tables.json")  # the rows as published: settings and recalls
TABLES = ("1", "2")

DATASET_SIZES = {  # clips; section 3.1
    "AudioCaps": {"train": 49_274, "val": 494, "test": 957},
    "Clotho": {"train": 3_839, "val": 1_045, "test": 1_045},
}
DEFAULT_DATASET = "AudioCaps"  # its rows are those of any data set that the paper does not have
LOSS_NAMES = {  # in the tables
    "triplet_sum": "Triplet-sum",
    "triplet_max": "Triplet-max",
    "triplet_weighted": "Triplet-weighted",
    "nt_xent": "NT-Xent",
}
SIMILAR_LOSSES = {"triplet_weighted_mined": "triplet_weighted"}  # a loss that is not in the tables, and one that is

# Section 3.2. The batch size and the learning rate of a run stand in its row of the tables.
EPOCHS = 50
LEARNING_RATE = 1e-4  # a star in table 1 marks the rows with another one
DECAY_EVERY = 20  # epochs
DECAY_FACTOR = 0.1  # of the learning rate, every DECAY_EVERY epochs
TABLE_2_BATCH_SIZE = 128  # of one half of table 2; the other half, batch size 32, repeats table 1
SEEDS = (0, 1, 2)  # section 3.3: three runs with different seeds; which ones the paper does not say

# The settings in which the paper's text and its published code differ; Config says what each means.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {
        "frozen_mode": "eval",  # section 3.2: frozen encoders
        "spec_augment": False,  # not mentioned
        "dropout": 0.1,  # not mentioned: that of the published encoders
        "clip_norm": 0.0,  # not mentioned
        "direction_weights": [1.0, 1.0],  # equations 2 to 7
        "weighted_rule": "equation-6",
        "mask_same_clip": False,  # section 2.3: every j != i is a negative
        "select_on": "both-directions",  # section 3.2: the highest sum of recalls
    },
    "released": {  # github.com/XinhaoMei/audio-text_retrieval, for every setting
        "frozen_mode": "train",
        "spec_augment": True,
        "dropout": 0.2,
        "clip_norm": 2.0,
        "direction_weights": {"nt_xent": [0.5, 0.5]},  # of the others [1.0, 1.0]
        "weighted_rule": "mined",
        "mask_same_clip": True,
        "select_on": "text-to-audio",
    },
}

ROW_SETTINGS = ("dataset", "encoders", "loss", "batch_size", "learning_rate")  # of an experiment
Experiment = dict[str, Any]


def experiment_name(row: Mapping[str, Any]) -> str:
    """Return the name of a row, with -batch-128 at its end for that batch size.

    >>> experiment_name({"dataset": "AudioCaps", "encoders": "frozen", "loss": "nt_xent", "batch_size": 32})
    'audiocaps-frozen-nt_xent'
    """
    name = f"{row['dataset'].lower()}-{row['encoders']}-{row['loss']}"
    return f"{name}-batch-{row['batch_size']}" if row["batch_size"] == TABLE_2_BATCH_SIZE else name


@functools.cache
def _rows(table: str) -> list[dict[str, Any]]:
    """Return the rows of a table as published, in its order."""
    rows: list[dict[str, Any]] = json.loads(PAPER_TABLES.read_text(encoding="utf-8"))[f"table_{table}"]
    return rows


@functools.cache
def experiments() -> dict[str, Experiment]:
    """Return the settings of every row by its name, in the order of the tables."""
    rows = (row for table in TABLES for row in _rows(table))
    return {experiment_name(row): {name: row[name] for name in ROW_SETTINGS} for row in rows}


@functools.cache
def published() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return the published recalls: name to direction to metric to mean and standard deviation, in percent."""
    directions = ("text_to_audio", "audio_to_text")
    return {experiment_name(row): {way: row[way] for way in directions} for table in TABLES for row in _rows(table)}


def select_rows(
    tables: Sequence[str],
    *,
    datasets: Sequence[str] = (),
    encoders: Sequence[str] = (),
    losses: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    learning_rate: float | None = None,
) -> dict[str, list[Experiment]]:
    """Return the rows of these tables by the table's number, in the order of the table.

    Without data sets, encoders, losses or batch sizes, those of all rows are taken. A data set that the paper does not
    have takes the rows of AudioCaps. The learning rate replaces that of every row. A table without rows is an
    InputError.
    """
    replaced = {} if learning_rate is None else {"learning_rate": learning_rate}
    kept: dict[str, list[Experiment]] = {}
    for table in tables:
        kept[table] = [
            {**{name: row[name] for name in ROW_SETTINGS}, "dataset": dataset, **replaced}
            for dataset in datasets or DATASET_SIZES
            for row in _rows(table)
            if row["dataset"] == (dataset if dataset in DATASET_SIZES else DEFAULT_DATASET)
            and row["encoders"] in (encoders or [row["encoders"]])
            and row["loss"] in (losses or [row["loss"]])
            and row["batch_size"] in (batch_sizes or [row["batch_size"]])
        ]
        if not kept[table]:
            raise InputError(
                f"expected rows of table {table}, got none of these data sets, encoders, losses, batch sizes"
            )
    return kept


def row_for(dataset: str, encoders: str, loss: str) -> tuple[Experiment, str]:
    """Return the row of table 1 from which a run takes its settings, and in words which row that is.

    A data set that the paper does not have takes the row of AudioCaps, triplet_weighted_mined that of triplet_weighted,
    and any other loss that is not in the table that of NT-Xent.
    """
    row_dataset = dataset if dataset in DATASET_SIZES else DEFAULT_DATASET
    row_loss = loss if loss in LOSS_NAMES else SIMILAR_LOSSES.get(loss, "nt_xent")
    (row,) = select_rows(["1"], datasets=[row_dataset], encoders=[encoders], losses=[row_loss])["1"]
    words = f"table 1, {row_dataset}, {encoders}, {LOSS_NAMES[row_loss]}"
    absent = [name for name in (dataset, loss) if name not in (row_dataset, row_loss)]
    return row, f"{words}, for it has no row of {' and '.join(absent)}" if absent else words
