"""What the command lines of this project have in common: how they end, and how they are run as programs."""

import sys
import warnings
from typing import Any

import click

from reference_model import InputError
from reference_model.runtime.output import outlive_readers
from reference_model.runtime.signals import EXIT_STOPPED, STOPPED, Stopped

CONTEXT = {"show_default": True, "max_content_width": 100, "help_option_names": ["-h", "--help"]}


class Group(click.Group):
    """Commands whose wrong input ends in one message and status 1, and a request to stop in status 75.

    A bug ends in its traceback.
    """

    def invoke(self, context: click.Context) -> Any:
        """Invoke the command that was called."""
        try:
            return super().invoke(context)
        except (InputError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except Stopped:
            pass  # and with it the progress bars go
        click.echo(STOPPED, err=True)
        raise click.exceptions.Exit(EXIT_STOPPED)


def run(main: click.Group, name: str) -> None:
    """Run a command line as a program of this name."""
    outlive_readers()
    if not sys.warnoptions:  # warnings of the libraries below are no news to the user of a command
        warnings.simplefilter("ignore")
    main(prog_name=name)
