"""The README's generated parts are what their sources hold, and its first example runs."""

import json
import re

import pytest

from benchmarks.readme import BLOCK, KEPT, PAGES, ROOT, filled

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_tables_are_up_to_date() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(BLOCK.findall(text)) >= 1
        assert filled(text) == text


def test_the_demo_holds_what_it_promises() -> None:
    """Of the committed results: the paper's four losses, and NT-Xent well above chance."""
    table = json.loads((KEPT / "demo" / "table_1.json").read_text(encoding="utf-8"))
    rows = {row["loss"]: row for row in table["rows"]}
    assert list(rows) == ["triplet_sum", "triplet_max", "triplet_weighted", "nt_xent"]
    assert rows["nt_xent"]["ours"]["text_to_audio"]["R@10"]["mean"] >= 60
    assert table["chance"]["Synthetic"]["text_to_audio"]["R@10"] < 5.01  # of at least 200 clips


def test_the_example_is_whole() -> None:
    """Of the committed results: every run of both tables, three seeds."""
    for number, rows in (("1", 8), ("2", 8)):
        table = json.loads((KEPT / "example" / f"table_{number}.json").read_text(encoding="utf-8"))
        assert len(table["rows"]) == rows
        assert all(row["runs"]["done"] + row["runs"]["diverged"] == 3 for row in table["rows"])
        assert table["seeds"] == [0, 1, 2]
    page = (KEPT / "example" / "report.html").read_text(encoding="utf-8")
    assert "36 runs: " in page
    assert "http" not in page.replace("http-equiv", "")


def test_pictures_and_links_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_first_example(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    assert len(example[1].splitlines()) <= 10
    exec(compile(example[1], "README.md", "exec"), {})
    assert "Diagnosis(positive=tensor(" in capsys.readouterr().out


def test_every_package_is_in_the_map() -> None:
    """The README's map of the code names every package and every module of ``crossmodal_losses``, and nothing else."""
    layout = README.split("## How the code is laid out")[1].split("```")[1]
    named = set(re.findall(r"^\s*(\w+\.py|\w+/)", layout, re.MULTILINE))
    packages = {f"{path.parent.name}/" for top in ("crossmodal_losses", "reference_model", "benchmarks")
                for path in (ROOT / top).rglob("__init__.py")}  # fmt: skip
    modules = {path.name for path in (ROOT / "crossmodal_losses").glob("*.py")} - {"__init__.py"}
    assert packages | modules <= named
    assert named <= packages | {"tests/"} | {path.name for path in ROOT.glob("*/*.py")}
