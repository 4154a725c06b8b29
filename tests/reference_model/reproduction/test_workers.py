"""Every run of a grid is trained once, although processes share it, are killed, fail and continue."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grids import settings
from locks import held
from runs import CommandLine, at_step
from torch import Tensor

from reference_model import InputError
from reference_model.config import Config
from reference_model.paper import select_rows
from reference_model.reproduction import workers
from reference_model.reproduction.grid import Grid, Run
from reference_model.reproduction.tables import aggregate
from reference_model.reproduction.workers import NO_RUN, UnexpectedError, gpu_variables, record_death
from reference_model.run_folder import Diverged, stored_metrics
from reference_model.runtime import lease
from reference_model.runtime.files import write_json
from reference_model.runtime.lease import Busy
from reference_model.runtime.signals import EXIT_STOPPED, Stopped
from reference_model.training.trainer import train

ROOT = Path(__file__).parents[3]
# Two losses and seeds with frozen encoders; and the same with a batch of 128, which the corpus is too small for.
LOSSES, SEEDS = ("triplet_max", "nt_xent"), (0, 1)
GOOD = [f"synthetic-frozen-{loss}-seed-{seed}" for seed in SEEDS for loss in LOSSES]
BAD = [f"synthetic-frozen-{loss}-batch-128-seed-{seed}" for seed in SEEDS for loss in LOSSES]


def arguments(corpus: Path, out: Path, *more: object, losses: Any = LOSSES, seeds: Any = SEEDS) -> list[str]:
    rows = [x for loss in losses for x in ("--losses", loss)] + [x for seed in seeds for x in ("--seeds", seed)]
    found = [
        "reproduce", "--data", corpus, "--dataset", "Synthetic", "--model", "tiny", "--clip-seconds", 0.5,
        "--encoders", "frozen", *rows, "--epochs", 2, "--workers", 0, "--out", out, *more,
    ]  # fmt: skip
    return [str(argument) for argument in found]


def started(corpus: Path, out: Path, *more: object, until: str = "") -> "subprocess.Popen[str]":
    """Start the command in a process group of its own, and wait until there is such a file."""
    process = subprocess.Popen(
        [sys.executable, "-m", "reference_model", *arguments(corpus, out, *more)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )  # fmt: skip
    while until and process.poll() is None and not list(out.glob(until)):
        time.sleep(0.01)
    return process


def ended(process: "subprocess.Popen[str]", code: int = 1) -> tuple[str, str]:
    """Return what the command wrote to its two streams; its exit code is 1 when runs fail."""
    output, errors = process.communicate(timeout=280)
    assert process.returncode == code, errors
    return output, errors


def modified(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.json")}


def begun(out: Path) -> dict[str, int]:
    """Return how often each run was begun, from its log."""
    logs = out.glob("runs/*/log.txt")
    return {log.parent.name: len(re.findall(r"epochs of \d+ steps on", log.read_text())) for log in logs}


def recalls(out: Path) -> dict[str, Any]:
    """Return our recalls in every row of both tables."""
    tables = [json.loads((out / f"table_{number}.json").read_text()) for number in (1, 2)]
    return {row["experiment"]: row["ours"] for table in tables for row in table["rows"]}


@pytest.fixture
def runs(config: Config, tmp_path: Path) -> list[Run]:
    """Four losses with frozen encoders and two seeds."""
    rows = select_rows(("1",), datasets=("Synthetic",), encoders=("frozen",))
    return Grid.from_rows(rows, (0, 1), settings(config)).runs(tmp_path / "results")


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process that was not disturbed."""
    out = tmp_path_factory.mktemp("whole") / "results"
    output, errors = ended(started(corpus, out))
    assert "next: reproduce --plan" not in output
    assert errors.splitlines()[-1].startswith("Error: expected every run to end well, got 4 that failed: ")
    return out


def test_a_failing_run_is_recorded_and_no_run_is_repeated(whole: Path, corpus: Path, command_line: CommandLine) -> None:
    assert begun(whole) == dict.fromkeys(GOOD, 1) | dict.fromkeys(BAD, 0)
    for name in BAD:
        failure = json.loads((whole / "failed" / f"{name}.json").read_text())
        assert failure["reason"] == "expected at least one batch of 128 pairs, got 80; lower --batch-size"
        assert "InputError" in failure["traceback"]
        assert failure["machine"] == os.uname().nodename
    shown = command_line(*arguments(corpus, whole, "--plan"))
    assert f"failed: {BAD[0]}: expected at least one batch of 128 pairs, got 80" in shown.output
    assert "8 runs: 4 done, 4 failed\nnothing is left to train" in shown.output
    table = json.loads((whole / "table_2.json").read_text())
    assert [row["runs"]["failed"] for row in table["rows"]] == [0, 0, 2, 2]
    assert "Triplet-max (2 of 2 failed) | - | - |" in (whole / "table_2.md").read_text()
    before = modified(whole)
    again = command_line(*arguments(corpus, whole), status=1)
    assert "| Synthetic | No | Triplet-max" in again.output
    assert "got 4 that failed: --plan says why, --retry-failed tries again" in again.output
    assert modified(whole) == before
    assert set(begun(whole).values()) == {0, 1}


def test_the_tables_are_those_of_the_runs(whole: Path) -> None:
    found = recalls(whole)
    for loss in LOSSES:
        of_seeds = [stored_metrics(whole / f"runs/synthetic-frozen-{loss}-seed-{seed}")["test"] for seed in SEEDS]
        assert found[f"synthetic-frozen-{loss}"] == aggregate(of_seeds)
    assert (whole / "table_1.png").read_bytes().startswith(b"\x89PNG")
    assert "<title>" in (whole / "report.html").read_text()
    assert "| 4.2 | NT-Xent has the best recalls" in (whole / "claims.md").read_text()


def test_two_processes_share_a_grid(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """Each begins when the other is at work already; between them, every run is begun once."""
    for process in [started(corpus, tmp_path / "out", "--jobs", jobs) for jobs in (1, 2)]:
        assert "4 that failed" in ended(process)[1]
    assert begun(tmp_path / "out") == dict.fromkeys(GOOD, 1) | dict.fromkeys(BAD, 0)
    assert recalls(tmp_path / "out") == recalls(whole)
    assert not list((tmp_path / "out").glob("runs/*/.lock"))


def test_killed_in_the_middle_and_continued(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """SIGKILL to the command and its processes, when some runs are done and others under way."""
    out = tmp_path / "out"
    killed = started(corpus, out, "--jobs", 2, until="runs/*/metrics.json")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = modified(out)
    assert 0 < len(done) < len(GOOD)
    ended(started(corpus, out, "--jobs", 2))
    assert recalls(out) == recalls(whole)
    assert modified(out).items() >= done.items()
    times = begun(out)
    assert times.keys() == {*GOOD, *BAD}
    assert all(times[path.parent.name] == 1 for path in done)


def test_stopped_and_continued(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """SIGTERM to the command alone: it has its processes save what they are at."""
    out = tmp_path / "out"
    stopped = started(corpus, out, "--jobs", 2, until="runs/*/config.json")
    stopped.terminate()
    _, errors = ended(stopped, EXIT_STOPPED)
    assert errors.strip().endswith("stopped when asked to; the same command continues")
    assert {path.stem for path in out.glob("failed/*")} <= set(BAD)
    ended(started(corpus, out))
    assert recalls(out) == recalls(whole)


def test_ctrl_c_and_the_end_of_the_command_stop_everything(corpus: Path, tmp_path: Path) -> None:
    """SIGINT to the whole group, even while processes only start; then SIGKILL to the command alone."""
    out = tmp_path / "out"
    stopped = started(corpus, out, "--jobs", 2, until="grid.json")
    time.sleep(1)
    os.killpg(stopped.pid, signal.SIGINT)
    assert "Traceback" not in ended(stopped, EXIT_STOPPED)[1]
    killed = started(corpus, out, until="runs/*/.lock")
    killed.kill()
    killed.communicate()  # returns when the last process that writes to these pipes has ended
    assert not list(out.glob("runs/*/.lock"))
    assert len(list(out.glob("runs/*/metrics.json"))) < len(GOOD)


def test_a_process_that_dies_is_replaced(whole: Path, corpus: Path, tmp_path: Path) -> None:
    """As when memory runs out; its run is recorded as failed, and done when asked for again."""
    out = tmp_path / "out"
    command = started(corpus, out, until="runs/*/config.json")
    run = next(out.glob("runs/*/config.json")).parent
    os.kill(int(re.findall(r"pid=(\d+)", (run / ".lock").read_text())[0]), signal.SIGKILL)
    assert "got 5 that failed" in ended(command)[1]
    assert "ended by SIGKILL" in json.loads((out / "failed" / f"{run.name}.json").read_text())["reason"]
    output, errors = ended(started(corpus, out, "--retry-failed"))
    assert "5 to train: " in output
    assert "got 4 that failed" in errors
    assert recalls(out) == recalls(whole)


def test_a_plan_and_wrong_input_write_nothing(
    corpus: Path, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = command_line(*arguments(corpus, tmp_path / "out", "--plan")).output
    assert "8 runs: 8 pending" in shown
    assert re.search(r"8 to train: .* on .*, one after another, and \d+\.\d GB of \d+ GB free", shown)
    for more, words in (
        (["--dataset", "Clotho", "--clip-seconds", 1], "expected the captions of the train split at"),
        (["--audio-checkpoint", "nowhere.pth"], "expected a PANNs checkpoint at nowhere.pth"),
        ([], "expected reproduce on its own, got torchrun"),
    ):
        if not more:
            monkeypatch.setenv("LOCAL_RANK", "0")
        refused = command_line(*arguments(corpus, tmp_path / "out", *more), status=1)
        assert words in refused.output.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_runs_of_other_settings_are_refused(runs: list[Run]) -> None:
    run = runs[3]
    run.folder.mkdir(parents=True)
    write_json(run.folder / "config.json", replace(run.config, epochs=9).as_dict())
    with pytest.raises(InputError, match=r"expected .*nt_xent-seed-0 to be of these settings, got others in epochs"):
        workers.check_before_training(runs)


class Script:
    """Replaces training by given outcomes, and keeps the order of the runs."""

    def __init__(self, outcomes: dict[str, list[BaseException]]) -> None:
        self.outcomes = outcomes
        self.order: list[str] = []
        self.current: list[int] = []

    def __call__(self, run: Run) -> None:
        self.order.append(run.name)
        if self.outcomes.get(run.name):
            raise self.outcomes[run.name].pop(0)
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.folder / "metrics.json", {})

    def train(self, runs: list[Run]) -> None:
        workers.train_available(runs, train_one=self, set_current=self.current.append)


def test_pending_runs_are_trained_in_order(runs: list[Run]) -> None:
    runs[1].folder.mkdir(parents=True)
    write_json(runs[1].folder / "metrics.json", {})
    runs[2].record_failure("before")
    script = Script({})
    script.train(runs)
    assert script.order == [run.name for k, run in enumerate(runs) if k not in (1, 2)]
    assert script.current == [k for number in (0, 3, 4, 5, 6, 7) for k in (number, NO_RUN)]


def test_other_runs_are_trained_after_a_failure(runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    diverged = Diverged("no longer finite")
    script = Script({runs[0].name: [InputError("bad\ninput")], runs[1].name: [diverged], runs[2].name: [MemoryError()]})
    runs[1].folder.mkdir(parents=True)
    write_json(runs[1].folder / "diverged.json", {})
    with pytest.raises(UnexpectedError):  # to go on in another process
        script.train(runs)
    assert [run.state() for run in runs[:4]] == ["failed", "diverged", "failed", "pending"]
    script.outcomes[runs[4].name] = [Stopped()]
    with pytest.raises(Stopped):
        script.train(runs)
    assert [run.state() for run in runs[3:6]] == ["done", "pending", "pending"]
    assert (runs[0].reason(), runs[2].reason()) == ("bad input", "MemoryError")
    assert "failed: synthetic-frozen-triplet_sum-seed-0: bad input" in capsys.readouterr().out
    assert script.current[-1] == NO_RUN
    script.train(runs)
    assert [run.state() for run in runs] == ["failed", "diverged", "failed", *["done"] * 5]


def test_a_run_of_another_process_is_left_to_it(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker tries it again, and gives up when the lock of a dead process would have expired."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    script = Script({runs[0].name: [Busy("just now")]})
    script.train(runs)
    assert [run.state() for run in runs] == ["done"] * 8
    assert script.order.count(runs[0].name) == 2

    (runs[5].folder / "metrics.json").unlink()
    script.order.clear()
    with held(runs[5].folder, os.uname().nodename, "1.0"):
        began = time.monotonic()
        script.train(runs)
        assert time.monotonic() - began >= 1.2
    assert script.order == []
    assert not runs[5].finished()


def test_each_worker_has_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert gpu_variables(1) == {}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu_variables(k)["CUDA_VISIBLE_DEVICES"] for k in range(4)] == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert [gpu_variables(k)["CUDA_VISIBLE_DEVICES"] for k in range(4)] == ["4", "5", "7", "4"]


def test_requested_runs_are_trained_and_the_tables_show_all(
    corpus: Path, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[str]] = []
    monkeypatch.setattr(workers, "train_all", lambda runs, **_: trained.append([run.name for run in runs]))
    for losses, seeds in ((LOSSES, SEEDS), (("nt_xent",), (1,))):
        done = command_line(*arguments(corpus, tmp_path / "out", "--tables", 1, losses=losses, seeds=seeds))
    assert trained == [GOOD, [GOOD[3]]]
    assert "seed 0       seed 1" in done.output
    assert "1 to train: " in done.output
    assert len(json.loads((tmp_path / "out" / "table_1.json").read_text())["rows"]) == len(LOSSES)


def test_a_command_whose_processes_die_at_once_gives_up(runs: list[Run]) -> None:
    for deaths in (1, 2):
        record_death(-9, None, deaths)
    with pytest.raises(InputError, match="expected processes that train, got 3 that ended before; of the last one"):
        record_death(-9, None, 3)
    record_death(-15, runs[0], 0)
    assert runs[0].reason() == "its process was ended by SIGTERM"


def test_a_run_that_was_taken_over_is_left_alone(runs: list[Run], tmp_path: Path) -> None:
    """As after a suspension that lasted longer than the lease."""
    run, taken = next(run for run in runs if run.config.loss == "nt_xent"), tmp_path / "taken"

    def take_over(x: Tensor) -> Tensor:
        (run.folder / ".lock").unlink()
        (run.folder / ".lock").write_text("of another process")
        shutil.copytree(run.folder, taken, ignore=shutil.ignore_patterns("log.txt", "tensorboard"))
        return x

    with at_step(4, take_over), pytest.raises(Busy, match="got it taken over while this process was suspended"):
        train(run.config, run.folder, checkpoint_minutes=0)
    assert {"checkpoint.safetensors", "frozen.safetensors"} <= {path.name for path in taken.iterdir()}
    for path in taken.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (run.folder / path.relative_to(taken)).read_bytes()
    assert "taken over" in (run.folder / "log.txt").read_text()
    assert not run.finished()


def children_of(process: int) -> list[int]:
    """Return the processes that were started by this one and not only by a child of it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_while_it_estimates(corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    """No process stays, and the exit status is that of any stop."""
    process = started(corpus, tmp_path / "out", "--plan")
    while process.poll() is None and not any("spawn_main" in command(child) for child in children_of(process.pid)):
        time.sleep(0.02)
    children = children_of(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)  # returns when the last process that writes to these pipes has ended
    assert process.returncode == (EXIT_STOPPED if number != signal.SIGKILL else -number)
    assert "Traceback" not in errors
    assert children
    assert not any("spawn_main" in command(child) for child in children)


def command(process: int) -> str:
    """Return the command line of a process; of one that has ended, an empty one."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def test_the_reader_of_the_output_goes_away(corpus: Path, tmp_path: Path) -> None:
    """As with ``2>&1 | tee log`` and Ctrl-C, which ends tee as well."""
    out, (reader, writer) = tmp_path / "out", os.pipe()
    command = [sys.executable, "-m", "reference_model", *arguments(corpus, out, "--jobs", 2, "--epochs", 500)]
    process = subprocess.Popen(
        command, stdout=writer, stderr=writer, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    os.close(writer)
    while process.poll() is None and not list(out.glob("runs/*/checkpoint.safetensors")):
        os.read(reader, 4096)
    os.close(reader)
    time.sleep(0.5)  # bars meet the closed pipe before the signal comes
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=100) == EXIT_STOPPED
    assert {path.stem for path in out.glob("failed/*")} <= set(BAD)
    logs = [log.read_text() for log in out.glob("runs/*/log.txt")]
    assert any("stopped when asked to" in log for log in logs)
