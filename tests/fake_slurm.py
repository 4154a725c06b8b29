"""Stand-ins for Slurm's programs: they write down what they are asked, and run the batch scripts on this machine.

The folder $FAKE_SLURM holds ``asked`` (a line of JSON for each call), and of every job or element of an array
``ID.state`` and, while it is in the queue, ``ID.queued``; while it runs, ``ID.pid`` is the process that srun started.
With a file ``hold`` there, jobs wait for ever; with ``refuse``, sbatch fails; with ``silent``, squeue and sacct do.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")


def install(folder: Path) -> dict[str, str]:
    """Put the programs into folder/bin, and return the environment variables by which they are found and work."""
    (folder / "bin").mkdir(parents=True)
    for program in PROGRAMS:
        path = folder / "bin" / program
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" {program} "$@"\n')
        path.chmod(0o755)
    return {"FAKE_SLURM": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def asked(folder: Path, program: str) -> list[list[str]]:
    """Return the arguments of every call of a program so far."""
    lines = (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []
    return [call[1:] for call in map(json.loads, lines) if call[0] == program]


def wait_for(path: Path, seconds: float = 60) -> str:
    """Wait until there is such a file with something in it, and return that."""
    until = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < until, path
        time.sleep(0.01)
    return path.read_text()


def sbatch(folder: Path, script: str) -> str:
    if (folder / "refuse").exists():
        raise SystemExit("sbatch: error: invalid partition specified: nowhere")
    number = str(len(asked(folder, "sbatch")) + 99)
    copy = folder / f"{number}.sh"
    copy.write_text(Path(script).read_text())
    array = re.search(r"--array=0-(\d+)", copy.read_text())
    for job in [f"{number}_{k}" for k in range(int(array[1]) + 1)] if array else [number]:
        (folder / f"{job}.state").write_text("PENDING")
        (folder / f"{job}.queued").touch()
        if not (folder / "hold").exists():
            command = [sys.executable, "-S", "-E", __file__, "work", job, str(copy)]
            subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return f"Submitted batch job {number}"


def work(folder: Path, job: str, script: str) -> str:
    """Run the script, and again as often as the job is put back into the queue."""
    number, _, element = job.partition("_")
    ids = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": element} if element else {}
    state = folder / f"{job}.state"
    while state.read_text() in ("PENDING", "REQUEUED"):
        state.write_text("RUNNING")
        status = subprocess.run(["bash", script], env={**os.environ, "SLURM_JOB_ID": number, **ids}, check=False)
        (folder / f"{job}.pid").unlink(missing_ok=True)
        if state.read_text() == "RUNNING":
            state.write_text("FAILED" if status.returncode else "COMPLETED")
    (folder / f"{job}.queued").unlink()
    return ""


def srun(folder: Path, *arguments: str) -> str:
    element = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ["SLURM_JOB_ID"] + (f"_{element}" if element else "")
    options, rest = {}, list(arguments)
    while rest[0].startswith("--"):
        options[rest[0]] = "" if rest[0] == "--unbuffered" else rest.pop(1)
        rest.pop(0)
    for number, name in ((1, "--output"), (2, "--error")):
        path = options[name].replace("%A_%a", job).replace("%j", job).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    (folder / f"{job}.pid").write_text(str(os.getpid()))
    os.execvp(rest[0], rest)


def signal_job(folder: Path, job: str, number: int) -> None:
    """Send a signal to the process that srun started, if there is one."""
    if (folder / f"{job}.pid").exists():
        os.kill(int(wait_for(folder / f"{job}.pid")), number)


def scancel(folder: Path, *jobs: str) -> str:
    for job in jobs:
        (folder / f"{job}.state").write_text("CANCELLED by 0")
        signal_job(folder, job, signal.SIGTERM)
    if (folder / "hold").exists():
        for job in jobs:
            (folder / f"{job}.queued").unlink()
    return ""


def scontrol(folder: Path, action: str, job: str) -> str:
    assert action == "requeue"
    (folder / f"{job}.state").write_text("REQUEUED")
    signal_job(folder, job, signal.SIGTERM)
    return ""


def squeue(folder: Path, *arguments: str) -> str:
    if (folder / "silent").exists():
        raise SystemExit("slurm_load_jobs error: Unable to contact slurm controller")
    jobs = sorted(path.stem for path in folder.glob("*.queued"))
    options = dict(argument.partition("=")[::2] for argument in arguments)
    if options["--format"] == "%i":
        assert "--array" in options
        return "\n".join(jobs)
    assert options["--format"] == "%T"
    state = (folder / f"{options['--jobs']}.state").read_text()
    return state if state in ("PENDING", "RUNNING") else "COMPLETING"


def sacct(folder: Path, *arguments: str) -> str:
    if (folder / "silent").exists():
        raise SystemExit("sacct: error: Slurm accounting storage is disabled")
    numbers = [value for name, value in itertools.pairwise(arguments) if name == "-j"]
    states = {path.stem: path.read_text() for path in folder.glob("*.state") if path.stem.split("_")[0] in numbers}
    return "\n".join(["JobID|State|NodeList", *(f"{job}|{state}|here" for job, state in states.items())])


if __name__ == "__main__":
    place = Path(os.environ["FAKE_SLURM"])
    with (place / "asked").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    print(globals()[sys.argv[1]](place, *sys.argv[2:]))
