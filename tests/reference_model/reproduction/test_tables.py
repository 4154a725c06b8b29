"""The numbers of the tables, and the printed tables of made-up runs against tables written by hand."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grids import clotho_table, diverge, finish, in_cells, runs_by_name, small_grid, synthetic_table
from hypothesis import given
from hypothesis import strategies as st

from reference_model import InputError
from reference_model.paper import select_rows
from reference_model.reproduction.table_formats import latex, markdown
from reference_model.reproduction.tables import RECALL_COLUMNS, TableRow, aggregate, best_cells, difference, make_table
from reference_model.runtime.files import write_json


def test_the_json_has_what_the_table_shows(tmp_path: Path) -> None:
    table = clotho_table(tmp_path)
    assert json.loads(json.dumps(table)) == table
    assert (table["table"], table["seeds"]) == ("1", [0, 1, 2])
    assert table["pools"] == {"Clotho": {"clips": 1000, "captions": 5000, "clips in the paper": 1045}}
    assert table["chance"] == {"Clotho": in_cells([0.1, 0.5, 1.0, 0.1, 0.5, 1.0])}
    row = table["rows"][0]
    assert (row["experiment"], row["dataset"]) == ("clotho-fine-tuned-triplet_max", "Clotho")
    assert (row["encoders"], row["loss"]) == ("fine-tuned", "triplet_max")
    assert (row["batch_size"], row["learning_rate"]) == (24, 5e-5)
    assert row["ours"]["audio_to_text"]["R@1"] == {"mean": 17, "std": 2}
    assert row["paper"]["audio_to_text"]["R@1"] == {"mean": 15.8, "std": 0.4}
    assert row["difference"]["audio_to_text"]["R@1"] == pytest.approx(3)


def in_cells_of(value: Any) -> dict[str, dict[str, Any]]:
    return in_cells([value] * 6)


@given(st.lists(st.lists(st.floats(0, 100), min_size=6, max_size=6), min_size=2, max_size=5))
def test_mean_and_standard_deviation_are_numpys(recalls: list[list[float]]) -> None:
    cells = aggregate([in_cells(of_seed) for of_seed in recalls])
    found = [(cells[way][metric]["mean"], cells[way][metric]["std"]) for way, metric in RECALL_COLUMNS]
    expected = list(zip(np.mean(recalls, 0), np.std(recalls, 0, ddof=1), strict=True))
    assert np.array(found) == pytest.approx(np.array(expected), abs=1e-9)


def test_too_few_seeds_have_no_mean_or_no_standard_deviation() -> None:
    assert aggregate([in_cells_of(10)]) == in_cells_of({"mean": 10, "std": None})
    assert aggregate([]) == in_cells_of({"mean": None, "std": None})


def test_differences_are_in_units_of_the_papers_standard_deviation() -> None:
    paper = in_cells_of({"mean": 20.0, "std": 0.5})
    assert difference(in_cells_of({"mean": 21.0, "std": 9.0}), paper) == in_cells_of(2)
    assert difference(in_cells_of({"mean": 18.5, "std": 9.0}), paper) == in_cells_of(-3)
    assert difference(in_cells_of({"mean": None, "std": None}), paper) == in_cells_of(None)


def row_of(name: str, ours: Sequence[float | None], paper: Sequence[float] | None = None) -> TableRow:
    of_paper = None if paper is None else in_cells([{"mean": mean, "std": 1.0} for mean in paper])
    return {"experiment": name, "ours": in_cells([{"mean": m} for m in ours]), "paper": of_paper}


def test_the_best_of_each_column_as_it_is_printed() -> None:
    a = row_of("a", [10.04, 10.04, 10.06, 5, None, None], [1, 2, 3, 4, 5, 6])
    b = row_of("b", [10.01, 9.94, 10.04, 7, 3, None], [6, 5, 4, 3, 2, 6])
    c = row_of("c", [9, 9, 9, 7, None, None])
    t, a2t = "text_to_audio", "audio_to_text"
    assert best_cells([a, b, c], "ours") == {
        ("a", t, "R@1"), ("b", t, "R@1"),  # both 10.0
        ("a", t, "R@5"),  # 10.0 above 9.9
        ("a", t, "R@10"),  # 10.1 above 10.0
        ("b", a2t, "R@1"), ("c", a2t, "R@1"),
    }  # fmt: skip  # and of a single number none
    assert best_cells([a, b, c], "paper") == {
        ("b", t, "R@1"), ("b", t, "R@5"), ("b", t, "R@10"), ("a", a2t, "R@1"), ("a", a2t, "R@5"),
        ("a", a2t, "R@10"), ("b", a2t, "R@10"),
    }  # fmt: skip
    assert best_cells([a], "ours") == best_cells([a], "paper") == set()


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_bold_is_what_reads_highest(means: list[float]) -> None:
    rows = [row_of(str(k), [mean] * 6) for k, mean in enumerate(means)]
    highest = max(float(f"{mean:.1f}") for mean in means)
    expected = {str(k) for k, mean in enumerate(means) if float(f"{mean:.1f}") == highest}
    assert {name for name, *_ in best_cells(rows, "ours")} == expected


HEAD = " | ".join(f"{way} R@{k}" for way in ("Text-to-Audio", "Audio-to-Text") for k in (1, 5, 10)) + " |"
NUMBERS = "---:|---:|---:|---:|---:|---:|"
COMPARED = "Bold: the best of each column among the rows that are compared."
PDFLATEX = shutil.which("pdflatex")


def test_beside_the_published_rows(tmp_path: Path) -> None:
    # Published: triplet-max* 14.2 ± 0.9, 36.5 ± 1.2, 49.0 ± 0.4, 15.8 ± 0.4, 36.4 ± 1.6, 49.6 ± 2.0; its differences
    # are -.2 / .9, -.5 / 1.2, -1 / .4, 1.2 / .4, 1.6 / 1.6, -.6 / 2. NT-Xent: .6 / .4, .4 / .2, .1 / .2, .8 / .7, ...
    assert markdown(clotho_table(tmp_path)) == (
        "Table 1. Recalls in %, mean ± standard deviation over seeds 0, 1, 2. "
        "Clotho: 1000 test clips (1045 in the paper), 5000 captions.\n\n"
        f"| Dataset | Fine-tune | Objective |  | {HEAD}\n|---|---|---|---|{NUMBERS}\n"
        "| Clotho | Yes | Triplet-max\\* | ours "
        "| 14.0 ± 1.0 | 36.0 ± 3.0 | 48.0 ± 3.0 | **17.0 ± 2.0** | **38.0 ± 2.0** | 49.0 ± 0.0 |\n"
        "|  |  |  | paper | 14.2 ± 0.9 | 36.5 ± 1.2 | 49.0 ± 0.4 | 15.8 ± 0.4 | 36.4 ± 1.6 | 49.6 ± 2.0 |\n"
        "|  |  |  | difference | -0.2 σ | -0.4 σ | -2.5 σ | +3.0 σ | +1.0 σ | -0.3 σ |\n"
        "|  |  | NT-Xent | ours | **15.0 ± 1.0** | **37.0 ± 1.0** | **50.0 ± 1.0** "
        "| **17.0 ± 1.0** | **38.0 ± 1.0** | **51.0 ± 1.0** |\n"
        "|  |  |  | paper | **14.4 ± 0.4** | **36.6 ± 0.2** | **49.9 ± 0.2** "
        "| **16.2 ± 0.7** | **37.5 ± 0.9** | **50.2 ± 0.7** |\n"
        "|  |  |  | difference | +1.5 σ | +2.0 σ | +0.5 σ | +1.1 σ | +0.6 σ | +1.1 σ |\n"
        "|  |  | Chance, Clotho |  | 0.1 | 0.5 | 1.0 | 0.1 | 0.5 | 1.0 |\n\n"
        "\\* Learning rate 5e-05, otherwise 0.0001. "
        "Difference: ours less the paper's, in units of the paper's standard deviation σ. "
        f"{COMPARED}\n"
    )


def test_another_data_set_has_nothing_beside(tmp_path: Path) -> None:
    assert markdown(synthetic_table(tmp_path)) == (
        "Table 2. Recalls in %, seed 7. Synthetic: 20 test clips, 100 captions.\n\n"
        f"| Batch size | Objective | {HEAD}\n|---|---|{NUMBERS}\n"
        "| 32 | Triplet-sum | 10.0 | **20.0** | **30.0** | **11.0** | **21.0** | **31.0** |\n"
        "|  | NT-Xent | **12.0** | **20.0** | 29.0 | **11.0** | **21.0** | **31.0** |\n"
        "| 128 | Triplet-sum | 5.0 | **25.0** | 35.0 | **5.0** | 25.0 | **35.0** |\n"
        "|  | NT-Xent | **6.0** | 24.0 | **36.0** | 4.0 | **26.0** | 34.0 |\n"
        "|  | Chance, Synthetic | 5.0 | 25.0 | 50.0 | 5.0 | 25.0 | 50.0 |\n\n"
        f"{COMPARED}\n"
    )


def other(model: str, dataset: str, clips: int, **changes: Any) -> dict[str, Any]:
    """Return the record of another model, with recalls 1 to 6."""
    metrics = in_cells([1, 2, 3, 4, 5.06, 6])
    metrics["text_to_audio"]["pool"], metrics["audio_to_text"]["pool"] = clips, 5 * clips
    return {"model": model, "source": "clap:it", "dataset": dataset, "split": "test", "relevance": None,
            "metrics": metrics, **changes}  # fmt: skip


def test_other_models_are_rows_of_the_same_table(tmp_path: Path) -> None:
    """On the same clips, on some of them, and with a table of relevance; not of other data sets or splits."""
    grid = small_grid(select_rows(["1"], datasets=["Synthetic"], encoders=["frozen"], losses=["nt_xent"]), (0,))
    finish(grid.runs(tmp_path)[0], 12, 20, 29, 11, 21, 31)
    plain = make_table(grid, "1", tmp_path)
    (tmp_path / "others").mkdir()
    for number, record in enumerate(
        (
            other("A & B | *", "Synthetic", 20),
            other("CLAP", "Synthetic", 19, relevance="t_1.csv"),
            other("CLAP", "Clotho", 20),
            other("CLAP", "Synthetic", 20, split="val"),
        )
    ):
        write_json(tmp_path / f"others/{number}.json", record)
    table = make_table(grid, "1", tmp_path)
    numbers, chance = "| 1.0 | 2.0 | 3.0 | 4.0 | 5.1 | 6.0 |\n", "|  |  | Chance"
    rows = (
        f"|  |  | A &amp; B \\| \\*†, Synthetic {numbers}"
        f"|  |  | CLAP†, Synthetic (relevance of t_1.csv; 19 clips, 95 captions) {numbers}"
    )
    note = "† Another model, not trained here; `evaluate` measured it by the same protocol. "
    expected = markdown(plain).replace(chance, rows + chance).replace(COMPARED, note + COMPARED)
    assert markdown(table) == expected
    assert {**table, "others": []} == plain
    lines = latex(table).splitlines()
    assert lines.count(r"\midrule") == 3  # before the block, the other models, and chance
    assert r" &  & A \& B | *$\dagger$, Synthetic & $1.0$ & $2.0$ & $3.0$ & $4.0$ & $5.1$ & $6.0$ \\" in lines


def test_other_models_may_be_judged_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    write_json(tmp_path / "others/0.json", other("CLAP", "Synthetic", 20))
    grid = small_grid(select_rows(["1"], datasets=["Synthetic"], encoders=["frozen"]), (0,))
    grid.write(tmp_path)
    table = make_table(grid, "1", tmp_path)
    assert "|  |  | CLAP†, Synthetic (20 clips, 100 captions) | 1.0 |" in markdown(table)


def test_a_damaged_record_of_another_model_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    write_json(tmp_path / "others/a.json", {})
    grid = small_grid(select_rows(["1"]), (0,))
    words = r"expected the metrics of another model in .*a\.json, got no entry model"
    with pytest.raises(InputError, match=words):
        grid.merge_with_stored(tmp_path)
    with pytest.raises(InputError, match=words):
        make_table(grid, "1", tmp_path)


def test_seeds_that_are_missing_diverged_failed_or_collapsed(tmp_path: Path) -> None:
    grid = small_grid(select_rows(["1"], datasets=["Synthetic"], encoders=["frozen"]), (0, 1))
    runs = runs_by_name(grid, tmp_path)
    runs["synthetic-frozen-triplet_sum-seed-0"].record_failure("no memory")
    diverge(runs["synthetic-frozen-triplet_sum-seed-1"])
    finish(runs["synthetic-frozen-triplet_max-seed-0"], 1, 2, 3, 4, 5, 6, collapsed=True)
    diverge(runs["synthetic-frozen-triplet_max-seed-1"])
    finish(runs["synthetic-frozen-triplet_weighted-seed-1"], 7, 2, 3, 4, 5, 6)
    finish(runs["synthetic-frozen-nt_xent-seed-0"], 2, 2, 2, 2, 2, 2)
    finish(runs["synthetic-frozen-nt_xent-seed-1"], 4, 4, 4, 4, 4, 6, collapsed=True)
    table = make_table(grid, "1", tmp_path)
    assert [row["runs"] for row in table["rows"]] == [
        {"done": 0, "diverged": 1, "failed": 1, "planned": 2},
        {"done": 1, "diverged": 1, "failed": 0, "planned": 2},
        {"done": 1, "diverged": 0, "failed": 0, "planned": 2},
        {"done": 2, "diverged": 0, "failed": 0, "planned": 2},
    ]
    # The root of 2 = 1.4, of 8 = 2.8: sample standard deviations of 2 and 4, of 2 and 6.
    assert markdown(table) == (
        "Table 1. Recalls in %, mean ± standard deviation over seeds 0, 1. "
        "Synthetic: 20 test clips, 100 captions; **4 of 8 runs so far**.\n\n"
        f"| Dataset | Fine-tune | Objective | {HEAD}\n|---|---|---|{NUMBERS}\n"
        "| Synthetic | No | Triplet-sum (1 of 2 diverged, 1 of 2 failed) | - | - | - | - | - | - |\n"
        "|  |  | Triplet-max (1 of 2 collapsed, 1 of 2 diverged) "
        "| 1.0 | 2.0 | **3.0** | **4.0** | **5.0** | **6.0** |\n"
        "|  |  | Triplet-weighted (1 of 2 to come) | **7.0** | 2.0 | **3.0** | **4.0** | **5.0** | **6.0** |\n"
        "|  |  | NT-Xent (1 of 2 collapsed) "
        "| 3.0 ± 1.4 | **3.0 ± 1.4** | **3.0 ± 1.4** | 3.0 ± 1.4 | 3.0 ± 1.4 | 4.0 ± 2.8 |\n"
        "|  |  | Chance, Synthetic | 5.0 | 25.0 | 50.0 | 5.0 | 25.0 | 50.0 |\n\n"
        "Collapsed: at the end all similarities of the validation pairs were alike. Such seeds are counted in. "
        "Diverged: the loss was no longer finite. Such seeds have no recalls and are left out. "
        "Failed: an error, which `reproduce --plan` shows. "
        f"{COMPARED}\n"
    )


def test_of_one_seed_a_mark_needs_no_number(tmp_path: Path) -> None:
    grid = small_grid(select_rows(["1"], datasets=["Synthetic"], encoders=["frozen"]), (0,))
    runs = runs_by_name(grid, tmp_path)
    finish(runs["synthetic-frozen-triplet_sum-seed-0"], 1, 2, 3, 4, 5, 6, collapsed=True)
    diverge(runs["synthetic-frozen-triplet_max-seed-0"])
    runs["synthetic-frozen-triplet_weighted-seed-0"].record_failure("no memory")
    text = markdown(make_table(grid, "1", tmp_path))
    labels = "Triplet-sum (collapsed)", "Triplet-max (diverged)", "Triplet-weighted (failed)", "NT-Xent (to come)"
    assert all(f" | {label} | " in text for label in labels)
    assert "**3.0**" not in text  # no other row has numbers


def test_before_anything_is_done(tmp_path: Path) -> None:
    table = make_table(small_grid(select_rows(["2"]), (0, 1, 2)), "2", tmp_path)
    assert table["pools"] == table["chance"] == {}
    text = markdown(table)
    assert text.startswith(
        "Table 2. Recalls in %, mean ± standard deviation over seeds 0, 1, 2. "
        "No run has finished; **0 of 24 runs so far**.\n"
    )
    assert "|  | NT-Xent (3 of 3 to come) | ours | - | - | - | - | - | - |\n" in text
    assert "|  |  | paper | **19.5 ± 0.1** | **50.4 ± 0.3** | **65.6 ± 0.8** " in text  # at 128, where it is best
    assert "|  |  | difference | - | - | - | - | - | - |\n" in text


def test_the_whole_test_set_needs_no_remark(tmp_path: Path) -> None:
    grid = small_grid(select_rows(["1"], datasets=["AudioCaps"], losses=["nt_xent"], encoders=["frozen"]), (0,))
    (run,) = grid.runs(tmp_path)
    finish(run, 19.2, 51.3, 66.6, 20.8, 53.6, 70.8, clips=957)
    table = make_table(grid, "1", tmp_path)
    assert table["pools"] == {"AudioCaps": {"clips": 957, "captions": 4785, "clips in the paper": 957}}
    text = markdown(table)
    assert text.startswith("Table 1. Recalls in %, seed 0. AudioCaps: 957 test clips, 4785 captions.\n")
    # Published: 19.2 ± 0.4, 51.1 ± 0.2, 66.6 ± 0.2, 21.3 ± 0.5, 53.6 ± 0.7, 69.8 ± 0.5.
    assert "| difference | +0.0 σ | +1.0 σ | +0.0 σ | -1.0 σ | +0.0 σ | +2.0 σ |" in text
    assert "**" not in text  # a single row is not the best of any


def test_another_learning_rate_is_said_and_the_papers_row_stays(tmp_path: Path) -> None:
    rows = select_rows(["1"], datasets=["Clotho"], losses=["nt_xent"], encoders=["frozen"])
    changed = {"1": [{**row, "learning_rate": 5e-4} for row in rows["1"]]}
    text = markdown(make_table(small_grid(changed, (0,)), "1", tmp_path))
    assert "|  |  |  | paper | 8.0 ± 0.2 | 25.3 ± 0.1 | 36.9 ± 0.3 | 9.2 ± 0.7 | 27.9 ± 0.5 | 39.0 ± 0.7 |\n" in text
    assert "\n\nLearning rate 0.0005. Difference: ours less the paper's" in text
    assert "\\*" not in text  # all rows have it


def test_table_2_of_two_data_sets_says_which_is_which(tmp_path: Path) -> None:
    table = make_table(small_grid(select_rows(["2"], datasets=["One", "Two"], losses=["nt_xent"]), (0,)), "2", tmp_path)
    assert [line.split(" | ")[:3] for line in markdown(table).splitlines() if "NT-Xent" in line] == [
        [f"| {dataset}", size, "NT-Xent (to come)"] for dataset in ("One", "Two") for size in ("32", "128")
    ]


def test_latex_of_a_name_with_special_characters(tmp_path: Path) -> None:
    rows = select_rows(["1"], datasets=["A&B_50%"], encoders=["frozen"], losses=["triplet_sum", "nt_xent"])
    grid = small_grid(rows, (0, 1))
    runs = runs_by_name(grid, tmp_path)
    finish(runs["a&b_50%-frozen-triplet_sum-seed-0"], 1, 2, 3, 4, 5, 6)
    finish(runs["a&b_50%-frozen-triplet_sum-seed-1"], 3, 2, 3, 4, 5, 6)
    finish(runs["a&b_50%-frozen-nt_xent-seed-0"], 3, 1, 1, 1, 1, 1)
    runs["a&b_50%-frozen-nt_xent-seed-1"].record_failure("no memory")
    assert latex(make_table(grid, "1", tmp_path)).splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering",
        r"\caption{Recalls in \%, mean $\pm$ standard deviation over seeds 0, 1. "
        r"A\&B\_50\%: 20 test clips, 100 captions. "
        rf"Failed: an error, which reproduce -{{}}-plan shows. {COMPARED}}}",
        r"\begin{tabular}{lllcccccc}",
        r"\toprule",
        r" &  &  & \multicolumn{3}{c}{Text-to-Audio} & \multicolumn{3}{c}{Audio-to-Text} \\",
        r"\cmidrule(lr){4-6}\cmidrule(lr){7-9}",
        r"Dataset & Fine-tune & Objective & R@1 & R@5 & R@10 & R@1 & R@5 & R@10 \\",
        r"\midrule",
        r"A\&B\_50\% & No & Triplet-sum & $2.0_{\pm 1.4}$ & $\mathbf{2.0}_{\pm 0.0}$ & $\mathbf{3.0}_{\pm 0.0}$ & "
        r"$\mathbf{4.0}_{\pm 0.0}$ & $\mathbf{5.0}_{\pm 0.0}$ & $\mathbf{6.0}_{\pm 0.0}$ \\",
        r" &  & NT-Xent (1 of 2 failed) & $\mathbf{3.0}$ & $1.0$ & $1.0$ & $1.0$ & $1.0$ & $1.0$ \\",
        r"\midrule",
        r" &  & Chance, A\&B\_50\% & $5.0$ & $25.0$ & $50.0$ & $5.0$ & $25.0$ & $50.0$ \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]


def test_latex_beside_the_published_rows(tmp_path: Path) -> None:
    lines = latex(clotho_table(tmp_path)).splitlines()
    assert r"* Learning rate 5e-05, otherwise 0.0001. Difference: ours less the paper's" in lines[3]
    assert lines[3].endswith(rf"standard deviation $\sigma$. {COMPARED}}}")
    assert lines[4] == r"\begin{tabular}{llllcccccc}"
    assert lines[7] == r"\cmidrule(lr){5-7}\cmidrule(lr){8-10}"
    assert lines[8].startswith("Dataset & Fine-tune & Objective &  & R@1")
    assert lines[10].startswith(r"Clotho & Yes & Triplet-max* & ours & $14.0_{\pm 1.0}$ & ")
    assert lines[11].startswith(r" &  &  & paper & $14.2_{\pm 0.9}$ & ")
    assert lines[12].startswith(r" &  &  & difference & \textit{$-0.2\sigma$} & ")
    assert lines.count(r"\midrule") == 2  # before the block, and before chance


@pytest.mark.skipif(PDFLATEX is None, reason="needs pdflatex; CI installs it, and checks that it is there")
def test_latex_compiles(tmp_path: Path) -> None:
    tables = [
        clotho_table(tmp_path / "clotho"),
        synthetic_table(tmp_path / "synthetic"),
        synthetic_table(tmp_path / "hostile", r"A&B_50% #1 {x} $2 ~y ^z \w"),
        make_table(small_grid(select_rows(["2"]), (0,)), "2", tmp_path / "nothing"),
    ]
    body = "".join(map(latex, tables))
    document = f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    command = [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
