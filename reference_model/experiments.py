"""The rows of the paper's tables 1 and 2 as named experiments; their settings are in ``paper_tables.json``."""

import functools
import json
from pathlib import Path
from typing import Any

TABLES = Path(__file__).with_name("paper_tables.json")
SETTINGS = ("dataset", "encoders", "loss", "batch_size", "learning_rate")
TABLE_2_BATCH_SIZE = 128  # its other half, batch size 32, repeats table 1


def name_of(row: dict[str, Any]) -> str:
    """audiocaps-frozen-nt_xent; with the batch size at its end where table 2 departs from table 1."""
    name = f"{row['dataset'].lower()}-{row['encoders']}-{row['loss']}"
    return f"{name}-batch-{row['batch_size']}" if row["batch_size"] == TABLE_2_BATCH_SIZE else name


@functools.cache
def experiments() -> dict[str, dict[str, Any]]:
    """Name to settings, in the order of the tables."""
    tables = json.loads(TABLES.read_text(encoding="utf-8"))
    rows = [*tables["table_1"], *tables["table_2"]]
    return {name_of(row): {setting: row[setting] for setting in SETTINGS} for row in rows}
