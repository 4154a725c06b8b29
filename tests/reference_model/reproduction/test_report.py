"""The page of the report in a browser."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsers import installed_browser
from grids import settings
from playwright.sync_api import Browser

from reference_model.config import Config
from reference_model.paper import select_rows
from reference_model.reproduction.grid import Grid
from reference_model.reproduction.report import write_report, write_tables
from reference_model.reproduction.table_formats import lines
from reference_model.run_folder import TEST_EMBEDDINGS
from reference_model.runtime.files import write_json
from reference_model.runtime.tensors import load_tensors, save_tensors
from reference_model.training.trainer import train

ODD = """<script>alert("1")</script> & 'quotes'"""  # a caption


@pytest.fixture(scope="module")
def results(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path]:
    """Two losses are trained with two seeds, one of which collapsed; one loss failed, one is still to come."""
    out = tmp_path_factory.mktemp("results")
    rows = select_rows(("1", "2"), datasets=("Synthetic",), encoders=("frozen",))
    grid = Grid.from_rows(rows, (0, 1), settings(replace(config, epochs=2)))
    grid.write(out)
    for run in grid.runs(out):
        if run.config.batch_size == 32 and run.config.loss in ("triplet_max", "nt_xent"):
            train(run.config, run.folder)
        elif run.config.loss == "triplet_sum":
            run.record_failure(RuntimeError(f"no room for {ODD}"))
    for path in out.glob("runs/*/metrics.json"):
        collapsed = path.parent.name == "synthetic-frozen-nt_xent-seed-0"
        write_json(path, {**json.loads(path.read_text()), "collapsed": collapsed})
    for path in out.glob(f"runs/*/{TEST_EMBEDDINGS}"):
        tensors, record = load_tensors(path)
        for clip in record["clips"]:
            clip["captions"][0] = ODD
        save_tensors(path, tensors, record)
    write_tables(grid, out)
    write_report(grid, out)
    return grid, out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with installed_browser() as browser:
        yield browser


class Shown:
    """A page in the browser, and what it has asked for and complained about."""

    def __init__(self, browser: Browser, path: Path) -> None:
        self.page = browser.new_context(offline=True).new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri(), wait_until="load")


@pytest.fixture(scope="module")
def shown(results: tuple[Grid, Path], browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The report, alone in another folder, without a network."""
    return Shown(browser, Path(shutil.copy(results[1] / "report.html", tmp_path_factory.mktemp("alone"))))


def test_the_page_needs_nothing_and_its_links_lead_somewhere(shown: Shown) -> None:
    assert shown.complaints == []
    assert [url for url in shown.requests if not url.startswith("data:")] == [shown.page.url]
    missing = "[...document.querySelectorAll('a')].filter(a => !document.querySelector(a.getAttribute('href'))).length"
    assert shown.page.evaluate(missing) == 0
    assert shown.page.evaluate("document.querySelectorAll('nav a').length") == 8


def test_every_picture_is_shown(shown: Shown) -> None:
    pictures: list[dict[str, Any]] = shown.page.evaluate(
        "[...document.images].map(i => ({width: i.naturalWidth, height: i.clientHeight, alt: i.alt}))"
    )
    assert [picture["alt"] for picture in pictures] == [
        "Bars of the recalls in table 1",
        "Bars of the recalls in table 2",
        "Learning curves: Synthetic, frozen encoders, batch size 32",
        "Similarities: Synthetic, frozen encoders, batch size 32",
    ]
    assert all(picture["width"] > 500 and picture["height"] > 100 for picture in pictures)


def test_every_sound_can_be_played(shown: Shown) -> None:
    shown.page.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState > 0 || a.error)")
    sounds: list[list[Any]] = shown.page.evaluate(
        "[...document.querySelectorAll('audio')].map(a => [a.duration, a.error && a.error.message])"
    )
    assert len(sounds) == 4 * 3 + 4  # each of 4 captions with 3 candidates; 4 clips
    for seconds, error in sounds:
        assert error is None
        assert seconds == pytest.approx(0.5, abs=0.1)
    assert shown.complaints == []


def test_the_tables_show_the_numbers(shown: Shown, results: tuple[Grid, Path]) -> None:
    for number in ("1", "2"):
        table = json.loads((results[1] / f"table_{number}.json").read_text())
        cells: list[list[str]] = shown.page.evaluate(
            f"""[...document.querySelector('#table-{number} ~ div table').tBodies[0].rows]
            .map(row => [...row.cells].map(cell => cell.innerHTML))"""
        )
        assert cells == [
            [*line.texts, *(f"<b>{cell.text}</b>" if cell.bold else cell.text for cell in line.cells)]
            for line in lines(table)
        ]
    assert [row[1] for row in cells][:4] == [
        "Triplet-sum (2 of 2 failed)", "Triplet-max", "Triplet-weighted (2 of 2 to come)", "NT-Xent (1 of 2 collapsed)",
    ]  # fmt: skip


def test_the_page_says_what_was_run(shown: Shown) -> None:
    """Captions and reasons with tags in them do nothing but stand there."""
    body = shown.page.inner_text("body")
    assert f"“{ODD}”" in body or f": {ODD}" in body
    assert f"no room for {ODD}" in body
    assert shown.page.evaluate("document.scripts.length") == 0
    for words in ("16 runs: 4 done, 4 failed, 8 pending", "4 finished runs took 0.0", "torch 2.", "select_on",
                  "Some runs of triplet-max and triplet-weighted"):  # fmt: skip
        assert words in body


def test_nothing_finished_makes_a_page_too(results: tuple[Grid, Path], browser: Browser, tmp_path: Path) -> None:
    grid = results[0]
    grid.write(tmp_path)
    write_tables(grid, tmp_path)
    shown = Shown(browser, write_report(grid, tmp_path))
    assert "No run has finished" in shown.page.inner_text("body")
    assert shown.complaints == []
