"""``python -m benchmarks.readme``: put the generated tables into README.md, between their markers."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?<=<!-- generated: )(?P<source>\S+)(?P<open> -->\n)(?P<body>.*?)(?=<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with every block's body replaced by the file that its marker names."""

    def fill(block: re.Match[str]) -> str:
        return block["source"] + block["open"] + (ROOT / block["source"]).read_text(encoding="utf-8")

    return BLOCK.sub(fill, text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
