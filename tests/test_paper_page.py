"""PAPER.md: links to code lead to what they name, no equation and no section is left out, its figures are the paper's.

A link to the code is written [`NAME, NAME`][FILE] or [`FILE.py`][FILE]: definitions in a file (``CLASS.MEMBER`` too),
tests, or the file itself. The files stand at the end of the page, each with its path.
"""

import ast
import functools
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference_model.paper import DATASET_SIZES, PAPER_TABLES, PROTOCOLS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "reference_model" / "PAPER.md"
LINES = PAGE.read_text(encoding="utf-8").splitlines()
TEXT = " ".join(line.strip() for line in LINES)  # links and code spans go on in the next line
FILES = {match[1]: match[2] for line in LINES if (match := re.fullmatch(r"\[([\w/.]+)\]: (\S+)", line))}
LINKS = sorted(set(re.findall(r"\[`([^`]+)`\]\[([\w/.]+)\]", TEXT)))
LOSSES = ("triplet_sum", "triplet_max", "triplet_weighted", "nt_xent")
RECALLS = [(direction, f"R@{k}") for direction in ("text_to_audio", "audio_to_text") for k in (1, 5, 10)]


@functools.cache
def defined(path: Path) -> frozenset[str]:
    """Return the names that a module and its classes define: NAME and CLASS.MEMBER."""

    def names(statements: list[ast.stmt], inside: str = "") -> Iterator[str]:
        for statement in statements:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                yield inside + statement.name
            if isinstance(statement, ast.ClassDef):
                yield from names(statement.body, f"{statement.name}.")
            for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
                for name in ast.walk(target) if isinstance(target, ast.expr) else ():
                    if isinstance(name, ast.Name):
                        yield inside + name.id

    return frozenset(names(ast.parse(path.read_text(encoding="utf-8")).body))


def test_every_link_to_code_has_the_notation() -> None:
    """A change of it must not leave the tests below without work."""
    assert sum(text.startswith("test_") for text, _ in LINKS) > 50
    assert sum(not text.startswith("test_") for text, _ in LINKS) > 40
    assert len(FILES) > 30
    assert len(re.findall(r"\]\[", TEXT)) == len(re.findall(r"\[`([^`]+)`\]\[([\w/.]+)\]", TEXT))
    assert {label for _, label in LINKS} == FILES.keys()
    spans = re.findall(r"(\[)?`([^`]+)`", TEXT)
    assert not [span for bracket, span in spans if (".py" in span or span.startswith("test_")) and not bracket]
    assert not re.search(r"\]\([^)]*\.py\)", TEXT)
    assert max(map(len, LINES)) <= 120


@pytest.mark.parametrize("label, target", FILES.items())
def test_files_are_there_and_named(label: str, target: str) -> None:
    path = (PAGE.parent / target).resolve()
    assert path.is_file(), f"no {target}"
    assert f"/{path.relative_to(ROOT)}".removesuffix(".py").endswith(f"/{label}")


@pytest.mark.parametrize("text, label", LINKS)
def test_definitions_and_tests_are_there(text: str, label: str) -> None:
    path = (PAGE.parent / FILES[label]).resolve()
    if text != path.name:
        for name in text.split(", "):
            assert name in defined(path), f"no {name} in {path}"
            assert name.startswith("test_") == path.is_relative_to(ROOT / "tests")


def test_every_section_and_every_equation() -> None:
    sections = [match[1] for line in LINES if (match := re.match(r"#+ (\d\S*) ", line))]
    assert sections == ["2.", "2.1.", "2.2.", "2.3.", "3.", "3.1.", "3.2.", "3.3.", "4.", "4.1.", "4.2."]
    of_section_2 = itertools.takewhile(lambda line: not line.startswith("## 3."), LINES)
    equations = [match[1] for line in of_section_2 if (match := re.match(r"\* \*\*Equation (\d)[.,][^*]*\*\*", line))]
    assert equations == ["1", "2", "3", "4", "5", "6", "7"]


def test_every_setting_of_the_protocols() -> None:
    rows = {match[1] for line in LINES if (match := re.match(r"\| `(\w+)` \|", line))}
    assert rows == PROTOCOLS["paper"].keys()


# The figures: of the data sets, and of tables 1 and 2 as our file has them.


def test_figures_of_the_data_sets() -> None:
    for dataset, captions, batches in (("AudioCaps", 1, (32, 128)), ("Clotho", 5, (24,))):
        clips = DATASET_SIZES[dataset]
        row = next(line for line in LINES if line.startswith(f"| {dataset}"))
        assert row.split(" | ")[1:4] == [f"{clips[split]:,}" for split in ("train", "val", "test")]
        pairs = captions * clips["train"]
        assert f"{pairs:,}" in TEXT
        for batch in batches:
            assert re.search(rf"\b{pairs // batch}\b", TEXT)


def tables() -> dict[tuple[str, str, str, int], list[int]]:
    """Return the six recalls, in tenths of a percent, by data set, encoders, loss and batch size."""
    stored = json.loads(PAPER_TABLES.read_text(encoding="utf-8"))
    return {
        (row["dataset"], row["encoders"], row["loss"], row["batch_size"]): [
            round(10 * row[direction][recall]["mean"]) for direction, recall in RECALLS
        ]
        for row in (*stored["table_1"], *stored["table_2"])
    }


def row_of(claim: str) -> str:
    (row,) = [line for line in LINES if line.startswith(f"| {claim}")]
    return row


def points(*tenths: int) -> tuple[str, ...]:
    return tuple(f"{number / 10:.1f}" for number in tenths)


def span(differences: list[int]) -> str:
    return "{} to {}".format(*points(min(differences), max(differences)))


def test_figures_of_table_1() -> None:
    table = tables()
    batch = {"AudioCaps": 32, "Clotho": 24}
    groups = [(dataset, encoders) for dataset in batch for encoders in ("frozen", "fine-tuned")]
    columns = {}
    for dataset, encoders in groups:
        rows = [table[dataset, encoders, loss, batch[dataset]] for loss in LOSSES]
        columns[dataset, encoders] = [dict(zip(LOSSES, recalls, strict=True)) for recalls in zip(*rows, strict=True)]
    everywhere = [column for group in groups for column in columns[group]]
    assert len(everywhere) == 24

    def differences(of: tuple[str, str], minus: tuple[str, str]) -> list[int]:
        return [a[x] - b[x] for a, b in zip(columns[of], columns[minus], strict=True) for x in LOSSES]

    gains = {d: span(differences((d, "fine-tuned"), (d, "frozen"))) for d in batch}
    assert f"by {gains['AudioCaps']} on AudioCaps, {gains['Clotho']} on Clotho" in row_of("fine-tuning")
    apart = [n for e in ("frozen", "fine-tuned") for n in differences(("AudioCaps", e), ("Clotho", e))]
    assert f"all {len(apart)}: by {span(apart)} |" in row_of("recalls are lower")

    assert not any(column["nt_xent"] == min(column.values()) for column in everywhere)
    highest = [[x for x in LOSSES if column[x] == max(column.values())] for column in everywhere]
    shared, alone = sum("nt_xent" in best for best in highest), highest.count(["nt_xent"])
    assert f"highest in {shared} of 24 columns, alone in {alone}; in 0 of 6" in row_of("NT-Xent is best")
    assert not any("nt_xent" in best for best in highest[:6])  # AudioCaps, frozen

    def lowest(loss: str, dataset: str) -> int:
        return sum(column[loss] == min(column.values()) for column in columns[dataset, "frozen"])

    audiocaps, clotho = (lowest("triplet_sum", dataset) for dataset in batch)
    assert f"AudioCaps: lowest in {audiocaps} of 6; Clotho: in {clotho}" in row_of("triplet-sum is behind")
    assert f"in {lowest('triplet_weighted', 'Clotho')} of 6 columns" in row_of("triplet-weighted is last")
    triplets = [[column[x] for x in LOSSES[:3]] for column in columns["Clotho", "fine-tuned"]]
    (alike,) = points(max(max(values) - min(values) for values in triplets))
    assert f"within {alike} in" in row_of("the triplet losses are alike")
    beside = [column["triplet_weighted"] - column["triplet_max"] for column in everywhere]
    (alike,) = points(max(map(abs, beside[:12])))
    assert f"within {alike} in" in row_of("triplet-max and -weighted are alike")
    assert "{} lower to {} higher".format(*points(-min(beside), max(beside))) in row_of("weighting")

    for loss in LOSSES[:3]:
        signs = [(column["nt_xent"] > column[loss]) - (column["nt_xent"] < column[loss]) for column in everywhere]
        counted = " | ".join(str(signs.count(sign)) for sign in (1, 0, -1))
        assert f"| {loss.replace('_', '-')} | {counted} |" in LINES


def test_figures_of_table_2() -> None:
    table = tables()

    def falls(loss: str) -> list[int]:
        return [a - b for a, b in zip(*(table["AudioCaps", "frozen", loss, size] for size in (32, 128)), strict=True)]

    worse = f"by {span(falls('triplet_max'))} and {span(falls('triplet_weighted'))} |"
    assert worse in row_of("at 128 triplet-max and -weighted fall")
    stays = points(*(max(map(abs, falls(loss))) for loss in ("triplet_sum", "nt_xent")))
    assert "within {} and {} |".format(*stays) in row_of("at 128 triplet-sum")
    recalls = [table["AudioCaps", "frozen", x, 128][k] for x in ("triplet_max", "triplet_weighted") for k in (0, 3)]
    assert f"R@1 {span(recalls)};" in row_of("at 128 triplet-max and -weighted do not")
