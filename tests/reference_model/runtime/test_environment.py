"""The device and its precision; the one line about hardware, versions and commit."""

import functools
import platform
import re
import subprocess
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator

from reference_model import InputError
from reference_model.runtime import devices, environment


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "Accelerator", functools.partial(Accelerator, cpu=True))
    with pytest.raises(InputError, match="expected --precision no or bf16 on cpu, got fp16"):
        devices.make_accelerator("fp16")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_precision_is_that_of_the_run(precision: str) -> None:
    assert devices.make_accelerator(precision).mixed_precision == precision


def test_the_line_has_hardware_versions_and_commit() -> None:
    line = environment.describe_environment()
    assert re.fullmatch(rf".+, {torch.get_num_threads()} threads, .+; torch \S+, Python \S+; commit \w+", line)
    assert f"torch {torch.__version__}, Python {platform.python_version()}" in line


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Mock(side_effect=FileNotFoundError("git")))
    assert environment.commit() == "unknown"
