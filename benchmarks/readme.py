"""Fill the generated blocks of the Markdown pages: ``python -m benchmarks.readme [demo] [example]``.

A block of a page between "generated: FILE" and "end" holds the text of FILE; a test checks that it is up to date. With
"demo" or "example", the last results of ``make demo`` or ``make example`` are copied to where they are committed first.
"""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

from benchmarks.results import RESULTS, describe_environment, markdown

ROOT = Path(__file__).parents[1]
PAGES = tuple(ROOT / page for page in ("README.md", "benchmarks/README.md", "reference_model/README.md"))
KEPT = ROOT / "reference_model" / "results"
# Files of `make demo` and of `make example` that are committed, besides table_1.md.
FILES = {
    "demo": ("table_1.json", "table_1.png"),
    "example": (
        *("table_1.json", "table_1.png", "table_1.tex"),
        *("table_2.json", "table_2.png", "table_2.tex", "table_2.md"),
        *("claims.md", "report.html"),
    ),
}
BLOCK = re.compile(r"(?<=<!-- generated: )(?P<source>\S+)(?P<open> -->\n)(?P<body>.*?)(?=<!-- end -->)", re.DOTALL)
# Batch sizes of the overview: of the times, and of the memory.
TIMED, WEIGHED = "4096", "16384"


def overview() -> str:
    """Return a short table of time and memory as Markdown, taken from summary.csv and memory.csv."""

    def read(name: str, B: str) -> list[dict[str, str]]:
        with (RESULTS / name).open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if row["B"] == B]

    def rounded(number: str) -> str:
        return f"{float(number):.0f}"

    memory = read("memory.csv", WEIGHED)
    rows = []
    for time in read("summary.csv", TIMED):
        extra = {row["implementation"]: row["extra MiB"] for row in memory if row["loss"] == time["loss"]}
        ours = extra.pop("crossmodal_losses")
        rows.append(
            {
                "loss": f"`{time['loss']}`",
                f"ms, B = {TIMED}": rounded(time["ms"]),
                "fastest other, ms": rounded(time["its ms"]),
                "times faster": time["times faster"],
                "not compiled, ms": rounded(time["not compiled, ms"]),
                f"extra MiB, B = {WEIGHED}": rounded(ours),
                "leanest other, MiB": rounded(min(extra.values(), key=float)),
            }
        )
    return markdown(rows)


def filled(text: str) -> str:
    """Return the text with every block's body replaced by the file that its marker names."""

    def fill(block: re.Match[str]) -> str:
        return block["source"] + block["open"] + (ROOT / block["source"]).read_text(encoding="utf-8")

    return BLOCK.sub(fill, text)


def keep(name: str) -> None:
    """Copy the results of the last ``make demo`` or ``make example`` to where they are committed."""
    results, kept = ROOT / name / "results", KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    for file in FILES[name]:
        shutil.copy(results / file, kept)
    times = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("runs/*/time.json")]
    hours = sum(time["seconds"] for time in times) / 3600
    made = (
        f"Made by `make {name}` on {describe_environment()}: {len(times)} runs, two at a time, "
        f"of {hours:.2f} hours added up."
    )
    table = (results / "table_1.md").read_text(encoding="utf-8")
    (kept / "table_1.md").write_text(f"{table}\n{made}\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        keep(name)
    (RESULTS / "overview.md").write_text(overview(), encoding="utf-8")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
