"""One process at a time works in a folder, and a lock whose process is gone is free."""

import os
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
from locks import held

from reference_model.runtime import lease
from reference_model.runtime.lease import Busy, lock_holder, lock_run_folder


def test_one_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        assert lock_holder(tmp_path) == f"process {process.pid} on {os.uname().nodename}"
        words = f"for this run alone, got one that is under way there: process {process.pid} on"
        with pytest.raises(Busy, match=words), lock_run_folder(tmp_path):
            pass
    assert lock_holder(tmp_path) is None  # its process is gone
    with lock_run_folder(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("dies", [False, True])
def test_another_machine_is_given_up_after_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool, exchange: bool
) -> None:
    """Whether its process lives cannot be seen from here; only whether it touches the lock.

    Some file systems of several machines cannot exchange two names, by which filelock takes a lock over.
    """
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    if not exchange:
        monkeypatch.setattr(filelock._soft, "exchange_names", lambda *_: False)
    with held(tmp_path, "elsewhere", "1.0") as process:
        if dies:
            process.kill()
            process.wait()
        seen: list[str | None] = []
        until = time.monotonic() + 4
        while time.monotonic() < until and (not seen or seen[-1] is not None):
            seen.append(lock_holder(tmp_path))
            time.sleep(0.05)
        assert seen[0] == f"process {process.pid} on elsewhere"
        assert (seen[-1] is None) == dies
        if dies:
            with lock_run_folder(tmp_path):
                pass


def test_a_lock_without_a_name_is_free(tmp_path: Path) -> None:
    """Its process was killed between making the file and writing into it."""
    (tmp_path / ".lock").touch()
    assert lock_holder(tmp_path) is None
    with lock_run_folder(tmp_path):
        pass


HURRY = """
import os, sys, time
from pathlib import Path
from reference_model.runtime.lease import Busy, lock_holder, lock_run_folder
run = Path(sys.argv[1])
def mine():
    try:
        return f"pid={os.getpid()}" in (run / ".lock").read_text().splitlines()
    except FileNotFoundError:
        return False
for _ in range(300):
    if lock_holder(run) is None:
        try:
            with lock_run_folder(run):
                pass
        except Busy:
            continue
        if mine():
            time.sleep(0.5)
            sys.exit(1 if mine() else 0)
"""


def test_processes_in_a_hurry_leave_no_lock_behind(tmp_path: Path) -> None:
    """Each takes the lock and gives it back at once, and looks at it all the time; one after the other is killed."""
    processes = [subprocess.Popen([sys.executable, "-c", HURRY, str(tmp_path)]) for _ in range(4)]
    for process in processes[:2]:
        while process.poll() is None and not (tmp_path / ".lock.guard").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        process.kill()
    assert [process.wait(timeout=100) for process in processes[2:]] == [0, 0]
    for process in processes[:2]:
        process.wait()
    assert lock_holder(tmp_path) is None
