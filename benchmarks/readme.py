"""``python -m benchmarks.readme [demo] [example]``: keep results, say where they were made, and fill the pages.

Blocks of the pages between "generated: FILE" and "end" hold what FILE holds; a test sees to it.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from reference_model.runtime.environment import machine

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "reference_model" / "README.md")
KEPT = ROOT / "reference_model" / "results"
# What is kept of `make demo` and of `make example`, besides table_1.md.
FILES = {
    "demo": ("table_1.json", "table_1.png"),
    "example": (
        *("table_1.json", "table_1.png", "table_1.tex"),
        *("table_2.json", "table_2.png", "table_2.tex", "table_2.md"),
        *("claims.md", "report.html"),
    ),
}
BLOCK = re.compile(r"(?<=<!-- generated: )(?P<source>\S+)(?P<open> -->\n)(?P<body>.*?)(?=<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with every block's body replaced by the file that its marker names."""

    def fill(block: re.Match[str]) -> str:
        return block["source"] + block["open"] + (ROOT / block["source"]).read_text(encoding="utf-8")

    return BLOCK.sub(fill, text)


def keep(name: str) -> None:
    """Copy what the last ``make demo`` or ``make example`` made to where it is committed."""
    results, kept = ROOT / name / "results", KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    for file in FILES[name]:
        shutil.copy(results / file, kept)
    times = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("runs/*/time.json")]
    hours = sum(time["seconds"] for time in times) / 3600
    made = f"Made by `make {name}` on {machine()}: {len(times)} runs, two at a time, of {hours:.2f} hours added up."
    table = (results / "table_1.md").read_text(encoding="utf-8")
    (kept / "table_1.md").write_text(f"{table}\n{made}\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        keep(name)
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
