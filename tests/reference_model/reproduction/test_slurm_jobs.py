"""Jobs of Slurm: what it is asked for, how they stop and come back, and what is seen of one that dies.

The jobs are light ones, and Slurm's programs stand-ins.
"""

import re
import signal
import stat
import time
from functools import partial
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
from fake_slurm import wait_for
from light_jobs import Acts, all_ends, begun, wait_until

from reference_model import InputError
from reference_model.reproduction import schedule, slurm_jobs
from reference_model.reproduction.grid import Run
from reference_model.reproduction.launchers import Ended
from reference_model.reproduction.local_jobs import LocalLauncher
from reference_model.reproduction.slurm_jobs import SlurmLauncher, SlurmSettings
from reference_model.runtime.lease import lock_folder
from reference_model.runtime.signals import handle_signals, request_stop

OPTIONS: dict[str, Any] = {"features": None, "checkpoint_minutes": 1.0}
ASKED = SlurmSettings(partition="gpu", gpus=1, hours=12, cpus=3, memory=1.5, others={"account": "my lab"})


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-ins."""
    for name, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm_jobs, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(slurm_jobs, "POLL_SECONDS", 0.05)
    return tmp_path / "slurm"


def launcher(out: Path, jobs: int | None = None) -> SlurmLauncher:
    return SlurmLauncher(out, ASKED, jobs, **OPTIONS)


def test_what_slurm_is_asked_for(runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path) -> None:
    (slurm / "hold").touch()
    for number, (jobs, count) in enumerate([(None, 4), (2, 3), (2, 1)]):
        with launcher(tmp_path, jobs) as each:
            each.submit(runs[:count])
            assert len(each.at_work) == count
        script = Path(fake_slurm.asked(slurm, "sbatch")[number][0]).read_text()
        assert ("--array=" in script) == (count > 1)
        assert f"#SBATCH --array=0-{count - 1}%{min(count, jobs or count)}\n" in script or count == 1
    for line in ("partition=gpu", "gpus-per-node=1", "time=720", "cpus-per-task=3", "mem=1536MB", "signal=USR2@300",
                 "account='my lab'", "requeue", "open-mode=append", "job-name=reproduce"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script
    assert re.search(r"^srun .*--cpus-per-task 3 .* -m submitit.core._submit", script, re.MULTILINE)
    folder = Path(fake_slurm.asked(slurm, "sbatch")[0][0]).parent
    assert folder.parent == tmp_path / "jobs"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not fake_slurm.asked(slurm, "scancel")  # a launcher that is closed without a stop leaves its jobs


def test_the_signal_comes_within_the_time_limit() -> None:
    short = SlurmSettings(partition=None, gpus=0, hours=0.05, cpus=1, memory=None, others={"exclusive": True})
    parameters = short.parameters()
    assert (parameters["time"], parameters["signal_delay_s"]) == (3, 90)
    assert parameters["gpus_per_node"] is parameters["mem"] is parameters["partition"] is None
    assert parameters["additional_parameters"] == {"requeue": True, "exclusive": True}


def test_jobs_that_slurm_refuses(
    runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm / "refuse").touch()
    words = "expected Slurm to take the jobs, got: sbatch: error: invalid partition"
    with launcher(tmp_path) as each, pytest.raises(InputError, match=words):
        each.submit(runs[:2])
    monkeypatch.setenv("PATH", "/nowhere")
    words = "expected the programs of Slurm for --launcher slurm, got no sbatch, squeue, scancel, srun"
    with pytest.raises(InputError, match=words):
        launcher(tmp_path)


def test_how_jobs_of_slurm_ended(runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path) -> None:
    acts("finish", "exit", "wait", "leave")
    with launcher(tmp_path) as each:
        each.submit(runs)
        (array,) = {job.partition("_")[0] for job in each.at_work}
        wait_for(runs[2].folder / ".lock")
        fake_slurm.scancel(slurm, f"{array}_2")  # by the user, not by the command
        failed, cancelled, left = sorted(all_ends(each), key=lambda end: runs.index(end.run))
    assert runs[0].finished()
    assert failed.failure == f"its job {array}_1 ended in the state FAILED: the driver is too old"
    assert cancelled == Ended(runs[2])
    assert (runs[2].folder / "saved").exists()
    assert left == Ended(runs[3], again=True)


def test_a_job_has_ended_when_two_looks_miss_it(
    runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then a disk that machines share shows its files. If its run is locked, another process has it."""
    monkeypatch.setattr(slurm_jobs, "SECONDS_BETWEEN_LOOKS", 0)
    (slurm / "hold").touch()
    with launcher(tmp_path) as each:
        each.submit(runs[:2])
        for job in each.at_work:
            (slurm / f"{job}.state").write_text("FAILED")
            (slurm / f"{job}.queued").unlink()
        assert list(each.ended()) == []
        runs[1].folder.mkdir(parents=True)
        with lock_folder(runs[1].folder):
            failed, locked = each.ended()
    assert failed.failure is not None
    assert failed.failure.endswith("ended in the state FAILED")
    assert locked == Ended(runs[1], again=True)


def test_a_later_command_takes_the_jobs_over(runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path) -> None:
    acts("finish", "wait")
    with launcher(tmp_path) as first:
        first.submit(runs[:2])
        wait_for(runs[0].folder / "metrics.json")
        wait_until(lambda: not (slurm / f"{min(first.at_work)}.queued").exists())
    with launcher(tmp_path) as second:
        assert second.adopt(runs) == [runs[0], *runs[2:]]
        wait_for(runs[1].folder / ".lock")
        (runs[1].folder / "go").touch()
        assert all_ends(second) == []
    assert runs[1].finished()
    (slurm / "silent").touch()
    with pytest.raises(InputError, match="expected Slurm's squeue to list the jobs of earlier commands, got no answer"):
        launcher(tmp_path).adopt(runs)
    (tmp_path / "jobs" / f"runs-{runs[2].name}.json").write_text('{"job": "1; rm"}')
    with pytest.raises(InputError, match=r"expected a job's id in .*, got"):
        launcher(tmp_path).adopt(runs)


def test_a_command_on_this_machine_at_the_same_time(
    runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains the runs that no job of Slurm is at, and waits for the others: each is begun once."""
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0.02)
    acts("wait", "wait")

    def go() -> None:
        for run in runs[:2]:
            (run.folder / "go").touch()

    with launcher(tmp_path) as each:
        each.submit(runs[:2])
        for run in runs[:2]:
            wait_for(run.folder / ".lock")
        schedule.train_all(runs, LocalLauncher(tmp_path, 2, **OPTIONS), on_finished=go)
        assert all_ends(each) == []
    assert [len(begun(run)) for run in runs] == [1] * 4
    assert all(run.state() == "done" for run in runs)


def test_the_logs_of_jobs_that_were_taken_over_are_found(
    runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path
) -> None:
    (slurm / "hold").touch()
    with launcher(tmp_path) as first, launcher(tmp_path) as second:
        first.submit(runs)
        assert second.adopt(runs) == []
        for job_id, (_, job) in first.at_work.items():
            assert second.at_work[job_id][1].paths.stderr == job.paths.stderr


def test_a_job_that_is_preempted_and_not_put_back_is_submitted_again(
    runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path
) -> None:
    acts("wait")
    with launcher(tmp_path) as each:
        each.submit(runs[:1])
        (job,) = each.at_work
        wait_for(runs[0].folder / ".lock")
        (slurm / f"{job}.state").write_text("PREEMPTED")
        fake_slurm.signal_job(slurm, job, signal.SIGKILL)
        assert all_ends(each) == [Ended(runs[0], again=True)]


def test_a_stop_cancels_the_jobs(runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path) -> None:
    acts("wait", "wait")
    with handle_signals(), launcher(tmp_path) as each:
        each.submit(runs[:2])
        for run in runs[:2]:
            wait_for(run.folder / ".lock")
        request_stop()
    assert [sorted(call) for call in fake_slurm.asked(slurm, "scancel")] == [sorted(each.at_work)]
    assert all((run.folder / "saved").exists() for run in runs[:2])
    assert not fake_slurm.asked(slurm, "scontrol")  # what is cancelled does not come back


def test_nothing_is_concluded_while_slurm_does_not_answer(
    runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path
) -> None:
    acts("exit")
    (slurm / "silent").touch()
    with launcher(tmp_path) as each:
        each.submit(runs[:1])
        (job,) = each.at_work
        wait_until(lambda: [*each.ended()] or not (slurm / f"{job}.queued").exists())
        for _ in range(3):
            time.sleep(0.06)
            assert not list(each.ended())
        assert each.at_work
        (slurm / "silent").unlink()
        (end,) = all_ends(each)
    assert end.failure == f"its job {job} ended in the state FAILED: the driver is too old"


def has_begun_again(run: Run, times: int) -> bool:
    """Return whether the job of a run has begun more often than this."""
    return len(begun(run)) > times


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_time_limit_and_preemption_put_a_job_back(
    runs: list[Run], acts: Acts, slurm: Path, tmp_path: Path, number: int
) -> None:
    """Twice, after it has saved its run; the same job then continues it. The second time Slurm's queue is silent."""
    acts("wait")
    with launcher(tmp_path) as each:
        each.submit(runs[:2])
        job = min(each.at_work)
        for times in (1, 2):
            wait_until((runs[0].folder / ".lock").exists)
            if times == 2:
                (slurm / "silent").touch()
            fake_slurm.signal_job(slurm, job, number)
            wait_until(partial(has_begun_again, runs[0], times))
        (slurm / "silent").unlink()
        (runs[0].folder / "go").touch()
        assert all_ends(each) == []
    assert fake_slurm.asked(slurm, "scontrol") == [["requeue", job]] * 2
    assert (runs[0].folder / "saved").exists()
    assert len(begun(runs[0])) == 3
