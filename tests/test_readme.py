"""The pages: generated parts are what their sources hold, links lead somewhere, the first example runs."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.readme import BLOCK, KEPT, PAGES, ROOT, filled, overview
from benchmarks.results import RESULTS

README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHER_PAGES = (
    "examples/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "reference_model/PAPER.md",
)
LINKED = (*PAGES, *(ROOT / name for name in OTHER_PAGES))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) >= 1
    assert filled(text) == text


def test_the_overview_is_up_to_date() -> None:
    assert (RESULTS / "overview.md").read_text(encoding="utf-8") == overview()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 100


def test_the_demo_holds_what_it_promises() -> None:
    """The committed results show the paper's four losses, and NT-Xent well above chance."""
    table = json.loads((KEPT / "demo" / "table_1.json").read_text(encoding="utf-8"))
    rows = {row["loss"]: row for row in table["rows"]}
    assert list(rows) == ["triplet_sum", "triplet_max", "triplet_weighted", "nt_xent"]
    assert rows["nt_xent"]["ours"]["text_to_audio"]["R@10"]["mean"] >= 60
    assert table["chance"]["Synthetic"]["text_to_audio"]["R@10"] < 5.01  # of at least 200 clips


def test_the_example_is_whole() -> None:
    """The committed results hold every run of both tables, with three seeds."""
    for number, rows in (("1", 8), ("2", 8)):
        table = json.loads((KEPT / "example" / f"table_{number}.json").read_text(encoding="utf-8"))
        assert len(table["rows"]) == rows
        assert all(row["runs"]["done"] + row["runs"]["diverged"] == 3 for row in table["rows"])
        assert table["seeds"] == [0, 1, 2]
    page = (KEPT / "example" / "report.html").read_text(encoding="utf-8")
    assert "36 runs: " in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_pictures_and_links_are_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, section = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), f"{page.name} links to {target}"
        if section:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert section in anchors, f"{page.name} links to {target}"


def test_first_example(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    assert len(example[1].splitlines()) <= 10
    exec(compile(example[1], "README.md", "exec"), {})
    assert "Diagnosis(positive=tensor(" in capsys.readouterr().out


def test_every_package_is_in_the_map() -> None:
    """The map of the architecture page names every package, and nothing else."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    layout = page.split("## Where things are")[1].split("```")[1]
    named, top = set(), ""
    for indent, folder in re.findall(r"^( *)(\w+)/ ", layout, re.MULTILINE):
        top = top if indent else folder
        named.add(f"{top}/{folder}" if indent else folder)
    packages = {
        str(path.parent.relative_to(ROOT))
        for top in ("crossmodal_losses", "reference_model", "benchmarks", "docs")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert named == packages | {"examples", "tests"}
