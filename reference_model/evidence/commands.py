"""Command line: ``python -m reference_model.evidence COMMAND``."""

from pathlib import Path

import click

from reference_model.cli.group import CONTEXT, Group
from reference_model.cli.options import FOLDER
from reference_model.runtime.signals import handle_signals


@click.group(cls=Group, context_settings=CONTEXT)
def main() -> None:
    """The paper's experiment on scenes of real recordings."""


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
