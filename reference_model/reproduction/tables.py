"""The paper's tables: means and standard deviations over the seeds beside the published ones; Markdown, LaTeX, JSON.

The standard deviation is that of a sample, with n - 1. A difference to the paper is given in units of the paper's
standard deviation of the same number.
"""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference_model.evaluation.metrics import DIRECTIONS, TITLES
from reference_model.paper import DATASET_SIZES, LEARNING_RATE, LOSS_NAMES, published
from reference_model.reproduction.grid import SETTLED, Grid, Run
from reference_model.run_folder import METRICS, stored_metrics

COLUMNS = [(direction, f"R@{k}") for direction in DIRECTIONS for k in (1, 5, 10)]

Table = dict[str, Any]
Row = dict[str, Any]
Cells = dict[str, dict[str, Any]]  # direction to metric to what is in the cell


def make_table(grid: Grid, number: str, out: Path) -> Table:
    """The table as its JSON file holds it; of the runs that are there."""
    runs = grid.runs(out)
    rows = [make_row(name, grid, [run for run in runs if run.experiment == name]) for name in grid.tables[number]]
    measured = [run for run in runs if run.experiment in grid.tables[number] and (run.folder / METRICS).exists()]
    pools, chance = {}, {}
    for run in measured:
        if run.config.dataset not in pools:
            metrics = stored_metrics(run.folder)
            pools[run.config.dataset] = {
                "clips": metrics["test"]["text_to_audio"]["pool"],
                "captions": metrics["test"]["audio_to_text"]["pool"],
                "clips in the paper": DATASET_SIZES.get(run.config.dataset, {}).get("test"),
            }
            chance[run.config.dataset] = {
                way: {m: metrics["chance"][way][m] for w, m in COLUMNS if w == way} for way in DIRECTIONS
            }
    return {"table": number, "seeds": grid.seeds, "pools": pools, "rows": rows, "chance": chance}


def make_row(name: str, grid: Grid, runs: Sequence[Run]) -> Row:
    """Of one experiment and its seeds."""
    states = [run.state() for run in runs]
    done = [stored_metrics(run.folder) for run, state in zip(runs, states, strict=True) if state == "done"]
    ours = aggregate([metrics["test"] for metrics in done])
    paper = published().get(name)
    return {
        "experiment": name,
        **grid.experiments[name],
        "runs": {state: states.count(state) for state in SETTLED} | {"planned": len(runs)},
        "collapsed": sum(metrics["collapsed"] for metrics in done),
        "ours": ours,
        "paper": paper,
        "difference": None if paper is None else difference(ours, paper),
    }


def aggregate(results: Sequence[dict[str, dict[str, float]]]) -> Cells:
    """Mean and sample standard deviation over seeds; None for what their number does not give."""
    cells: Cells = {}
    for direction, metric in COLUMNS:
        values = [result[direction][metric] for result in results]
        cells.setdefault(direction, {})[metric] = {
            "mean": statistics.mean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
    return cells


def difference(ours: Cells, paper: Cells) -> Cells:
    """Ours less the paper's, in units of the paper's standard deviation."""
    cells: Cells = {}
    for direction, metric in COLUMNS:
        mean, theirs = ours[direction][metric]["mean"], paper[direction][metric]
        cells.setdefault(direction, {})[metric] = None if mean is None else (mean - theirs["mean"]) / theirs["std"]
    return cells


def blocks(table: Table) -> list[list[Row]]:
    """The rows between two rules: those of one data set, encoders and batch size, in table 2 of one batch size."""
    found: dict[Any, list[Row]] = {}
    for row in table["rows"]:
        key = (row["dataset"], row["encoders"], row["batch_size"] if table["table"] == "2" else None)
        found.setdefault(key, []).append(row)
    return list(found.values())


def best(block: Sequence[Row], whose: str) -> set[tuple[str, str, str]]:
    """(experiment, direction, metric) of the highest mean of each column, as it is printed."""
    found = set()
    for direction, metric in COLUMNS:
        means = {
            row["experiment"]: round(row[whose][direction][metric]["mean"], 1)
            for row in block
            if row[whose] is not None and row[whose][direction][metric]["mean"] is not None
        }
        if len(means) > 1:
            found |= {(name, direction, metric) for name, mean in means.items() if mean == max(means.values())}
    return found


def caption(table: Table) -> str:
    """What the table shows: pools, seeds, and how much of it is there."""
    pools = [
        f"{dataset}: {pool['clips']} test clips"
        + (f" ({paper} in the paper)" if (paper := pool["clips in the paper"]) not in (pool["clips"], None) else "")
        + f", {pool['captions']} captions"
        for dataset, pool in table["pools"].items()
    ]
    seeds = table["seeds"]
    over = (
        f"seed {seeds[0]}" if len(seeds) == 1 else f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}"
    )
    planned, done, settled = (
        sum(sum(row["runs"][state] for state in states) for row in table["rows"])
        for states in (("planned",), ("done",), SETTLED)
    )
    there = "" if settled == planned else f"; **{done} of {planned} runs so far**"
    return f"{_number(table)}Recalls in %, {over}. {'; '.join(pools) or 'No run has finished'}{there}."


def _number(table: Table) -> str:
    return f"Table {table['table']}. "


def notes(table: Table) -> list[str]:
    """What the marks of the table mean, those that occur."""
    found = []
    if any(row["learning_rate"] != LEARNING_RATE for row in table["rows"]):
        rates = sorted({row["learning_rate"] for row in table["rows"]} - {LEARNING_RATE})
        common = len({row["learning_rate"] for row in table["rows"]}) == 1
        said = " and ".join(f"{rate:g}" for rate in rates)
        found.append(f"Learning rate {said}." if common else f"\\* Learning rate {said}, otherwise {LEARNING_RATE:g}.")
    if any(row["collapsed"] for row in table["rows"]):
        found.append(
            "Collapsed: at the end all similarities of the validation pairs were alike. Such seeds are counted in."
        )
    if any(row["runs"]["diverged"] for row in table["rows"]):
        found.append("Diverged: the loss was no longer finite. Such seeds have no recalls and are left out.")
    if any(row["runs"]["failed"] for row in table["rows"]):
        found.append("Failed: an error, which `reproduce --plan` shows.")
    if any(row["paper"] is not None for row in table["rows"]):
        found.append("Difference: ours less the paper's, in units of the paper's standard deviation σ.")
    found.append("Bold: the best of each column among the rows that are compared.")
    return found


def label(row: Row, *, starred: bool) -> str:
    """The objective with its marks."""
    planned = row["runs"]["planned"]
    marked = {"collapsed": row["collapsed"], **{state: row["runs"][state] for state in ("diverged", "failed")}}
    marks = [f"{count} of {planned} {mark}" if planned > 1 else mark for mark, count in marked.items() if count]
    missing = planned - sum(row["runs"][state] for state in SETTLED)
    if missing:
        marks.append(f"{missing} of {planned} to come" if planned > 1 else "to come")
    return LOSS_NAMES[row["loss"]] + ("*" if starred else "") + (f" ({', '.join(marks)})" if marks else "")


def _starred(table: Table, row: Row) -> bool:
    several = len({row["learning_rate"] for row in table["rows"]}) > 1
    return several and row["learning_rate"] != LEARNING_RATE


def head(table: Table, row: Row) -> str:
    """What a block is about, in the words of the table's first columns."""
    if table["table"] == "2":
        return f"{row['dataset']}, batch size {row['batch_size']}"
    return f"{row['dataset']}, {row['encoders']}"


@dataclass(frozen=True)
class Cell:
    """A number of the table."""

    mean: float | None
    std: float | None = None
    bold: bool = False
    of_paper_std: bool = False  # a difference, in units of the paper's standard deviation

    @property
    def text(self) -> str:
        """19.2 ± 0.4, or +0.5 σ; a hyphen for what is not there."""
        if self.mean is None:
            return "-"
        if self.of_paper_std:
            return f"{self.mean:+.1f} σ"
        return f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if self.std is not None else "")


@dataclass(frozen=True)
class Line:
    """A line of the table: some texts, six numbers."""

    whose: str  # "ours", "paper", "difference" or "chance"
    texts: list[str]
    cells: list[Cell]
    begins: bool  # a block


def header(table: Table) -> list[str]:
    """Of the texts; the numbers are under COLUMNS."""
    return [*_about_blocks(table), "Objective", *([""] if _beside(table) else [])]


def _about_blocks(table: Table) -> list[str]:
    """The first columns, which are filled where a block begins."""
    if table["table"] == "2":
        return ["Dataset", "Batch size"] if len({row["dataset"] for row in table["rows"]}) > 1 else ["Batch size"]
    return ["Dataset", "Fine-tune"]


def lines(table: Table) -> list[Line]:
    """Every row of ours, below it the paper's and the difference where it is in the paper; at the end chance."""
    found = []
    for block in blocks(table):
        bold = {whose: best(block, whose) for whose in ("ours", "paper")}
        for place, row in enumerate(block):
            objective = label(row, starred=_starred(table, row))
            for whose in ("ours", "paper"):
                if row[whose] is not None:
                    cells = [
                        Cell(**row[whose][way][metric], bold=(row["experiment"], way, metric) in bold[whose])
                        for way, metric in COLUMNS
                    ]
                    begins = place == 0 and whose == "ours"
                    texts = _texts(table, row if begins else None, objective if whose == "ours" else "", whose)
                    found.append(Line(whose, texts, cells, begins))
            if row["difference"] is not None:
                cells = [Cell(row["difference"][way][metric], of_paper_std=True) for way, metric in COLUMNS]
                found.append(Line("difference", _texts(table, None, "", "difference"), cells, False))
    for dataset, chance in table["chance"].items():
        cells = [Cell(chance[way][metric]) for way, metric in COLUMNS]
        found.append(Line("chance", _texts(table, None, f"Chance, {dataset}", ""), cells, False))
    return found


def _texts(table: Table, row: Row | None, objective: str, whose: str) -> list[str]:
    """Of a line; ``row`` is that of the block which it begins."""
    first = [""] * len(_about_blocks(table))
    if row is not None:
        fine_tuned = "No" if row["encoders"] == "frozen" else "Yes"
        about = {"Dataset": row["dataset"], "Fine-tune": fine_tuned, "Batch size": str(row["batch_size"])}
        first = [about[name] for name in _about_blocks(table)]
    return [*first, objective, *([whose] if _beside(table) else [])]


def _beside(table: Table) -> bool:
    """Whether the paper has any of the rows."""
    return any(row["paper"] is not None for row in table["rows"])


def markdown(table: Table) -> str:
    """The table in the paper's form."""
    texts = header(table)
    head_line = [*texts, *(f"{TITLES[way]} {metric}" for way, metric in COLUMNS)]
    found = [f"| {' | '.join(head_line)} |", "|" + "---|" * len(texts) + "---:|" * len(COLUMNS)]
    for line in lines(table):
        cells = [f"**{cell.text}**" if cell.bold else cell.text for cell in line.cells]
        texts = [text.replace("*", "\\*") for text in line.texts]
        found.append(f"| {' | '.join([*texts, *cells])} |")
    return "\n".join([caption(table), "", *found, "", " ".join(notes(table))]) + "\n"


def latex(table: Table) -> str:
    """The same as a ``table*`` for a paper; needs the package booktabs."""
    texts = header(table)
    first = len(texts) + 1  # column of the numbers
    found = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{_escaped(plain(' '.join([caption(table).removeprefix(_number(table)), *notes(table)])))}}}",
        rf"\begin{{tabular}}{{{'l' * len(texts)}{'c' * len(COLUMNS)}}}",
        r"\toprule",
        " & " * len(texts) + " & ".join(rf"\multicolumn{{3}}{{c}}{{{TITLES[way]}}}" for way in DIRECTIONS) + r" \\",
        rf"\cmidrule(lr){{{first}-{first + 2}}}\cmidrule(lr){{{first + 3}-{first + 5}}}",
        " & ".join([*texts, *(metric for _, metric in COLUMNS)]) + r" \\",
    ]
    before = None
    for line in lines(table):
        if line.begins or (line.whose == "chance" and before != "chance"):
            found.append(r"\midrule")
        before = line.whose
        found.append(" & ".join([*map(_escaped, line.texts), *map(_in_latex, line.cells)]) + r" \\")
    return "\n".join([*found, r"\bottomrule", r"\end{tabular}", r"\end{table*}"]) + "\n"


def _in_latex(cell: Cell) -> str:
    if cell.mean is None:
        return "--"
    if cell.of_paper_std:
        return rf"\textit{{${cell.mean:+.1f}\sigma$}}"
    number = rf"\mathbf{{{cell.mean:.1f}}}" if cell.bold else f"{cell.mean:.1f}"
    return f"${number}$" if cell.std is None else rf"${number}_{{\pm {cell.std:.1f}}}$"


_IN_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "σ": r"$\sigma$",
}  # fmt: skip


def _escaped(text: str) -> str:
    escaped = "".join(_IN_LATEX.get(character, character) for character in text)
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens side by side would become a dash


def plain(text: str) -> str:
    """Without the marks of Markdown."""
    return text.replace("**", "").replace("\\*", "*").replace("`", "")
