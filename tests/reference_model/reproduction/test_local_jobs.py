"""Jobs on this machine: what they are given, how they stop, and what is seen of one that dies. They are light ones."""

import multiprocessing
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import wait_for
from light_jobs import Acts, all_ends, begun, use_light_jobs

from reference_model import InputError
from reference_model.reproduction.grid import Run
from reference_model.reproduction.launchers import Ended
from reference_model.reproduction.local_jobs import LocalLauncher, gpu_variables
from reference_model.runtime.lease import lock_folder, lock_holder

OPTIONS: dict[str, Any] = {"features": None, "checkpoint_minutes": 1.0}


def test_each_job_has_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(*numbers: int) -> list[str | None]:
        return [gpu_variables(number)["CUDA_VISIBLE_DEVICES"] for number in numbers]

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert given(0, 1) == [None, None]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert given(0, 1, 2, 3) == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,MIG-5,7")
    assert given(0, 1, 2, 3) == ["4", "MIG-5", "7", "4"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert given(0, 1) == ["2", "2"]


def test_jobs_on_this_machine(runs: list[Run], acts: Acts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    acts("wait", "finish", "leave")
    with LocalLauncher(tmp_path, 2, **OPTIONS) as launcher:
        folder = next((tmp_path / "jobs").iterdir())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # jobs are read from there
        assert launcher.adopt(runs) == runs
        launcher.submit(runs[:2])
        assert launcher.room() == 0
        wait_for(runs[0].folder / "begun")
        while launcher.room() == 0:
            assert not list(launcher.ended())
        launcher.submit(runs[2:3])  # the number of the job that has ended, and so its GPU
        (runs[0].folder / "go").touch()
        assert all_ends(launcher) == [Ended(runs[2], again=True)]
    seen = [begun(run)[0] for run in runs[:3]]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == ["0", "1", "1"]
    assert {each["TQDM_DISABLE"] for each in seen} == {"1"}
    assert {each["shared by"] for each in seen} == {2}
    assert not list((tmp_path / "jobs").iterdir())


def test_how_jobs_on_this_machine_died(runs: list[Run], acts: Acts, tmp_path: Path) -> None:
    acts("die", "abort", "exit", "die")
    runs[3].folder.mkdir(parents=True)
    with lock_folder(runs[3].folder), LocalLauncher(tmp_path, 4, **OPTIONS) as launcher:
        launcher.submit(runs[:4])
        killed, aborted, ended, locked = sorted(all_ends(launcher), key=lambda end: runs.index(end.run))
    assert killed.failure == "its process ended before its run, as by SIGKILL when memory runs out"
    assert aborted.failure == "its process ended: Fatal Python error: Aborted"
    assert "light_jobs.py" in aborted.log  # where it was
    assert ended.failure == f"{killed.failure}; its last line: the driver is too old"
    assert locked == Ended(runs[3], again=True)  # another process has the run


def test_jobs_that_cannot_begin_end_the_command(runs: list[Run], acts: Acts, tmp_path: Path) -> None:
    acts("raise")
    with LocalLauncher(tmp_path, 1, **OPTIONS) as launcher:
        launcher.submit(runs[:1])
        with pytest.raises(InputError, match=r"expected jobs that train, got one of .* that ended: RuntimeError: no"):
            all_ends(launcher)


def test_jobs_save_at_the_end_of_the_command_and_see_no_signal(runs: list[Run], acts: Acts, tmp_path: Path) -> None:
    """Ctrl-C and a cluster's SIGTERM reach all processes; the command alone decides when jobs stop."""
    acts("wait", "wait")
    with LocalLauncher(tmp_path, 2, **OPTIONS) as launcher:
        launcher.submit(runs[:2])
        for run in runs[:2]:
            wait_for(run.folder / ".lock")
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(begun(runs[0])[0]["process"], number)
            for _, job in launcher.at_work.values():
                os.kill(int(job.job_id), number)  # the process of submitit above it
        time.sleep(0.3)
        assert not list(launcher.ended())
        assert not any((run.folder / "saved").exists() for run in runs)
    for run in runs[:2]:
        assert (run.folder / "saved").exists()
        assert lock_holder(run.folder) is None


def _submit_and_wait(runs: list[Run], out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_light_jobs(patch, {run.name: "wait" for run in runs})
        with LocalLauncher(out, len(runs), **OPTIONS) as launcher:
            launcher.submit(runs)
            time.sleep(60)


def test_jobs_save_and_end_when_the_command_is_killed(runs: list[Run], tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "reference_model.reproduction.local_jobs"])
    command = context.Process(target=_submit_and_wait, args=(runs[:2], tmp_path))
    command.start()
    for run in runs[:2]:
        wait_for(run.folder / ".lock")
    command.kill()
    for run in runs[:2]:
        until = time.monotonic() + 60
        while lock_holder(run.folder) is not None and time.monotonic() < until:
            time.sleep(0.02)
        assert (run.folder / "saved").exists()
