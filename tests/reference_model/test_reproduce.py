"""The command ``reproduce`` from outside: two at once on a folder, stops, kills, a reader that goes away, and Slurm."""

import json
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
from light_jobs import ROOT, use_light_jobs
from runs import CommandLine

from reference_model.config import Config
from reference_model.reproduction import report
from reference_model.runtime.signals import EXIT_STOPPED
from reference_model.training.trainer import train

_context = multiprocessing.get_context("forkserver")
# Loading it takes seconds, and no time in each of the commands below.
_preloaded = ("cli.app", "training.trainer", "reproduction.report", "reproduction.schedule")
_context.set_forkserver_preload(["light_jobs", *(f"reference_model.{name}" for name in _preloaded)])
GOOD, BAD = "synthetic-frozen-nt_xent-seed-0", "synthetic-frozen-nt_xent-batch-128-seed-0"


def arguments(corpus: Path, out: Path, *more: object, losses: tuple[str, ...] = ("nt_xent",)) -> list[str]:
    """Return the arguments for runs with frozen encoders and one seed."""
    found = [
        "reproduce", "--data", corpus, "--dataset", "Synthetic", "--model", "tiny", "--clip-seconds", 0.5,
        "--encoders", "frozen", "--epochs", 2, "--workers", 0, "--seeds", 0, "--out", out,
        *(x for loss in losses for x in ("--losses", loss)), *more,
    ]  # fmt: skip
    return [str(argument) for argument in found]


def without_tables(patch: pytest.MonkeyPatch) -> None:
    """Make no tables and no report; light jobs leave no metrics for them."""
    patch.setattr(report, "write_tables", lambda *_: [])
    patch.setattr(report, "write_report", lambda *_: None)


def _command(given: list[str], output: Path, acts: Mapping[str, str] | None, *, estimates: bool) -> None:
    """Run the command in a session of its own, with its output in a file or a named pipe."""
    os.setsid()
    for number in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), number)
    from reference_model.cli.app import run
    from reference_model.reproduction import cost
    from reference_model.runtime.signals import exit_on_signals

    os.chdir(ROOT)
    exit_on_signals()
    with pytest.MonkeyPatch.context() as patch:
        if acts is not None:
            use_light_jobs(patch, acts)
        without_tables(patch)
        if not estimates:
            patch.setattr(cost, "estimate", lambda *_, **__: "")
        patch.setattr("sys.argv", ["reproduce", *given])
        run()


def started(
    given: list[str], output: Path, acts: Mapping[str, str] | None = None, *, estimates: bool = False
) -> BaseProcess:
    """Start the command: with jobs that train, or with light ones that act."""
    process = _context.Process(target=_command, args=(given, output, acts), kwargs={"estimates": estimates})
    process.start()
    return process


def ended(process: BaseProcess, output: Path, status: int = 0) -> str:
    """Return what the command has printed, when it has ended with this status."""
    process.join(120)
    text = output.read_text()
    assert process.exitcode == status, text
    assert "Traceback" not in text
    return text


def wait_for(out: Path, pattern: str) -> Path:
    """Wait until there is such a file."""
    until = time.monotonic() + 120
    while not (found := sorted(out.glob(pattern))):
        assert time.monotonic() < until, pattern
        time.sleep(0.01)
    return found[0]


def begun(run: Path) -> int:
    """Return how often a run was begun or continued, from its log."""
    return len(re.findall(r"epochs of \d+ steps on", (run / "log.txt").read_text()))


def test_a_failing_run_is_recorded_and_no_run_is_repeated(
    corpus: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    out = tmp_path / "out"
    done = command_line(*arguments(corpus, out, "--jobs", 2), status=1)
    assert re.search(r"2 to train: .* on .*, one after another, and \d+\.\d GB of \d+ GB free", done.output)
    assert f"{GOOD}, epoch 2: loss " in done.output
    assert done.output.splitlines()[-1].startswith("Error: expected every run to end well, got 1 that failed: ")
    failure = json.loads((out / "failed" / f"{BAD}.json").read_text())
    assert failure["reason"] == "expected at least one batch of 128 pairs, got 80; lower --batch-size"
    assert "InputError" in failure["traceback"]
    assert failure["machine"] == os.uname().nodename
    shown = command_line(*arguments(corpus, out, "--plan")).output
    assert f"failed: {BAD}: expected at least one batch of 128 pairs, got 80" in shown
    assert "2 runs: 1 done, 1 failed\nnothing is left to train" in shown
    assert "NT-Xent (failed) | - | - |" in (out / "table_2.md").read_text()
    metrics = json.loads((out / "runs" / GOOD / "metrics.json").read_text())
    (row,) = json.loads((out / "table_1.json").read_text())["rows"]
    assert row["ours"]["text_to_audio"]["R@1"]["mean"] == metrics["test"]["text_to_audio"]["R@1"]
    assert (out / "table_1.png").read_bytes().startswith(b"\x89PNG")
    before = (out / "runs" / GOOD / "metrics.json").stat().st_mtime_ns
    again = command_line(*arguments(corpus, out), status=1)
    assert "got 1 that failed: --plan says why, --retry-failed tries again" in again.output
    assert (out / "runs" / GOOD / "metrics.json").stat().st_mtime_ns == before


def test_two_commands_share_a_grid_and_one_is_stopped(corpus: Path, config: Config, tmp_path: Path) -> None:
    """Each takes a run; the run of the one that is stopped is continued by the other, and ends as if undisturbed."""
    out, outputs = tmp_path / "out", [tmp_path / "first.txt", tmp_path / "second.txt"]
    given = arguments(corpus, out, "--tables", 1, "--epochs", 20, losses=("triplet_max", "nt_xent"))
    first = started(given, outputs[0])
    stopped = wait_for(out, "runs/*/checkpoint.safetensors").parent
    second = started(given, outputs[1])
    while len(list(out.glob("jobs/*/*_submitted.pkl"))) < 2:
        assert second.is_alive()
        time.sleep(0.01)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGTERM)
    assert ended(first, outputs[0], EXIT_STOPPED).strip().endswith("stopped when asked to; the same command continues")
    assert "stopped when asked to" in (stopped / "log.txt").read_text()
    assert "2 runs: 2 done" in ended(second, outputs[1])
    assert {run.name: begun(run) for run in out.glob("runs/*")} == {stopped.name: 2, GOOD: 1}
    assert not list(out.glob("runs/*/.lock"))
    assert not list((out / "jobs").iterdir())
    row = replace(config, loss="triplet_max", encoders="frozen", batch_size=32, learning_rate=1e-4, epochs=20)
    process = _context.Process(target=train, args=(row, tmp_path / "whole"), kwargs={"features": tmp_path / "features"})
    process.start()
    process.join()
    whole, shared = (json.loads((run / "metrics.json").read_text()) for run in (tmp_path / "whole", stopped))
    assert shared["history"] == whole["history"]
    assert shared["test"] == whole["test"]


def test_slurm_runs_the_grid_and_puts_a_job_back(
    corpus: Path, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch script really runs; before its time limit the job saves its run, and continues it later."""
    for name, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    without_tables(monkeypatch)
    out = tmp_path / "out"
    given = arguments(corpus, out, "--tables", 1, "--epochs", 20, "--launcher", "slurm", "--partition", "gpu")

    def time_is_up() -> None:
        checkpoint = wait_for(out, "runs/*/checkpoint.safetensors")
        (job,) = (json.loads(path.read_text())["job"] for path in (out / "jobs").glob("*.json"))
        fake_slurm.signal_job(tmp_path / "slurm", job, signal.SIGUSR2)
        assert checkpoint

    (thread := threading.Thread(target=time_is_up)).start()
    done = command_line(*given, "--hours", 1, "--slurm", "account=lab")
    thread.join()
    assert "Slurm job 100: 1 runs" in done.output
    assert "1 runs: 1 done" in done.output
    assert "to train" not in done.output  # hours on this machine say nothing of those on the cluster
    assert fake_slurm.asked(tmp_path / "slurm", "scontrol") == [["requeue", "100"]]
    assert begun(out / "runs" / GOOD) == 2
    assert "continuing after step" in (out / "runs" / GOOD / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_jobs_end_with_the_command(corpus: Path, tmp_path: Path, number: int) -> None:
    """SIGINT to the whole session, as a terminal sends it; or SIGKILL to the command alone."""
    out, output = tmp_path / "out", tmp_path / "output.txt"
    process = started(arguments(corpus, out, "--jobs", 2), output, {GOOD: "wait", BAD: "wait"})
    for name in (GOOD, BAD):
        wait_for(out, f"runs/{name}/.lock")
    assert process.pid is not None
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
        assert "stopped when asked to" in ended(process, output, EXIT_STOPPED)
    else:
        process.kill()
    for name in (GOOD, BAD):
        wait_for(out, f"runs/{name}/saved")
    until = time.monotonic() + 60
    while list(out.glob("runs/*/.lock")) and time.monotonic() < until:
        time.sleep(0.02)
    assert not list(out.glob("runs/*/.lock"))
    assert not list(out.glob("failed/*"))


def test_the_run_of_a_killed_job_is_tried_again_when_asked_for(corpus: Path, tmp_path: Path) -> None:
    out, output = tmp_path / "out", tmp_path / "output.txt"
    text = ended(started(arguments(corpus, out), output, {GOOD: "die"}), output, 1)
    assert f"failed: {GOOD}: its process ended before its run, as by SIGKILL" in text
    assert "1 that failed" in text
    assert (out / "runs" / BAD / "metrics.json").exists()
    plan = arguments(corpus, out, "--retry-failed", "--plan")  # which changes nothing
    assert "1 done, 1 failed" in ended(started(plan, output), output)
    text = ended(started(arguments(corpus, out, "--retry-failed"), output, {}), output)
    assert text.endswith("2 runs: 2 done\n")
    assert [len((out / "runs" / name / "begun").read_text().splitlines()) for name in (GOOD, BAD)] == [2, 1]


def test_the_reader_of_the_output_goes_away(corpus: Path, tmp_path: Path) -> None:
    """As with ``2>&1 | tee log`` and Ctrl-C, which ends tee as well."""
    out, pipe = tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    process = started(arguments(corpus, out, "--jobs", 2), pipe, {GOOD: "wait", BAD: "finish"})
    with pipe.open("rb"):
        wait_for(out, f"runs/{GOOD}/.lock")
        wait_for(out, f"runs/{BAD}/metrics.json")
    (out / "runs" / GOOD / "log.txt").write_text("a line for a reader that has gone\n")
    time.sleep(1.5)  # the line meets the closed pipe before the signal comes
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == EXIT_STOPPED
    wait_for(out, f"runs/{GOOD}/saved")
    assert not list(out.glob("failed/*"))


def children_of(process: int) -> list[int]:
    """Return the processes that were started by this one and not only by a child of it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(stat.parent.name))
    return found


def command_of(process: int) -> str:
    """Return the command line of a process; of one that has ended, an empty one."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_while_it_estimates(corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    """No process stays, and the exit status is that of any stop."""
    output = tmp_path / "output.txt"
    process = started(arguments(corpus, tmp_path / "out", "--plan"), output, estimates=True)
    assert process.pid is not None
    while process.is_alive() and not any("spawn_main" in command_of(child) for child in children_of(process.pid)):
        time.sleep(0.02)
    children = children_of(process.pid)
    os.kill(process.pid, number)
    ended(process, output, EXIT_STOPPED if number != signal.SIGKILL else -number)
    assert children
    until = time.monotonic() + 20
    while any("spawn_main" in command_of(child) for child in children):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_plan_and_wrong_input_write_nothing(
    corpus: Path, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reference_model.reproduction.cost.estimate", lambda *_, **__: "hours")
    shown = command_line(*arguments(corpus, tmp_path / "out", "--plan")).output
    assert "2 runs: 2 pending\nhours" in shown
    monkeypatch.setenv("PATH", "/nowhere")
    refusals: list[tuple[list[Any], str]] = [
        (["--dataset", "Clotho", "--clip-seconds", 1], "expected the captions of the train split at"),
        (["--text-encoder", "/nowhere/bert"], "expected a text encoder by name or in"),
        (["--text-encoder", "/nowhere/bert", "--launcher", "slurm"], "expected a text encoder by name or in"),
        (["--audio-encoder", "/nowhere/ast", "--launcher", "slurm"], "expected an audio encoder by name or in"),
        (["--partition", "gpu"], "expected --partition with --launcher slurm, got it with --launcher local"),
        (["--launcher", "slurm", "--slurm", "Account"], "expected --slurm KEY=VALUE, or KEY, of an option of sbatch"),
        (["--launcher", "slurm", "--slurm", "array=0-9"], "other than array, error,"),
        (["--launcher", "slurm", "--slurm", "comment=a\nb"], "got 'comment=a\\nb'"),
        (["--launcher", "slurm"], "expected the programs of Slurm for --launcher slurm, got no sbatch,"),
    ]
    for more, words in refusals:
        refused = command_line(*arguments(corpus, tmp_path / "out", *more), status=1)
        assert words in refused.output.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("LOCAL_RANK", "0")
    refused = command_line(*arguments(corpus, tmp_path / "new"), status=1)
    assert "expected reproduce on its own, got torchrun" in refused.output
    assert not (tmp_path / "new").exists()


def test_requested_runs_are_trained_and_the_tables_show_all(
    corpus: Path, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[str]] = []
    record = "reference_model.reproduction.schedule.train_all"
    monkeypatch.setattr(record, lambda runs, *_, **__: trained.append([run.name for run in runs]))
    monkeypatch.setattr("reference_model.reproduction.cost.estimate", lambda *_, **__: "")
    losses, out = ("triplet_max", "nt_xent"), tmp_path / "out"
    both = command_line(*arguments(corpus, out, "--seeds", 1, "--tables", 1, losses=losses))
    done = command_line(*arguments(corpus, out, "--tables", 1))
    assert trained[1] == [GOOD]
    assert len(trained[0]) == 4
    assert "seed 0       seed 1" in both.output
    assert "seed 0       seed 1" in done.output
    assert len(json.loads((out / "table_1.json").read_text())["rows"]) == 2


def test_each_of_several_learning_rates_has_a_grid(
    corpus: Path, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr("reference_model.reproduction.schedule.train_all", lambda runs, *_, **__: trained.extend(runs))
    monkeypatch.setattr("reference_model.reproduction.cost.estimate", lambda *_, **__: "")
    out, rates = tmp_path / "out", ["--learning-rates", 1e-3, "--learning-rates", 1e-4]
    shown = command_line(*arguments(corpus, out, "--tables", "beyond", *rates, losses=("nt_xent", "sup_con"))).output
    assert [(run.folder.parts[-3], run.config.learning_rate) for run in trained] == [
        *[("rate-0.0001", 1e-4)] * 4, *[("rate-0.001", 1e-3)] * 4,
    ]  # fmt: skip
    assert "| Synthetic, frozen, batch size 128 | Supervised contrastive | - (1 of 1 to come) |" in shown
    assert command_line("report", "--results", out).output.strip() in shown
    for folder in ("rate-0.0001", "rate-0.001"):
        assert json.loads((out / folder / "table_beyond.json").read_text())["rows"][1]["loss"] == "sup_con"
    both = command_line(*arguments(corpus, out, "--learning-rate", 1e-3, *rates), status=1)
    assert "expected --learning-rate or --learning-rates, got both" in both.output
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "grid.json").write_text("{}")
    refused = command_line(*arguments(corpus, tmp_path / "other", *rates), status=1)
    assert "to be new or the folder of grids of learning rates; choose another --out" in refused.output
