"""What the folder of a grid shows to people: the tables, the claims, and one HTML page with everything in it."""

from pathlib import Path

from filelock import FileLock

from reference_model import claims
from reference_model.files import write_json, write_text
from reference_model.grid import Grid
from reference_model.pictures import plot_table
from reference_model.tables import Table, latex, make_table, markdown


def write_tables(grid: Grid, out: Path) -> list[Table]:
    """``table_1.{md,tex,json,png}``, likewise of the others, and ``claims.{md,json}``; of the runs there are so far."""
    with FileLock(out / ".tables.lock"):  # other machines write them too
        tables = [make_table(grid, number, out) for number in grid.tables]
        for table in tables:
            name = f"table_{table['table']}"
            write_json(out / f"{name}.json", table)
            write_text(out / f"{name}.md", markdown(table))
            write_text(out / f"{name}.tex", latex(table))
            plot_table(out / f"{name}.png", table)
        found = claims.check(tables)
        write_json(out / "claims.json", found)
        write_text(out / "claims.md", claims.markdown(found))
    return tables


def write_report(grid: Grid, out: Path) -> Path:
    """Soon."""
    return out / "report.html"
