"""The examples run, and with two processes they print the losses and the temperature of one process."""

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
    "with_trainer.py": ["torch.distributed.run", "--standalone", "--nproc-per-node"],
}  # fmt: skip


ONE_PROCESS = ["with_queue.py", "with_hard_negatives.py"]


def printed(example: str, processes: int) -> list[float]:
    """Return the losses that an example prints, one for each epoch, and the temperature if it has learned one."""
    launch = ["-m", *LAUNCHERS[example], str(processes)] if example in LAUNCHERS else []
    launch = [sys.executable, *launch, str(HERE / example)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert example in ONE_PROCESS or f"{processes} processes" in done.stdout
    return [float(value) for value in re.findall(r"(?:epoch \d: loss|temperature) (\S+)", done.stdout)]


@pytest.mark.parametrize("example", LAUNCHERS)
def test_two_processes_print_the_losses_of_one_and_learn_its_temperature(example: str) -> None:
    *losses, temperature = alone = printed(example, 1)
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert abs(temperature - 0.2) > 1e-3  # where it starts: the optimiser has its parameter
    assert printed(example, 2) == pytest.approx(alone, rel=2e-4)


@pytest.mark.parametrize("example", ONE_PROCESS)
def test_an_example_of_one_process_learns(example: str) -> None:
    found = printed(example, 1)
    assert len(found) == 3
    assert found[-1] < found[0]


def test_every_example_is_run() -> None:
    assert {path.name for path in HERE.glob("*.py")} == {*LAUNCHERS, *ONE_PROCESS, "pairs.py", Path(__file__).name}
