"""Losses x seeds: train what is not yet trained, then write the table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reference_model.config import Config
from reference_model.report import chance_row, table_row, write_table
from reference_model.train import Diverged, train


def reproduce(config: Config, *, losses: Sequence[str], seeds: Sequence[int], out: Path) -> str:
    """Run every loss with every seed under ``out/runs`` and write ``out/table.{md,json,png}``; returns the Markdown.

    Finished runs are not repeated, interrupted ones continue. A run whose loss is no longer finite is counted in the
    table as diverged, and the others go on.
    """
    rows: list[dict[str, Any]] = []
    for loss in losses:
        runs, diverged = [], 0
        for seed in seeds:
            try:
                runs.append(train(replace(config, loss=loss, seed=seed), out / "runs" / f"{loss}-seed-{seed}"))
            except Diverged:
                diverged += 1
        rows.append(table_row(loss, runs, diverged=diverged))
        if runs:
            last = runs[-1]
    if any(row["runs"] for row in rows):
        rows.append(chance_row(last))
        pool = last["test"]["text_to_audio"]["pool"]
    else:
        pool = 0
    caption = (
        f"{config.dataset}, {pool} test clips, {config.encoders} encoders, {config.model} model, "
        f"batch size {config.batch_size}, {config.epochs} epochs, {_seeds(seeds)}; recalls in %"
    )
    return write_table(out, rows, caption=caption)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}"
