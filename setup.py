"""The text of the package page: README.md, whose links and pictures are absolute there."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
REPOSITORY = re.findall(r'^Repository = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[0]


def with_absolute_links(text: str) -> str:
    """Return Markdown with relative links and pictures made absolute."""
    text = re.sub(r"\]\((?![a-z]+:|#)", f"]({REPOSITORY}/blob/main/", text)
    return re.sub(rf"(!\[[^]]*\]\({REPOSITORY})/blob/", r"\1/raw/", text)


setup(
    long_description=with_absolute_links((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
