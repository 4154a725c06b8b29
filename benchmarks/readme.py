"""``python -m benchmarks.readme``: keep the demo's results, say where they were made, and fill the pages.

Blocks of the pages between "generated: FILE" and "end" hold what FILE holds; a test sees to it.
"""

import re
import shutil
from pathlib import Path

from reference_model.machine import machine

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "reference_model" / "README.md")
DEMO = ROOT / "demo" / "results"
KEPT = ROOT / "reference_model" / "results" / "demo"
BLOCK = re.compile(r"(?<=<!-- generated: )(?P<source>\S+)(?P<open> -->\n)(?P<body>.*?)(?=<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with every block's body replaced by the file that its marker names."""

    def fill(block: re.Match[str]) -> str:
        return block["source"] + block["open"] + (ROOT / block["source"]).read_text(encoding="utf-8")

    return BLOCK.sub(fill, text)


def keep_demo() -> None:
    """Copy the table and the picture of the last ``make demo`` to where they are committed."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in ("table.json", "table.png"):
        shutil.copy(DEMO / name, KEPT)
    table = (DEMO / "table.md").read_text(encoding="utf-8")
    (KEPT / "table.md").write_text(f"{table}\nMade by `make readme` on {machine()}.\n", encoding="utf-8")


if __name__ == "__main__":
    keep_demo()
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
