"""The paper's tables: means and standard deviations over the seeds beside the published ones; Markdown, LaTeX, JSON.

The standard deviation is that of a sample, with n - 1. A difference to the paper is given in units of the paper's
standard deviation of the same number.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from reference_model.experiments import experiments, published
from reference_model.grid import SETTLED, Grid, Run
from reference_model.manifest import PAPER
from reference_model.retrieval import DIRECTIONS
from reference_model.run_folder import METRICS, stored_metrics

COLUMNS = [(direction, f"R@{k}") for direction in DIRECTIONS for k in (1, 5, 10)]
TITLES = {"text_to_audio": "Text-to-Audio", "audio_to_text": "Audio-to-Text"}
NAMES = {
    "triplet_sum": "Triplet-sum",
    "triplet_max": "Triplet-max",
    "triplet_weighted": "Triplet-weighted",
    "nt_xent": "NT-Xent",
}
USUAL_LEARNING_RATE = 1e-4  # table 1 stars the rows of another one

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
                "clips in the paper": PAPER.get(run.config.dataset, {}).get("test"),
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
    if paper is not None and not same_row(name, grid):
        paper = None
    return {
        "experiment": name,
        **grid.experiments[name],
        "runs": {state: states.count(state) for state in SETTLED} | {"planned": len(runs)},
        "collapsed": sum(metrics["collapsed"] for metrics in done),
        "ours": ours,
        "paper": paper,
        "difference": None if paper is None else difference(ours, paper),
    }


def same_row(name: str, grid: Grid) -> bool:
    """Whether it is the paper's row, with its learning rate."""
    return grid.experiments[name] == experiments()[name]


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
    return f"Table {table['table']}. Recalls in %, {over}. {'; '.join(pools) or 'No run has finished'}{there}."


def notes(table: Table) -> list[str]:
    """What the marks of the table mean, those that occur."""
    found = []
    if any(row["learning_rate"] != USUAL_LEARNING_RATE for row in table["rows"]):
        rates = sorted({row["learning_rate"] for row in table["rows"]} - {USUAL_LEARNING_RATE})
        common = len({row["learning_rate"] for row in table["rows"]}) == 1
        said = " and ".join(f"{rate:g}" for rate in rates)
        found.append(
            f"Learning rate {said}." if common else f"\\* Learning rate {said}, otherwise {USUAL_LEARNING_RATE:g}."
        )
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
    return NAMES[row["loss"]] + ("*" if starred else "") + (f" ({', '.join(marks)})" if marks else "")


def _starred(table: Table, row: Row) -> bool:
    several = len({row["learning_rate"] for row in table["rows"]}) > 1
    return several and row["learning_rate"] != USUAL_LEARNING_RATE


def head(table: Table, row: Row) -> str:
    """What a block is about, in the words of the table's first columns."""
    if table["table"] == "2":
        return f"{row['dataset']}, batch size {row['batch_size']}"
    return f"{row['dataset']}, {row['encoders']}"


def _first_columns(table: Table, row: Row) -> list[str]:
    if table["table"] == "2":
        return [str(row["batch_size"])]
    return [row["dataset"], "No" if row["encoders"] == "frozen" else "Yes"]


def _lines(
    table: Table, mean: Callable[[dict[str, Any], bool], str], sigma: Callable[[float | None], str]
) -> Iterable[tuple[list[str], Row, str, list[str], bool]]:
    """Every line of the table: first columns, row, whose numbers, its six cells, and whether it begins a block."""
    for block in blocks(table):
        bold = {whose: best(block, whose) for whose in ("ours", "paper")}
        for place, row in enumerate(block):
            first = _first_columns(table, row)
            for whose in ("ours", "paper"):
                if row[whose] is None:
                    continue
                cells = [
                    mean(row[whose][way][metric], (row["experiment"], way, metric) in bold[whose])
                    for way, metric in COLUMNS
                ]
                yield first, row, whose, cells, place == 0 and whose == "ours"
            if row["difference"] is not None:
                cells = [sigma(row["difference"][way][metric]) for way, metric in COLUMNS]
                yield first, row, "difference", cells, False


def markdown(table: Table) -> str:
    """The table in the paper's form."""

    def mean(value: dict[str, Any], bold: bool) -> str:
        if value["mean"] is None:
            return "-"
        text = f"{value['mean']:.1f}" + (f" ± {value['std']:.1f}" if value["std"] is not None else "")
        return f"**{text}**" if bold else text

    def sigma(value: float | None) -> str:
        return "-" if value is None else f"{value:+.1f} σ"

    beside = any(row["paper"] is not None for row in table["rows"])
    first = ["Batch size"] if table["table"] == "2" else ["Dataset", "Fine-tune"]
    header = [*first, "Objective", *([""] if beside else []), *(f"{TITLES[way]} {metric}" for way, metric in COLUMNS)]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * (len(header) - len(COLUMNS)) + "---:|" * len(COLUMNS)]
    for columns, row, whose, cells, begins in _lines(table, mean, sigma):
        objective = label(row, starred=_starred(table, row)).replace("*", r"\*") if whose == "ours" else ""
        shown = columns if begins else [""] * len(columns)
        lines.append(f"| {' | '.join([*shown, objective, *([whose] if beside else []), *cells])} |")
    for dataset, chance in table["chance"].items():
        shown = [dataset, ""] if table["table"] == "1" else [""]
        cells = [f"{chance[way][metric]:.1f}" for way, metric in COLUMNS]
        lines.append(f"| {' | '.join([*shown, 'Chance', *([''] if beside else []), *cells])} |")
    return "\n".join([caption(table), "", *lines, "", " ".join(notes(table))]) + "\n"


def latex(table: Table) -> str:
    """The same as a ``table*`` for a paper; needs the package booktabs."""

    def mean(value: dict[str, Any], bold: bool) -> str:
        if value["mean"] is None:
            return "--"
        number = rf"\mathbf{{{value['mean']:.1f}}}" if bold else f"{value['mean']:.1f}"
        return f"${number}" + (rf"_{{\pm {value['std']:.1f}}}$" if value["std"] is not None else "$")

    def sigma(value: float | None) -> str:
        return "--" if value is None else rf"\textit{{${value:+.1f}\sigma$}}"

    beside = any(row["paper"] is not None for row in table["rows"])
    first = ["Batch size"] if table["table"] == "2" else ["Dataset", "Fine-tune"]
    texts = [*first, "Objective", *([""] if beside else [])]
    recalls = [metric.replace("@", "@") for _, metric in COLUMNS]
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{_escaped(caption(table).replace('**', ''))} {_escaped(' '.join(notes(table)))}}}",
        rf"\begin{{tabular}}{{{'l' * len(texts)}{'c' * len(COLUMNS)}}}",
        r"\toprule",
        f"{' & ' * len(texts)}"
        + " & ".join(rf"\multicolumn{{3}}{{c}}{{{TITLES[way]}}}" for way in DIRECTIONS)
        + r" \\",
        rf"\cmidrule(lr){{{len(texts) + 1}-{len(texts) + 3}}}\cmidrule(lr){{{len(texts) + 4}-{len(texts) + 6}}}",
        " & ".join([*texts, *recalls]) + r" \\",
    ]
    for columns, row, whose, cells, begins in _lines(table, mean, sigma):
        if begins:
            lines.append(r"\midrule")
        objective = _escaped(label(row, starred=_starred(table, row))) if whose == "ours" else ""
        shown = [_escaped(column) for column in columns] if begins else [""] * len(columns)
        lines.append(" & ".join([*shown, objective, *([whose] if beside else []), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}"]) + "\n"


_IN_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "σ": r"$\sigma$",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_IN_LATEX.get(character, character) for character in text.replace("\\*", "*").replace("`", ""))
