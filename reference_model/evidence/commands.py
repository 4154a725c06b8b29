"""Command line: ``python -m reference_model.evidence COMMAND``."""

from pathlib import Path

import click

from reference_model.cli.group import CONTEXT, Group
from reference_model.cli.options import FILE, FOLDER
from reference_model.runtime.signals import handle_signals


@click.group(cls=Group, context_settings=CONTEXT)
def main() -> None:
    """The paper's experiment on scenes of real recordings. `make evidence` does all of it."""


@main.command()
@click.option("--out", type=FOLDER, required=True, help="Where to make the folder of recordings.")
@click.option("--packages", type=FOLDER, required=True, help="The .deb files; those that are missing are downloaded.")
def recordings(out: Path, packages: Path) -> None:
    """Make a folder of labelled recordings from Debian packages.

    The packages are downloaded by apt-get and unpacked by dpkg-deb; nothing is installed. Their versions and checksums
    are fixed, so the recordings are the same everywhere.
    """
    from reference_model.evidence.recordings import PHRASES, SOUNDS, make_recordings

    with handle_signals():
        made = make_recordings(out, packages)
    click.echo(f"next: python -m reference_model synthesize --sounds {made / SOUNDS} --phrases {made / PHRASES} ...")


@main.command()
@click.option("--results", type=FOLDER, required=True, help="A folder with folders of reproduce in it.")
@click.option("--sources", type=FILE, required=True, help="sources.csv of the recordings.")
@click.option("--out", type=FOLDER, show_default="reference_model/results/evidence", help="Is replaced.")
def keep(results: Path, sources: Path, out: Path | None) -> None:
    """Write tables, claims and reports, without sounds, to where they are committed."""
    from reference_model.evidence.results import KEPT, keep_results

    for folder in keep_results(results, sources, out or KEPT):
        click.echo(f"{folder} holds the tables, the claims and the report")
