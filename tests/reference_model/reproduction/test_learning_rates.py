"""The grid at several learning rates, made up, and its table and picture."""

import json
from pathlib import Path

import pytest
from grids import diverge, finish, runs_by_name, small_grid

from reference_model import InputError
from reference_model.paper import select_rows
from reference_model.reproduction import learning_rates
from reference_model.reproduction.learning_rates import (
    rate_folder,
    rate_folders,
    refuse_other_folder,
    write_learning_rates,
)

EXPECTED = """\
R@10 in %, text to audio / audio to text, by learning rate; the mean over seeds.

| Runs | Objective | 0.0001 | 0.001 |
|---|---|---:|---:|
| Synthetic, frozen, batch size 32 | Triplet-max | 30.0 / 31.0 | 15.0 / 15.5 (1 of 2 collapsed) |
| Synthetic, frozen, batch size 32 | NT-Xent | 40.0 / 41.0 | 44.0 / 45.0 (1 of 2 diverged) |
"""


def test_rates_that_differ_have_different_folders() -> None:
    assert rate_folder(Path("out"), 1e-4) == Path("out/rate-0.0001")
    assert rate_folder(Path("out"), 1.0000001e-4) != rate_folder(Path("out"), 1e-4)


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    for name in ("rate-0.1", "jobs", "learning_rates.md", ".tables.lock"):
        (tmp_path / name).mkdir()
        refuse_other_folder(tmp_path)
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InputError, match="to be new or the folder of grids of learning rates; choose another --out"):
        refuse_other_folder(tmp_path)


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    for rate in (1e-3, 1e-4):
        chosen = {"datasets": ["Synthetic"], "encoders": ["frozen"], "losses": ["triplet_max", "nt_xent"]}
        grid = small_grid(select_rows(["1"], learning_rate=rate, **chosen), (0, 1))  # type: ignore[arg-type]
        folder = rate_folder(tmp_path, rate)
        grid.write(folder)
        runs = runs_by_name(grid, folder)
        for seed, step in ((0, 0), (1, 2)):
            largest, nt_xent = (runs[f"synthetic-frozen-{loss}-seed-{seed}"] for loss in ("triplet_max", "nt_xent"))
            if rate == 1e-4:
                finish(largest, 1, 2, 29 + step, 1, 2, 30 + step)
                finish(nt_xent, 1, 2, 39 + step, 1, 2, 40 + step)
            else:
                finish(largest, 1, 2, 30 * seed, 1, 2, 31 * seed, collapsed=seed == 0)
                diverge(nt_xent) if seed else finish(nt_xent, 1, 2, 44, 1, 2, 45)
    assert rate_folders(tmp_path) == [tmp_path / "rate-0.0001", tmp_path / "rate-0.001"]
    assert write_learning_rates(tmp_path) == EXPECTED == (tmp_path / "learning_rates.md").read_text()
    found = json.loads((tmp_path / "learning_rates.json").read_text())
    assert [(point["loss"], point["learning_rate"]) for point in found] == [
        ("triplet_max", 1e-4), ("nt_xent", 1e-4), ("triplet_max", 1e-3), ("nt_xent", 1e-3),
    ]  # fmt: skip
    assert (tmp_path / "learning_rates.png").stat().st_size > 1000
    figure = learning_rates.plot(found)
    above, below = figure.axes
    assert above.get_xscale() == "log"
    assert [line.get_xydata().tolist() for line in above.lines if line.get_marker() == "x"] == [[[1e-3, 15.0]]]  # type: ignore[union-attr]
    assert below.get_ylabel() == "Audio-to-Text R@10, %"
