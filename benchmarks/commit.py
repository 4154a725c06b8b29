"""The commit that a result was made with."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)


def commit() -> str:
    """Return the short name of the commit; with ", changed" if code in the working tree is not that of the commit."""
    try:
        name = _git("rev-parse", "--short", "HEAD").stdout.strip()
        changed = bool(name) and _git("diff", "--quiet", "HEAD", "--", "*.py").returncode
    except FileNotFoundError:
        return "unknown"
    return f"{name}, changed" if changed else name or "unknown"
