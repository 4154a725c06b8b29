"""The one line about hardware, versions and commit."""

import platform
import re
import subprocess

import pytest
import torch

from reference_model.runtime import environment


def test_the_line_has_hardware_versions_and_commit() -> None:
    line = environment.describe_environment()
    assert re.fullmatch(rf".+, {torch.get_num_threads()} threads, .+; torch \S+, Python \S+; commit \w+", line)
    assert f"torch {torch.__version__}, Python {platform.python_version()}" in line


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert environment.commit() == "unknown"
