"""Losses x seeds to a table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reference_model import reproduce
from reference_model.config import Config
from reference_model.report import chance_row, markdown, table_row
from reference_model.retrieval import chance
from reference_model.run_folder import Diverged
from reference_model.train import train


def metrics(recall: float, *, collapsed: bool = False) -> dict[str, Any]:
    recalls = {"R@1": recall, "R@5": recall + 10, "R@10": recall + 20}
    return {"test": {"text_to_audio": recalls, "audio_to_text": recalls}, "collapsed": collapsed}


def test_table_worked_by_hand() -> None:
    rows = [
        table_row("triplet_sum", [metrics(10), metrics(13), metrics(16)]),
        table_row("triplet_max", [metrics(1, collapsed=True), metrics(3)], diverged=1),
        table_row("nt_xent", [], diverged=2),
        table_row("triplet_weighted", [metrics(20.04)]),
        chance_row({"chance": chance([5] * 200)}),
    ]
    assert markdown(rows, caption="Caption").splitlines() == [
        "Caption",
        "",
        "| Objective | Text-to-Audio R@1 | Text-to-Audio R@5 | Text-to-Audio R@10 "
        "| Audio-to-Text R@1 | Audio-to-Text R@5 | Audio-to-Text R@10 |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| Triplet-sum | 13.0 ± 3.0 | 23.0 ± 3.0 | 33.0 ± 3.0 | 13.0 ± 3.0 | 23.0 ± 3.0 | 33.0 ± 3.0 |",
        "| Triplet-max (collapsed 1 of 3, diverged 1 of 3) "
        "| 2.0 ± 1.4 | 12.0 ± 1.4 | 22.0 ± 1.4 | 2.0 ± 1.4 | 12.0 ± 1.4 | 22.0 ± 1.4 |",
        "| NT-Xent (diverged 2 of 2) | - | - | - | - | - | - |",
        "| Triplet-weighted | 20.0 | 30.0 | 40.0 | 20.0 | 30.0 | 40.0 |",
        "| Chance | 0.5 | 2.5 | 5.0 | 0.5 | 2.5 | 4.9 |",
    ]


def test_finished_runs_are_not_repeated_and_diverged_ones_do_not_stop_the_others(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, int]] = []

    def scripted(config: Config, run: Path, *, position: int) -> dict[str, Any]:
        if not (run / "metrics.json").exists():
            started.append((config.loss, config.seed))
        if config.loss == "triplet_max":
            raise Diverged("training stopped")
        return train(config, run)

    monkeypatch.setattr(reproduce, "train", scripted)
    config = replace(config, epochs=1)
    losses = ("triplet_max", "nt_xent")
    text = reproduce.reproduce(config, losses=losses, seeds=(0, 1), out=tmp_path)
    assert started == [("triplet_max", 0), ("triplet_max", 1), ("nt_xent", 0), ("nt_xent", 1)]
    assert "| Triplet-max (diverged 2 of 2) | - |" in text
    assert "Synthetic, 6 test clips" in text
    table = json.loads((tmp_path / "table.json").read_text())
    runs = [json.loads((tmp_path / f"runs/nt_xent-seed-{k}/metrics.json").read_text()) for k in (0, 1)]
    cell = table["rows"][1]["text_to_audio"]["R@1"]
    values = [run["test"]["text_to_audio"]["R@1"] for run in runs]
    assert cell["mean"] == pytest.approx(sum(values) / 2)
    assert cell["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.md").read_text() == text

    started.clear()
    assert reproduce.reproduce(config, losses=("nt_xent",), seeds=(0, 1, 2), out=tmp_path).count("NT-Xent") == 1
    assert started == [("nt_xent", 2)]


def test_jobs_side_by_side_change_nothing(config: Config, tmp_path: Path) -> None:
    config = replace(config, epochs=1)
    tables = []
    for jobs in (1, 2):
        reproduce.reproduce(config, losses=("triplet_sum", "nt_xent"), seeds=(0,), out=tmp_path / str(jobs), jobs=jobs)
        tables.append(json.loads((tmp_path / str(jobs) / "table.json").read_text()))
    assert tables[0] == tables[1]


def test_nothing_but_diverged_runs(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise Diverged("training stopped")

    monkeypatch.setattr(reproduce, "train", diverge)
    assert "diverged" in reproduce.reproduce(config, losses=("nt_xent",), seeds=(0,), out=tmp_path)
