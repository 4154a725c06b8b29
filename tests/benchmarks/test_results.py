"""Tables, plots and shared options of the benchmarks."""

import csv
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from benchmarks import losses, memory, options
from benchmarks.__main__ import SUITE
from benchmarks.baselines import BASELINES, COMPILED
from benchmarks.batch import Conditions
from benchmarks.losses import summary
from benchmarks.measure import Timing, deviation
from benchmarks.results import describe_environment, panels_of, write_plot, write_table
from benchmarks.roofline import PRODUCTS
from crossmodal_losses import LOSSES

RECORDS = [
    {"loss": "nt_xent", "implementation": name, "B": B, "D": 8, **Timing(ms, ms, 2 * ms).columns()}
    for B, name, ms in (
        (32, "crossmodal_losses", 1.0),
        (32, "open_clip", 4.0),
        (32, "autograd", 3.0),
        (64, "autograd", 9.0),
    )
]


def test_a_table_is_written_as_csv_and_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "new", "table", [{"a, b": 1, "c": "x"}, {"a, b": 2.5, "c": ""}], "about")
    assert (tmp_path / "new" / "table.csv").read_text() == '"a, b",c\n1,x\n2.5,\n'
    page = f"{describe_environment()}; about\n\n| a, b | c |\n|---|---|\n| 1 | x |\n| 2.5 |  |\n"
    assert (tmp_path / "new" / "table.md").read_text() == page
    assert capsys.readouterr().out.startswith(page)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"table.csv", "table.md"}


def test_a_table_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="expected something to measure, got nothing"):
        write_table(tmp_path, "table", [], "about")
    assert not list(tmp_path.iterdir())


def test_a_plot_has_a_line_for_every_value_of_a_column(tmp_path: Path) -> None:
    panels = panels_of(RECORDS, line="implementation", x="B", y="ms", at_least=2.0)
    assert panels == {
        "nt_xent": {"crossmodal_losses": [(32, 2)], "open_clip": [(32, 4)], "autograd": [(32, 3), (64, 9)]}
    }
    write_plot(tmp_path, "plot", panels, x="B", y="ms")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_compares_with_the_fastest_baseline() -> None:
    (compared,) = summary(RECORDS[:3])
    assert compared["fastest rival"] == "autograd"
    assert compared["times faster"] == "3.00"
    assert compared["range"] == "1.50 to 6.00"  # 3 / 2 to 6 / 1
    assert compared["not compiled, ms"] == 3
    compiled = {**RECORDS[0], "implementation": COMPILED, "ms": 1, "lower quartile": 1, "upper quartile": 2}
    (compared,) = summary([*RECORDS[:3], compiled])
    assert (compared["fastest rival"], compared["its ms"], compared["not compiled, ms"]) == (COMPILED, 1, 3)
    (compared,) = summary([RECORDS[0], compiled])
    assert compared["not compiled, ms"] == ""


def test_a_timing_has_median_and_quartiles() -> None:
    timing = Timing.of([5, 1, 3, 2, 4])
    assert timing == Timing(3, 2, 4)
    assert Timing.of_columns(timing.columns()) == timing


def test_deviation_is_relative_to_the_largest_expected_entry() -> None:
    expected = [torch.tensor([1.0, -4.0]).double(), torch.zeros(3).double()]
    assert deviation([torch.tensor([1.0, -4.0]), torch.tensor([0.0, 2.0, 0.0])], expected) == 0.5


def test_committed_tables_have_the_columns_that_are_written_now(tmp_path: Path) -> None:
    """Results are measured seldom: a column keeps its name until all results are measured again."""
    for command, arguments in SUITE[:4]:
        result = CliRunner().invoke(command, [*arguments.split(), "--loss", "nt_xent", "--out", str(tmp_path)])
        assert result.exit_code == 0, result.output
    written = sorted(tmp_path.glob("*.csv"))
    assert [path.stem for path in written] == ["losses", "memory", "roofline", "summary", "tile_size"]
    for path in written:
        committed = Path(losses.__file__).parent / "results" / path.name
        with path.open() as new, committed.open() as old:
            assert next(csv.reader(new)) == next(csv.reader(old)), path.name


def test_a_commands_conditions_come_from_its_options() -> None:
    seen: list[Conditions] = []

    @click.command()
    @options.conditions(options.seconds(0.5), dimension=16)
    def command(conditions: Conditions) -> None:
        seen.append(conditions)

    CliRunner().invoke(command, ["--loss", "nt_xent", "--dtype", "bfloat16"], catch_exceptions=False)
    CliRunner().invoke(command, ["--dimension", "4", "--seconds", "0"], catch_exceptions=False)
    assert seen == [
        Conditions(("nt_xent",), 16, torch.bfloat16, "cpu", 0.5, 2),
        Conditions(tuple(LOSSES), 4, torch.float32, "cpu", 0.0, 2),
    ]


@pytest.mark.parametrize("command", [command for command, _ in SUITE], ids=lambda command: command.callback.__module__)
def test_every_option_has_help(command: click.Command) -> None:
    assert command.help
    assert all(getattr(option, "help", None) for option in command.params)


def test_every_loss_has_its_products_and_its_baselines() -> None:
    assert PRODUCTS.keys() == LOSSES.keys() == memory.COMPARED.keys()
    assert all(name in BASELINES[loss] for loss, names in memory.COMPARED.items() for name in names)
