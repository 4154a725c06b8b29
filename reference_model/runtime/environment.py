"""The hardware, the versions and the commit that a result was made with."""

import platform
import re
import subprocess
from pathlib import Path

import torch


def describe_environment() -> str:
    """Return processor, threads, GPU, versions of torch and Python, and commit, in one line for people."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.search(r"^model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    processor = names[1].strip() if names else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{processor}, {torch.get_num_threads()} threads, {gpu}; torch {torch.__version__}, "
        f"Python {platform.python_version()}; commit {commit()}"
    )


def commit() -> str:
    """Return the short hash of the checkout's commit, or "unknown" outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"
