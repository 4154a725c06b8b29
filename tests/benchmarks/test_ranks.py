"""The benchmark of many processes: what it counts, and that it ends when one of them does."""

import csv
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from benchmarks.baselines import BASELINES, OPEN_CLIP
from benchmarks.processes import launch
from benchmarks.ranks import main
from benchmarks.traffic import transfer


def test_counts_of_three_processes(tmp_path: Path) -> None:
    """Ours computes a third of the similarities each, open_clip twice that; x never travels. It checks the rest."""
    tiny = ["-w", 3, "-b", 192, "--rows", 64, "--dimension", 16, "--tile-size", 32, "--rounds", 2, "--loss", "nt_xent"]
    result = CliRunner().invoke(main, [*map(str, tiny), "--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    with (tmp_path / "ranks.csv").open() as file:
        found = {row["implementation"]: row for row in csv.DictReader(file)}
    expected = {"GatheredLoss": ("0.333", "1.33"), "RingLoss": ("0.333", "1.67"), OPEN_CLIP: ("0.500", "2.67")}
    if OPEN_CLIP not in BASELINES["nt_xent"]:
        del expected[OPEN_CLIP]
    assert {which: (row["FLOPs / one process"], row["sent / B D"]) for which, row in found.items()} == expected
    for row in found.values():
        assert float(row["error"]) < 1e-5
        assert 0 < float(row["lower quartile"]) <= float(row["ms"]) <= float(row["upper quartile"])
    assert (tmp_path / "ranks.md").read_text().count("\n|") == 2 + len(found)


@pytest.mark.parametrize(
    "name, sent",
    [("send", 6), ("recv_", 0), ("broadcast_", 18), ("reduce_", 0), ("allreduce_", 9), ("_allgather_base_", 18),
     ("allgather_", 18), ("_reduce_scatter_base_", 18), ("scatter_", 18), ("alltoall_", 18), ("alltoall_base_", 6)],
)  # fmt: skip
def test_what_is_sent(name: str, sent: int) -> None:
    """Of six numbers, by rank 1 of four, which is the root; alltoall_base_: all six, but for those of rank 1."""
    mine = torch.ones(6)
    args: dict[str, tuple[Any, ...]] = {
        "broadcast_": ([mine], None, 1),
        "reduce_": ([mine], None, None, 1),
        "_allgather_base_": (torch.ones(24), mine),
        "allgather_": ([[mine] * 4], [mine]),
        "scatter_": ([mine], [[mine] * 4], None, 1),
        "alltoall_": ([mine] * 4, [mine] * 4),
        "alltoall_base_": (torch.ones(24), torch.ones(9), None, [2, 2, 2, 3], [1, 3, 2, 3]),
    }
    assert transfer(name, args.get(name, ([mine],)), rank=1, count=4)[2] == sent


def test_an_unknown_transfer_is_not_overlooked() -> None:
    with pytest.raises(NotImplementedError, match=r"got c10d\.gather_"):
        transfer("gather_", ([torch.ones(2)],), rank=0, count=2)


def test_all_end_with_the_first_that_dies() -> None:
    with pytest.raises(click.ClickException, match=r"^expected all 2 ranks to end well, got from rank 1: .* code 1$"):
        launch(sys.exit, 2, timeout=100)  # each exits with its rank
    with pytest.raises(click.ClickException, match=r"got from rank [01]: TypeError: object of type 'int' has no len"):
        launch(len, 2, timeout=100)


def test_one_message_when_they_take_too_long(tmp_path: Path) -> None:
    tiny = ["-w", "1", "-b", "4", "--rows", "4", "--dimension", "2", "--loss", "triplet_max", "--timeout", "1"]
    result = CliRunner().invoke(main, [*tiny, "--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.endswith("Error: expected all 1 ranks to be done in 1 s, got no end\n")


@pytest.mark.parametrize(
    "arguments, words",
    [(["-w", "3", "-b", "64"], "divisible by the number of processes, got 64 and 3"),
     (["--device", "cuda", "-w", "999"], "expected a GPU for each of 999 processes, got ")],
)  # fmt: skip
def test_refusals(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
