"""Looking at results needs no right to write in their folder."""

import os
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from grids import small_grid
from runs import CommandLine

from reference_model.paper import select_rows
from reference_model.reproduction.grid import Grid, plan
from reference_model.runtime import lease
from reference_model.runtime.lease import lock_folder, lock_holder

State = dict[Path, tuple[int, int]]


def state(folder: Path) -> State:
    """Return every file and folder in a folder, with its inode and the time of its last change."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}


def test_the_report_goes_to_another_place(tmp_path: Path, command_line: CommandLine) -> None:
    results, out = tmp_path / "results", tmp_path / "mine" / "report"
    grid = small_grid(select_rows(["1"], datasets=["Clotho"], encoders=["frozen"]), [0])
    grid.write(results)
    for run in grid.runs(results)[:2]:
        run.record_failure("no room")
    before = state(results)
    command_line("report", "--results", results, "--out", out)
    assert state(results) == before
    assert {path.name for path in out.iterdir()} >= {"report.html", "table_1.md", "table_1.png", "claims.md"}
    assert "no room" in (out / "report.html").read_text()


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    grid = small_grid(select_rows(["1"], datasets=["Clotho"], encoders=["frozen"]), [0])
    grid.write(tmp_path)
    grid.runs(tmp_path)[0].record_failure("no room")
    before = state(tmp_path)
    assert "no room" in plan(Grid.read(tmp_path), tmp_path)
    assert state(tmp_path) == before


def test_a_lock_is_seen_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as a user who may write everywhere; so the guard of the lock is refused here."""
    with lock_folder(tmp_path), monkeypatch.context() as patch:
        patch.setattr(lease, "FileLock", Mock(side_effect=PermissionError))
        before = state(tmp_path)
        assert f"process {os.getpid()} on " in (lock_holder(tmp_path) or "")
        assert state(tmp_path) == before
        long_ago = time.time() - 2 * lease.LEASE_SECONDS
        os.utime(tmp_path / ".lock", (long_ago, long_ago))
        assert lock_holder(tmp_path) is None
    assert lock_holder(tmp_path) is None
