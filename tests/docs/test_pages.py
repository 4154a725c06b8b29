"""What is put into the pages when the site is built."""

import re

from crossmodal_losses import LOSSES, __all__
from crossmodal_losses.engine import dispatch
from crossmodal_losses.engine.dense import FEWEST_TO_GATHER
from crossmodal_losses.engine.small_batch import LARGEST
from docs.pages import DOCS, ELSEWHERE, FILL, MARKER, ROOT, SECTIONS, moved, products, table


def test_links_of_a_page_that_is_kept_elsewhere() -> None:
    text = (
        "[a](results) ![b](results/losses.png) [c](../README.md) [d](README.md#time) [e](http://x) [f](#g) [h](gpu.py)"
    )
    expected = (
        "a ![b](../benchmarks/results/losses.png) [c](index.md) [d](performance.md#time) [e](http://x) [f](#g) "
        "[h](../benchmarks/gpu.py)"
    )
    assert moved(text, ROOT / "benchmarks") == expected
    assert moved("[x]: README.md\n[y]: config.py", ROOT / "reference_model") == (
        "[x]: reproduction.md\n[y]: ../reference_model/config.py"
    )


def test_products() -> None:
    assert {name: products(LOSSES[name](tile_size=64), 256) for name in LOSSES} == {
        "triplet_sum": 3, "triplet_max": 1, "triplet_weighted": 1, "triplet_weighted_mined": 1, "nt_xent": 4,
        "sup_con": 4, "sigmoid": 3,
    }  # fmt: skip
    assert products(LOSSES["nt_xent"](tile_size=64), 256, backward=False) == 1


def test_figures_of_the_pages() -> None:
    """What pages say of limits and versions is what the code and the metadata have."""
    readme, large, stable = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("README.md", "docs/guides/any_batch_size.md", "docs/stability.md")
    )
    on_a_gpu = f"on a GPU from {dispatch.LARGEST_DENSE_ON_CUDA + 1}"
    assert f"1 product of B x B x D from B = {FEWEST_TO_GATHER} on, {on_a_gpu} | 3 products" in readme
    assert products(LOSSES["triplet_max"](), FEWEST_TO_GATHER) == 1
    assert products(LOSSES["triplet_max"](), FEWEST_TO_GATHER - 1) == 3
    dense = f"Up to B = {dispatch.LARGEST_DENSE} all of S is kept on a CPU, up to B = "
    dense += f"{dispatch.LARGEST_DENSE_OF_TWO_PASSES} for NT-Xent and supervised contrastive; up to B = "
    dense += f"{dispatch.LARGEST_DENSE_ON_CUDA} on a GPU."
    tiles = " and ".join(
        f"{rows} x {columns}{on}"
        for (rows, columns), on in zip(dispatch.TILE.values(), (" entries on a CPU,", " on a GPU"), strict=True)
    )
    for figure in (dense, tiles, f"On a GPU, up to {LARGEST} pairs"):
        assert figure in " ".join(large.split())
    needed = re.findall(
        r'requires-python = ">=(.*)"|"torch>=(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    assert f"Python {needed[0][0]} and newer, torch {needed[1][1]} and newer." in stable


def test_a_table() -> None:
    assert table([("a", "b"), ("1|2", "3")]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |\n"


def test_every_marker_has_a_place() -> None:
    """Each loss has its page with all of its parts, each page that is kept elsewhere is shown."""
    found = {}
    for path in DOCS.rglob("*.md"):
        found[str(path.relative_to(DOCS).with_suffix(""))] = set(MARKER.findall(path.read_text(encoding="utf-8")))
    for loss in LOSSES:
        assert found[f"losses/{loss}"] >= {("picture", loss), ("cost", loss)}
    for page, file in ELSEWHERE.items():
        assert found[page] == {("page", file)}
    comments = [re.findall(r"<!-- (\w[\w ]*): ", path.read_text(encoding="utf-8")) for path in DOCS.rglob("*.md")]
    assert {kind for of_page in comments for kind in of_page} == FILL.keys()
    assert all((ROOT / file).is_file() for file in (*ELSEWHERE.values(), *SECTIONS))


def test_the_api_is_whole() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [name for name in __all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_start_page_needs_torch_alone() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    imported = re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
    assert set(imported) == {"torch", "crossmodal_losses"}
