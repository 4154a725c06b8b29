"""Fill the markers of the pages, HTML comments such as ``<!-- picture: nt_xent -->``, when the site is built.

page: FILE           another page of the repository, with its links as the site needs them
picture: LOSS        what the loss looks at
cost: LOSS           matrix products that are counted now, and measured time and memory
same as: LOSS        the lines of other libraries that it takes the place of
coming from: NAME    the lines of one library
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from crossmodal_losses import LOSSES, PairLoss
from docs.parity import LINES, VALUES
from docs.pictures import B as SHOWN
from docs.pictures import picture, reached

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MARKER = re.compile(r"<!-- (?P<kind>page|picture|cost|same as|coming from): (?P<what>\S+) -->")
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!http|mailto)[^)\s]+)\)")
DEFINITION = re.compile(r"^(?P<label>\[[^\]]+\]: )(?P<target>(?!http)\S+)$", re.MULTILINE)
# Pages of the site that are kept elsewhere in the repository.
ELSEWHERE = {
    "performance": "benchmarks/README.md",
    "paper": "reference_model/PAPER.md",
    "reproduction": "reference_model/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "examples": "examples/README.md",
    **{
        f"results/{name}": f"benchmarks/results/{name}.md"
        for name in ("losses", "losses-newest-torch", "tile_size", "ranks")
    },
}
# Tables that stand in a section of such a page.
SECTIONS = {
    "benchmarks/results/summary.md": "performance.md#time",
    "benchmarks/results/roofline.md": "performance.md#matrix-products",
    "benchmarks/results/memory.md": "performance.md#memory",
    "benchmarks/results/negatives.md": "performance.md#candidates-without-a-partner",
    "README.md": "index.md",
    "docs/architecture.md": "architecture.md",
}
LIBRARIES = {
    "pytorch_metric_learning": "pytorch-metric-learning",
    "sentence_transformers": "sentence-transformers",
    "open_clip": "open_clip",
    "transformers": "transformers",
    "vsepp": "vsepp",
}


def complete(app: Any, docname: str, source: list[str]) -> None:
    """Fill the markers of a page; Sphinx calls this for each page that it reads."""
    source[0] = MARKER.sub(lambda marker: FILL[marker["kind"]](marker["what"]), source[0])
    if docname in ELSEWHERE:
        app.env.note_dependency(str(ROOT / ELSEWHERE[docname]))


def moved(text: str, home: Path) -> str:
    """Return a page's text with its links as they are in docs/, from where home, the page's folder, is elsewhere.

    Links to pages of the site stay links to pages; other files become downloads, folders become names.
    """
    pages = {str(ROOT / file): f"{name}.md" for name, file in ELSEWHERE.items()}
    pages |= {str(ROOT / file): place for file, place in SECTIONS.items()}

    def site(target: str) -> str | None:
        file, _, section = target.partition("#")
        if not file:
            return target
        path = os.path.normpath(home / file)
        if os.path.isdir(path):
            return None
        place = pages.get(path) or os.path.relpath(path, DOCS)
        return f"{place}#{section}" if section else place

    def link(found: re.Match[str]) -> str:
        place = site(found["target"])
        return found["text"] if place is None else f"{found['picture']}[{found['text']}]({place})"

    text = LINK.sub(link, text)
    return DEFINITION.sub(lambda found: f"{found['label']}{site(found['target'])}", text)


def _page(file: str) -> str:
    path = ROOT / file
    return moved(path.read_text(encoding="utf-8"), path.parent)


def _picture(loss: str) -> str:
    positive, other = reached(loss)
    counted = f"{positive} of the {SHOWN} positives and {other} of the {SHOWN * (SHOWN - 1)} other pairs"
    return f"{picture(loss)}\n\nIn this batch, {counted} have a gradient.\n"


def table(rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; the first row is its header."""
    header, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def products(loss: PairLoss, B: int, *, backward: bool = True) -> float:
    """Count the matrix products of a loss, in units of one of B x B x D; every negative violates the margin."""
    x = torch.randn(B, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = (-x).detach().requires_grad_(backward)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        value = loss(x, y)
        if backward:
            value.backward()
    return round(float(counter.get_total_flops()) / (2 * B * B * 16), 2)


def _cost(name: str) -> str:
    tiles = LOSSES[name](tile_size=64)
    counted = [
        ("all of S, B = 32", products(LOSSES[name](), 32)),
        ("all of S, B = 256", products(LOSSES[name](), 256)),
        ("in tiles", products(tiles, 256)),
        ("in tiles, the value alone", products(tiles, 256, backward=False)),
    ]
    shown = table([("matrix products of B x B x D", *(what for what, _ in counted)),
                   ("forward and backward", *(f"{number:g}" for _, number in counted))])  # fmt: skip
    with (ROOT / "benchmarks" / "results" / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"] == name]
    if rows:
        columns = ("B", "D", "ms", "fastest rival", "its ms", "times faster", "not compiled, ms")
        shown += "\nMeasured, forward and backward ([the whole of it](../performance.md)):\n\n"
        shown += table([columns, *([row[column] for column in columns] for row in rows)])
    return shown


def _same_as(loss: str) -> str:
    rows = [("from", "old line", "new line", "new / old")]
    for line in LINES:
        if line.loss == loss:
            library = f"[{LIBRARIES[line.library]}](../coming_from/{line.library}.md)"
            rows.append((library, f"`{line.old}`", f"`{line.new}`", line.factor))
    return table(rows)


def _coming_from(library: str) -> str:
    values = json.loads(VALUES.read_text(encoding="utf-8"))
    rows = [("old line", "new line", "new / old", "what differs")]
    for line in LINES:
        if line.library == library:
            old, new = values[line.name]
            differs = f"{line.differs} Old: {old}, new: {new}."
            rows.append((f"`{line.old}`", f"`{line.new}`", line.factor, differs))
    return table(rows)


FILL: dict[str, Callable[[str], str]] = {
    "page": _page,
    "picture": _picture,
    "cost": _cost,
    "same as": _same_as,
    "coming from": _coming_from,
}
