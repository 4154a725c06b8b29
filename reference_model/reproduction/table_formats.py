"""A table of :mod:`reference_model.reproduction.tables` in Markdown and in LaTeX, in the form of the paper's."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from reference_model.beyond import TABLE as BEYOND
from reference_model.beyond import TITLES as LOSS_TITLES
from reference_model.evaluation.metrics import DIRECTIONS, TITLES
from reference_model.paper import LEARNING_RATE
from reference_model.reproduction.grid import FINISHED
from reference_model.reproduction.tables import RECALL_COLUMNS, Table, TableRow, best_cells, row_blocks
from reference_model.runtime.markdown import escape


def caption(table: Table, show_name: Callable[[str], str] = str) -> str:
    """Return the caption: test sets, named by ``show_name``, seeds, and the runs so far if some are missing."""
    pools = []
    for dataset, pool in table["pools"].items():
        paper = pool["clips in the paper"]
        other = "" if paper in (pool["clips"], None) else f" ({paper} in the paper)"
        pools.append(f"{show_name(dataset)}: {pool['clips']} test clips{other}, {pool['captions']} captions")
    seeds = ", ".join(map(str, table["seeds"]))
    over = f"seed {seeds}" if len(table["seeds"]) == 1 else f"mean ± standard deviation over seeds {seeds}"
    planned, done, finished = (
        sum(row["runs"][state] for row in table["rows"] for state in states)
        for states in (("planned",), ("done",), FINISHED)
    )
    so_far = "" if finished == planned else f"; **{done} of {planned} runs so far**"
    name = "Beyond the paper" if table["table"] == BEYOND else f"Table {table['table']}"
    return f"{name}. Recalls in %, {over}. {'; '.join(pools) or 'No run has finished'}{so_far}."


def notes(table: Table) -> list[str]:
    """Return a sentence for each mark that occurs in the table."""
    rows = table["rows"]
    found = []
    if any(row["learning_rate"] != LEARNING_RATE for row in rows):
        rates = {row["learning_rate"] for row in rows}
        listed = " and ".join(f"{rate:g}" for rate in sorted(rates - {LEARNING_RATE}))
        found.append(
            f"Learning rate {listed}."
            if len(rates) == 1
            else f"\\* Learning rate {listed}, otherwise {LEARNING_RATE:g}."
        )
    if any(row["collapsed"] for row in rows):
        alike = "at the end all similarities of the validation pairs were alike"
        found.append(f"Collapsed: {alike}. Such seeds are counted in.")
    if any(row["runs"]["diverged"] for row in rows):
        found.append("Diverged: the loss was no longer finite. Such seeds have no recalls and are left out.")
    if any(row["runs"]["failed"] for row in rows):
        found.append("Failed: an error, which `reproduce --plan` shows.")
    if _has_paper_rows(table):
        found.append("Difference: ours less the paper's, in units of the paper's standard deviation σ.")
    if table["others"]:
        found.append("† Another model, not trained here; `evaluate` measured it by the same protocol.")
    found.append("Bold: the best of each column among the rows that are compared.")
    return found


def _objective(table: Table, row: TableRow) -> str:
    """Return the name of the loss with a star for another learning rate, and the seeds that are not simply done."""
    planned = row["runs"]["planned"]
    counts = {"collapsed": row["collapsed"], **{state: row["runs"][state] for state in ("diverged", "failed")}}
    counts["to come"] = planned - sum(row["runs"][state] for state in FINISHED)
    marks = [f"{count} of {planned} {mark}" if planned > 1 else mark for mark, count in counts.items() if count]
    several_rates = len({other["learning_rate"] for other in table["rows"]}) > 1
    star = "*" if several_rates and row["learning_rate"] != LEARNING_RATE else ""
    return LOSS_TITLES[row["loss"]] + star + (f" ({', '.join(marks)})" if marks else "")


def block_title(table: Table, row: TableRow) -> str:
    """Return what the rows of a block have in common, given one of them."""
    if table["table"] == "2":
        return f"{row['dataset']}, batch size {row['batch_size']}"
    if table["table"] == BEYOND:
        return f"{row['dataset']}, {row['encoders']}, batch size {row['batch_size']}"
    return f"{row['dataset']}, {row['encoders']}"


def _block_columns(table: Table) -> list[str]:
    """Return the headers of the first columns, which are filled only in the first line of a block."""
    if table["table"] == "2":
        return ["Dataset", "Batch size"] if len({row["dataset"] for row in table["rows"]}) > 1 else ["Batch size"]
    return ["Dataset", "Fine-tune", *(["Batch size"] if table["table"] == BEYOND else [])]


def _has_paper_rows(table: Table) -> bool:
    return any(row["paper"] is not None for row in table["rows"])


@dataclass(frozen=True)
class Cell:
    """A number of the table."""

    mean: float | None
    std: float | None = None
    bold: bool = False
    in_paper_stds: bool = False  # a difference, in units of the paper's standard deviation

    @property
    def text(self) -> str:
        """The number as ``19.2 ± 0.4``, a difference as ``+0.5 σ``, a missing one as a hyphen."""
        if self.mean is None:
            return "-"
        if self.in_paper_stds:
            return f"{self.mean:+.1f} σ"
        return f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if self.std is not None else "")


@dataclass(frozen=True)
class Line:
    """A printed line of the table: some texts and six numbers."""

    kind: str  # "ours", "paper", "difference", "other" or "chance"
    texts: list[str]
    cells: list[Cell]
    starts_block: bool = False


def header(table: Table) -> list[str]:
    """Return the headers of the text columns; those of the numbers are :data:`RECALL_COLUMNS`."""
    return [*_block_columns(table), "Objective", *([""] if _has_paper_rows(table) else [])]


def lines(table: Table) -> list[Line]:
    """Return the lines: for every row ours, the paper's and the difference where it has one; others; chance."""
    found = []
    for block in row_blocks(table):
        best = {source: best_cells(block, source) for source in ("ours", "paper")}
        for row in block:
            for source in ("ours", "paper"):
                if row[source] is not None:
                    name = row["experiment"]
                    cells = [Cell(**row[source][d][m], bold=(name, d, m) in best[source]) for d, m in RECALL_COLUMNS]
                    starts_block = row is block[0] and source == "ours"
                    objective = _objective(table, row) if source == "ours" else ""
                    texts = _texts(table, row if starts_block else None, objective, source)
                    found.append(Line(source, texts, cells, starts_block))
            if row["difference"] is not None:
                cells = [Cell(row["difference"][d][metric], in_paper_stds=True) for d, metric in RECALL_COLUMNS]
                found.append(Line("difference", _texts(table, None, "", "difference"), cells))
    for other in table["others"]:
        cells = [Cell(other["recalls"][direction][metric]) for direction, metric in RECALL_COLUMNS]
        found.append(Line("other", _texts(table, None, other_title(table, other), ""), cells))
    for dataset, chance in table["chance"].items():
        cells = [Cell(chance[direction][metric]) for direction, metric in RECALL_COLUMNS]
        found.append(Line("chance", _texts(table, None, f"Chance, {dataset}", ""), cells))
    return found


def other_title(table: Table, other: TableRow) -> str:
    """Return the name of another model, its data set, and what differs from the conditions of the other rows."""
    remarks = [] if other["relevance"] is None else [f"relevance of {other['relevance']}"]
    pool = table["pools"].get(other["dataset"], {})
    if (pool.get("clips"), pool.get("captions")) != (other["clips"], other["captions"]):
        remarks.append(f"{other['clips']} clips, {other['captions']} captions")
    return f"{other['model']}†, {other['dataset']}" + (f" ({'; '.join(remarks)})" if remarks else "")


def _texts(table: Table, first_row: TableRow | None, objective: str, source: str) -> list[str]:
    """Return the texts of a line; ``first_row`` is the row of a line that starts a block."""
    columns = _block_columns(table)
    block = [""] * len(columns)
    if first_row is not None:
        fine_tuned = "No" if first_row["encoders"] == "frozen" else "Yes"
        values = {"Dataset": first_row["dataset"], "Fine-tune": fine_tuned, "Batch size": str(first_row["batch_size"])}
        block = [values[column] for column in columns]
    return [*block, objective, *([source] if _has_paper_rows(table) else [])]


def markdown(table: Table) -> str:
    """Return the table in Markdown, in the form of the paper's."""
    texts = header(table)
    header_line = [*texts, *(f"{TITLES[direction]} {metric}" for direction, metric in RECALL_COLUMNS)]
    found = [f"| {' | '.join(header_line)} |", "|" + "---|" * len(texts) + "---:|" * len(RECALL_COLUMNS)]
    for line in lines(table):
        cells = [f"**{cell.text}**" if cell.bold else cell.text for cell in line.cells]
        found.append(f"| {' | '.join([*map(escape, line.texts), *cells])} |")
    return "\n".join([caption(table, escape), "", *found, "", " ".join(notes(table))]) + "\n"


def latex(table: Table) -> str:
    """Return the table as a ``table*`` of LaTeX; it needs the package booktabs."""
    texts = header(table)
    text = caption(table).partition(". ")[2]  # LaTeX numbers its tables
    first = len(texts) + 1  # column of the first number
    found = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{_escape(plain(' '.join([text, *notes(table)])))}}}",
        rf"\begin{{tabular}}{{{'l' * len(texts)}{'c' * len(RECALL_COLUMNS)}}}",
        r"\toprule",
        " & " * len(texts) + " & ".join(rf"\multicolumn{{3}}{{c}}{{{TITLES[d]}}}" for d in DIRECTIONS) + r" \\",
        rf"\cmidrule(lr){{{first}-{first + 2}}}\cmidrule(lr){{{first + 3}-{first + 5}}}",
        " & ".join([*texts, *(metric for _, metric in RECALL_COLUMNS)]) + r" \\",
    ]
    previous = None
    for line in lines(table):
        if line.starts_block or (line.kind in ("other", "chance") and previous != line.kind):
            found.append(r"\midrule")
        previous = line.kind
        found.append(" & ".join([*map(_escape, line.texts), *map(_latex_cell, line.cells)]) + r" \\")
    return "\n".join([*found, r"\bottomrule", r"\end{tabular}", r"\end{table*}"]) + "\n"


def _latex_cell(cell: Cell) -> str:
    if cell.mean is None:
        return "--"
    if cell.in_paper_stds:
        return rf"\textit{{${cell.mean:+.1f}\sigma$}}"
    number = rf"\mathbf{{{cell.mean:.1f}}}" if cell.bold else f"{cell.mean:.1f}"
    return f"${number}$" if cell.std is None else rf"${number}_{{\pm {cell.std:.1f}}}$"


_LATEX_ESCAPES = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "σ": r"$\sigma$",
    "†": r"$\dagger$",
}


def _escape(text: str) -> str:
    escaped = "".join(_LATEX_ESCAPES.get(character, character) for character in " ".join(text.split()))
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens side by side would become a dash


def plain(text: str) -> str:
    """Return the text without the marks of Markdown."""
    return text.replace("**", "").replace("\\*", "*").replace("`", "")
