"""What runs need of the machine: devices, files written whole, locks, signals, arrays on disk."""

import functools
import itertools
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import filelock
import pytest
import torch
from accelerate import Accelerator
from locks import held

from reference_model import InputError
from reference_model.runtime import devices, environment, files, lease, signals, tensors
from reference_model.runtime.files import atomic_write, write_text
from reference_model.runtime.lease import Busy, lock_folder, lock_holder


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_precision_is_that_of_the_run(precision: str) -> None:
    assert devices.make_accelerator(precision).mixed_precision == precision


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "Accelerator", functools.partial(Accelerator, cpu=True))
    with pytest.raises(InputError, match="expected --precision no or bf16 on cpu, got fp16"):
        devices.make_accelerator("fp16")


def test_the_line_has_hardware_versions_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    line = environment.describe_environment()
    assert re.fullmatch(rf".+, {torch.get_num_threads()} threads, .+; torch \S+, Python \S+; commit \w+", line)
    assert f"torch {torch.__version__}, Python {platform.python_version()}" in line
    monkeypatch.setattr(subprocess, "run", Mock(side_effect=FileNotFoundError("git")))
    assert environment.commit() == "unknown"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, left = tmp_path / "a.json", tmp_path / ".a.json.part"
    left.mkdir()
    (left / ".tmpXYZ").write_text("half")  # what a killed process left is cleared away
    write_text(path, "old")

    def half(beside: Path) -> None:
        beside.write_text("ne")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        atomic_write(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_and_record_are_read_as_they_were_written(tmp_path: Path) -> None:
    path, arrays = tmp_path / "a.safetensors", {"x": torch.randn(2, 3), "columns": torch.arange(6).reshape(2, 3).T}
    tensors.save_tensors(path, arrays, {"epoch": 2, "names": ["a", None]})
    loaded, record = tensors.load_tensors(path)
    assert record == tensors.load_record(path) == {"epoch": 2, "names": ["a", None]}
    torch.testing.assert_close(loaded, arrays, rtol=0, atol=0)
    tensors.save_tensors(path, arrays)
    assert tensors.load_record(path) == {}
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode  # safetensors would hide it from the group


@pytest.mark.parametrize("content", [None, b"", b"nothing", b"\x10" + bytes(7) + b"no JSON at all.."])
def test_a_damaged_or_missing_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    for load in (tensors.load_tensors, tensors.load_record):
        with pytest.raises(InputError, match=r"expected a safetensors file at .*a\.safetensors, got"):
            load(path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path, weights = tmp_path / "a.safetensors", {"x": torch.zeros(2, 3)}
    tensors.save_tensors(path, {"x": torch.ones(2, 3)})
    tensors.load_weights(path, weights)
    assert torch.equal(weights["x"], torch.ones(2, 3))
    for other in ({"x": torch.zeros(3, 2)}, {"y": torch.zeros(2, 3)}):
        with pytest.raises(InputError, match=r"expected the 1 arrays of this run's model in .* such as x"):
            tensors.load_weights(path, other)


def test_the_first_signal_is_noted_and_the_second_acts() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        for _ in range(2):  # a command may be called twice in a process
            with signals.handle_signals():
                signals.raise_if_stop_requested()
                assert not signals.stop_requested()
                signal.raise_signal(signal.SIGTERM)
                assert signals.stop_requested()
                with pytest.raises(signals.Stopped):
                    signals.raise_if_stop_requested()
                assert not seen
                signal.raise_signal(signal.SIGTERM)
                assert seen == [signal.SIGTERM]
            signal.raise_signal(signal.SIGTERM)
            assert len(seen) == 2
            seen.clear()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_one_process_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        assert lock_holder(tmp_path) == f"process {process.pid} on {os.uname().nodename}"
        words = f"for this run alone, got one that is under way there: process {process.pid} on"
        with pytest.raises(Busy, match=words), lock_folder(tmp_path):
            pass
    assert lock_holder(tmp_path) is None  # its process is gone
    with lock_folder(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()
    (tmp_path / ".lock").touch()  # its process was killed between making the file and writing its name into it
    assert lock_holder(tmp_path) is None
    with lock_folder(tmp_path):
        pass


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
            with lock_folder(tmp_path):
                pass


HURRY = """
import os, sys, time
from pathlib import Path
from reference_model.runtime.lease import Busy, lock_holder, lock_folder
run = Path(sys.argv[1])
def mine():
    try:
        return f"pid={os.getpid()}" in (run / ".lock").read_text().splitlines()
    except FileNotFoundError:
        return False
for _ in range(300):
    if lock_holder(run) is None:
        try:
            with lock_folder(run, keep_guard="guard" in sys.argv):
                pass
        except Busy:
            continue
        if mine():
            time.sleep(0.5)
            sys.exit(1 if mine() else 0)
"""


@pytest.mark.parametrize("guard", ["guard", "none"])
def test_processes_in_a_hurry_leave_no_lock_behind(tmp_path: Path, guard: str) -> None:
    """Each takes the lock and gives it back at once, and looks at it all the time; one after the other is killed."""
    processes = [subprocess.Popen([sys.executable, "-c", HURRY, str(tmp_path), guard]) for _ in range(4)]
    for process in processes[:2]:
        while process.poll() is None and not (tmp_path / ".lock.guard").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        process.kill()
    assert [process.wait(timeout=100) for process in processes[2:]] == [0, 0]
    for process in processes[:2]:
        process.wait()
    assert lock_holder(tmp_path) is None


def test_one_call_takes_over_the_lock_of_a_process_that_died_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It watches the lock for a whole lease; that of a process that lives it leaves alone after a sign of life."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    with held(tmp_path, "elsewhere", "1.0") as process:
        began = time.monotonic()
        with pytest.raises(Busy, match=f"under way there: process {process.pid} on elsewhere"), lock_folder(tmp_path):
            pass
        assert time.monotonic() - began < 0.9
        process.kill()
        process.wait()
        lease._observer.cache_clear()  # as in a new process, which knows of no sign of life
        with lock_folder(tmp_path):
            assert time.monotonic() - began > 1
    assert not (tmp_path / ".lock").exists()


def test_a_stop_ends_the_wait_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path, "elsewhere") as process, signals.handle_signals():
        process.kill()
        process.wait()
        monkeypatch.setattr(time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(signals.Stopped), lock_folder(tmp_path):
            pass


def take_over(folder: Path, unfinished: list[Any]) -> None:
    """Do as another process on another machine, which takes the lock, and writes files and a folder of its own."""
    (folder / ".lock").unlink()
    (folder / ".lock").write_text("token=theirs, of another process")
    lease._remove_unfinished(folder)
    theirs = lease.HeldLock(folder, "theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(lease._held, folder.resolve(), theirs)
        unfinished.append(part := files._empty_folder_beside(folder / "a.json"))
        (part.__enter__() / "a.json").write_text("half")
    (folder / "a.json").write_text("theirs")
    shutil.rmtree(folder / "b", ignore_errors=True)
    (folder / "b").mkdir()
    (folder / "b" / "c").write_text("theirs")
    unfinished.append((folder / "b").stat().st_ctime_ns)  # changes if it is moved away, even for a moment


def at_line(number: int, act: Callable[[], None]) -> Callable[..., Any]:
    """Return a trace function that acts once, before this line of the code that writes files and looks at locks."""
    lines = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in (files.__file__, lease.__file__):
            return None
        lines += event == "line"
        if lines == number:
            lines += 1
            sys.settrace(None)
            act()
        return trace

    return trace


def write_both(folder: Path) -> None:
    write_text(folder / "a.json", "ours")
    files.atomic_folder(folder / "b", lambda beside: (beside / "c").write_text("ours"))


def test_a_lost_lock_fences_every_write_wherever_it_was_lost(tmp_path: Path) -> None:
    """The process is suspended before each line in turn while another one takes the lock over, and goes on then."""
    refused = 0
    unfinished: list[Any] = []
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        (folder / "b").mkdir(parents=True)  # is replaced; the file is new
        with lock_folder(folder):
            sys.settrace(at_line(number, functools.partial(take_over, folder, unfinished)))
            try:
                write_both(folder)
            except (Busy, OSError):
                refused += 1
            finally:
                sys.settrace(None)
            if "process" not in (folder / ".lock").read_text().split()[-1]:
                break  # there is no such line
            with pytest.raises(Busy, match="got it taken over while this process was suspended"):
                atomic_write(folder / "a.json", lambda _: pytest.fail("expected a look before the file is written"))
        assert (folder / "a.json").read_text() == (folder / "b" / "c").read_text() == "theirs", number
        assert (folder / "b").stat().st_ctime_ns == unfinished[-1], number
        (half,) = folder.glob(".*.part")
        assert (half / "a.json").read_text() == "half"
    assert number > 20
    assert refused > 10


def test_a_lock_that_was_lost_to_an_older_version_is_lost(tmp_path: Path) -> None:
    """It removes nothing that others have not finished: the last look is right before a file is moved."""
    (tmp_path / "a.json").write_text("theirs")

    def lose(beside: Path) -> None:
        beside.write_text("ours")
        (tmp_path / ".lock").unlink()

    with lock_folder(tmp_path), pytest.raises(Busy, match="got it taken over"):
        atomic_write(tmp_path / "a.json", lose)
    assert (tmp_path / "a.json").read_text() == "theirs"


SUSPENDED = """
import socket, sys
socket.gethostname = lambda: "elsewhere"
from pathlib import Path
from reference_model.runtime import files, lease
lease.LEASE_SECONDS = 1.0
folder = Path(sys.argv[1])
def slowly(beside):
    beside.write_text("ours")
    print("writes", flush=True)
    input()
with lease.lock_folder(folder):
    try:
        files.atomic_write(folder / "a.json", slowly)
    except lease.Busy as error:
        print(error)
"""


def test_a_suspended_process_cannot_finish_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    command = [sys.executable, "-c", SUSPENDED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writes\n"
        process.send_signal(signal.SIGSTOP)
        with lock_folder(tmp_path):
            write_text(tmp_path / "a.json", "theirs")
            process.send_signal(signal.SIGCONT)
            output, _ = process.communicate("\n", timeout=60)
            assert "got it taken over while this process was suspended" in output
            assert (tmp_path / "a.json").read_text() == "theirs"
            assert lease.held_lock(tmp_path) is not None
            write_text(tmp_path / "a.json", "theirs again")  # the lock is still held
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", ".lock.guard"}


PRINTS = """
import sys
from pathlib import Path
from reference_model.runtime.output import outlive_readers, require_written
outlive_readers()
from tqdm import tqdm
for number in tqdm(range(3000), mininterval=0):
    print(number)
    print(number, file=sys.stderr, flush=True)
try:
    require_written()
    Path(sys.argv[1]).write_text("written")
except OSError as error:
    Path(sys.argv[1]).write_text(error.strerror)
"""


@pytest.mark.parametrize(
    "command, expected",
    [
        ('"$@" 2>&1 | head -1', "written"),  # what the reader of a pipe has not read, it does not want
        ('"$@" > /dev/full 2> /dev/full', "No space left on device"),
        ('"$@" >&- 2>&-', "written"),
    ],
)
def test_output_that_cannot_be_written_ends_nothing(tmp_path: Path, command: str, expected: str) -> None:
    """A file that is opened later must not take the place of a closed stream either."""
    result = tmp_path / "result.txt"
    shell = f"set -o pipefail; {command}"
    done = subprocess.run(["bash", "-c", shell, "-", sys.executable, "-c", PRINTS, result], check=False)
    assert done.returncode == 0
    assert result.read_text() == expected


def test_characters_that_cannot_be_written_end_nothing() -> None:
    code = "from reference_model.runtime.output import outlive_readers; outlive_readers(); print('\\xe9 \\udcff')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment) == b"\\xe9 \\udcff\n"


PARENT = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
code = f"import sys; sys.platform = {sys.argv[1]!r}; from reference_model.runtime.children import end_with_parent; "
code += "end_with_parent()"
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), exec, (code,))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 100)
    time.sleep(100)
"""


@pytest.mark.parametrize("platform", ["linux", "other"])
def test_no_child_outlives_its_parent(tmp_path: Path, platform: str) -> None:
    """A pool waits for tasks on a pipe of which it holds both ends: without a watch it would wait for ever."""
    (script := tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), platform]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.exists()
        parent.kill()
        parent.wait()
        until = time.monotonic() + 20
        while child.exists() and "Z" not in (child / "stat").read_text().split() and time.monotonic() < until:
            time.sleep(0.05)
        assert time.monotonic() < until


def handles_sigterm(process: "subprocess.Popen[Any]") -> bool:
    """Return whether the process has a handler of SIGTERM."""
    caught = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_mean_the_same_from_the_first_second_on(number: signal.Signals) -> None:
    """While the program is still being loaded."""
    command = [sys.executable, "-m", "reference_model", "report", "--results", "nowhere"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    while not handles_sigterm(process):
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (signals.EXIT_STOPPED, "stopped when asked to; the same command continues\n")


def test_a_signal_ends_forked_processes_without_a_word() -> None:
    code = "import os, signal; from reference_model.runtime.signals import exit_on_signals; exit_on_signals()\n"
    code += "os.fork()\nsignal.raise_signal(signal.SIGTERM)"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("stopped when asked to")) == (signals.EXIT_STOPPED, 1)
