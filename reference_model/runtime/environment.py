"""What something was made on: the machine, the versions, the commit."""

import platform
import subprocess
from pathlib import Path

import torch


def machine() -> str:
    """In one line, for people."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{model}, {torch.get_num_threads()} threads, {device}; torch {torch.__version__}, "
        f"Python {platform.python_version()}; commit {commit()}"
    )


def commit() -> str:
    """Of the checkout that this is run from; "unknown" where it is none."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"
