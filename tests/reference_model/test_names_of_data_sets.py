"""A data set may have any name: no page, picture or table takes it for HTML, Markdown, LaTeX or a formula."""

from dataclasses import replace
from pathlib import Path

from grids import synthetic_table

from reference_model.config import Config
from reference_model.reproduction import claims
from reference_model.reproduction.plots import data_url, plot_learning_curves, plot_table
from reference_model.reproduction.table_formats import latex, markdown
from reference_model.search.model_card import model_card
from reference_model.training.curves import plot_curves

NAME = r"<script> & [click](http:a.b) `x` *y* $\frac{ |"
ESCAPED = r"&lt;script&gt; &amp; \[click\](http:a.b) \`x\` \*y\* $\\frac{ \|"


def test_in_the_model_card(config: Config) -> None:
    card = model_card(replace(config, dataset=f"{NAME}\n", text_encoder=NAME), None, parameters=1, embedding_size=1)
    assert "<script" not in card
    assert card.count(ESCAPED) == 6
    assert f"| dataset | {ESCAPED} |" in card


def test_in_tables_and_claims(tmp_path: Path) -> None:
    table = synthetic_table(tmp_path, NAME)
    assert "<script" not in markdown(table)
    assert f" {ESCAPED}: 20 test clips" in markdown(table)
    assert f"| Chance, {ESCAPED} |" in markdown(table)
    assert r"<script> \& [click](http:a.b) `x` *y* \$\textbackslash{}frac\{ | &" in latex(table)
    checked = [{**line, "ours, evidence": f"{NAME}: 1 of 2"} for line in claims.check([table])]
    assert f"| {ESCAPED}: 1 of 2 |" in claims.markdown(checked)
    assert "<script" not in claims.markdown(checked)
    data_url(plot_table(table))


def test_in_curves(tmp_path: Path) -> None:
    recalls = dict.fromkeys(("R@1", "R@5", "R@10"), 1.0)
    history = [{"epoch": 1, "loss": 0.0, "val": {"text_to_audio": recalls, "audio_to_text": recalls}}]
    plot_curves(tmp_path / "curves.png", history, title=NAME)
    data_url(plot_learning_curves({"nt_xent": {0: history}}))
