"""The site in a browser: it is built once, and every page of it is looked at. Nothing may come from elsewhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urldefrag

import pytest
from browsers import installed_browser
from filelock import FileLock
from playwright.sync_api import Browser, Page

from crossmodal_losses import LOSSES

ROOT = Path(__file__).parents[2]
LOOK = """() => ({
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    names: [...document.querySelectorAll('[id]')].map(e => e.id),
    hidden: [...document.querySelectorAll('article img')].filter(i => !i.naturalWidth || !i.clientWidth)
        .map(i => i.src),
    drawings: [...document.querySelectorAll('svg.picture')].map(s => s.getBoundingClientRect().width),
    too_wide: [...document.querySelectorAll('html, .content')].some(e => e.scrollWidth > e.clientWidth),
})"""


def build(out: Path) -> None:
    """Build the site, and run the examples of its pages; every warning is an error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for builder, folder in (("html", out), ("doctest", out.with_name("doctest"))):
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-b", builder]
        command += ["-d", str(out.with_name("doctrees")), str(ROOT / "docs"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The site in a temporary folder that all processes of the tests share."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == "master" else folder.parent
    with FileLock(folder / "site.lock"):
        if not (folder / "built").exists():
            build(folder / "site")
            (folder / "built").touch()
    return folder / "site"


class Quiet(SimpleHTTPRequestHandler):
    """Serve files, and print nothing."""

    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site on this machine: the search reads pages, which browsers refuse for files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with installed_browser() as browser:
        yield browser


@dataclass
class Seen:
    """What a page shows on a screen of 400 px, and what it complains about."""

    complaints: list[str]
    links: list[str]
    names: list[str]
    hidden: list[str]
    drawings: list[float]
    too_wide: bool


def opened(browser: Browser, address: str, **settings: object) -> tuple[Page, list[str]]:
    """Return a new page that can reach this address alone, and its complaints to come."""
    page, complaints = browser.new_context(**settings).new_page(), []  # type: ignore[arg-type]
    page.route(lambda url: not url.startswith((address, "data:")), lambda route: route.abort())
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"not loaded: {request.url}"))
    return page, complaints


def test_every_page(site: Path, address: str, browser: Browser) -> None:
    """No complaint, no dead link, every picture shown, and nothing wider than a telephone."""
    page, complaints = opened(browser, address, viewport={"width": 400, "height": 800})
    seen: dict[str, Seen] = {}
    for path in sorted(site.rglob("*.html")):
        place = path.relative_to(site).as_posix()
        if not place.startswith("_"):
            page.goto(address + place, wait_until="load")
            seen[place] = Seen([*complaints], **page.evaluate(LOOK))
            complaints.clear()
    assert len(seen) >= 35
    assert {place: found.complaints for place, found in seen.items() if found.complaints} == {}
    assert {place: found.hidden for place, found in seen.items() if found.hidden} == {}
    assert [place for place, found in seen.items() if found.too_wide] == []
    drawn = {place: found.drawings for place, found in seen.items() if found.drawings}
    assert drawn.keys() == {f"losses/{loss}.html" for loss in LOSSES}
    assert all(len(widths) == 1 and widths[0] > 300 for widths in drawn.values())

    dead = []
    for place, found in seen.items():
        for link in found.links:
            url, name = urldefrag(link)
            target = unquote(url).removeprefix(address).split("?")[0]
            if url.startswith(address):
                there = (site / target).is_file()
                if not there or (name and target in seen and unquote(name) not in seen[target].names):
                    dead.append(f"{place} -> {link}")
    assert dead == []


@pytest.mark.parametrize("words, expected", [("hard negatives", "hard_negatives_and_queues"), ("sup_con", "sup_con")])
def test_the_search_finds(address: str, browser: Browser, words: str, expected: str) -> None:
    page, complaints = opened(browser, address)
    page.goto(f"{address}search.html?q={words.replace(' ', '+')}")
    page.wait_for_selector(f"ul.search a[href*='{expected}']", timeout=20_000)
    assert complaints == []


def test_pictures_and_formulas_take_the_colours_of_the_page(address: str, browser: Browser) -> None:
    ink = {}
    for scheme in ("light", "dark"):
        page, _ = opened(browser, address, color_scheme=scheme)
        page.goto(f"{address}losses/nt_xent.html")
        ink[scheme] = [
            page.evaluate(f"getComputedStyle(document.querySelector('{what}')).{style}")
            for what, style in (("body", "backgroundColor"), ("svg.picture", "fill"), ("math", "color"))
        ]
        assert page.evaluate("document.querySelector('math').getBoundingClientRect().height") > 10
    assert all(light != dark for light, dark in zip(ink["light"], ink["dark"], strict=True))
