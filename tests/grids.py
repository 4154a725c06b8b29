"""What a grid is made of, given the config of one of its runs."""

from dataclasses import asdict
from typing import Any

from reference_model.config import Config
from reference_model.paper import ROW_SETTINGS


def settings(config: Config) -> dict[str, Any]:
    """Of all its runs."""
    return {name: value for name, value in asdict(config).items() if name not in (*ROW_SETTINGS, "seed")}
