"""The examples run, and with two processes they print the losses of one process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LAUNCHERS = {
    "plain_torch.py": ["torch.distributed.run", "--standalone", "--nproc-per-node"],
    "with_accelerate.py": ["torch.distributed.run", "--standalone", "--nproc-per-node"],
    "with_fabric.py": ["lightning_fabric.cli", "--accelerator", "cpu", "--strategy", "ddp", "--devices"],
}  # fmt: skip


def losses(example: str, processes: int) -> list[float]:
    """Return the losses that an example prints, one for each epoch."""
    launch = [sys.executable, "-m", *LAUNCHERS[example], str(processes), str(HERE / example)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{processes} processes" in done.stdout
    return [float(value) for value in re.findall(r"epoch \d: loss (\S+)", done.stdout)]


@pytest.mark.parametrize("example", LAUNCHERS)
def test_two_processes_print_the_losses_of_one(example: str) -> None:
    alone, together = losses(example, 1), losses(example, 2)
    assert len(alone) == 3
    assert alone[-1] < alone[0]
    assert together == pytest.approx(alone, rel=2e-4)


def test_every_example_is_run() -> None:
    assert {path.name for path in HERE.glob("*.py")} == {*LAUNCHERS, "pairs.py", Path(__file__).name}
