"""The hardware, the versions and the commit that a result was made with."""

import platform
import subprocess
from pathlib import Path

import torch


def describe_environment() -> str:
    """Return processor, threads, GPU, versions of torch and Python, and commit, in one line for people."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{processor}, {torch.get_num_threads()} threads, {gpu}; torch {torch.__version__}, "
        f"Python {platform.python_version()}; commit {commit()}"
    )


def commit() -> str:
    """Return the short hash of the checkout's commit, or "unknown" outside of a checkout."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"
