"""The command line: ``python -m reference_model COMMAND``."""

import os
import sys
import warnings
from typing import Any

import click

from reference_model import InputError
from reference_model.cli import data, reproduce, search, train
from reference_model.runtime.output import outlive_readers
from reference_model.runtime.signals import EXIT_STOPPED, STOPPED, Stopped


class _Group(click.Group):
    """Commands whose wrong input ends in one message and status 1, and a request to stop in status 75.

    A bug ends in its traceback.
    """

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (InputError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except Stopped:
            pass  # and with it the progress bars go
        click.echo(STOPPED, err=True)
        raise click.exceptions.Exit(EXIT_STOPPED)


@click.group(
    cls=_Group, context_settings={"show_default": True, "max_content_width": 100, "help_option_names": ["-h", "--help"]}
)
def main() -> None:
    """Audio-text retrieval with four metric learning losses: the experiment of Mei et al. 2022.

    \b
    Without data of your own, on a laptop:
        python -m reference_model synthesize --out data
        python -m reference_model reproduce --data data --dataset Synthetic --model tiny \\
            --tables 1 --encoders fine-tuned --learning-rate 5e-4 --epochs 3 --decay-every 2 --jobs 2

    \b
    With AudioCaps and Clotho on disk, and ResNet38_mAP=0.434.pth from Zenodo, record 3987831:
        python -m reference_model prepare --dataset Clotho --raw DOWNLOADS
        python -m reference_model prepare --dataset AudioCaps --raw DOWNLOADS
        python -m reference_model train --experiment clotho-frozen-nt_xent --seed 0     one run
        python -m reference_model reproduce                                             all of them, and the tables

    \b
    Data is expected, for every data set, as
        ROOT/NAME/csv_files/{train,val,test}.csv    file_name,caption or file_name,caption_1,...
        ROOT/NAME/waveforms/{train,val,test}/FILE_NAME

    Every command can be stopped and run again: it continues where it stopped.
    """
    # Tokenizers warn when processes are forked after they were used; they are used before, and not after.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what it warns of is checked, and said in one line


# Every command of these modules.
for _module in (data, train, reproduce, search):
    for _command in vars(_module).values():
        if isinstance(_command, click.Command):
            main.add_command(_command)


def run() -> None:
    """Run the command line as a program."""
    outlive_readers()
    if not sys.warnoptions:  # warnings of the libraries below are no news to the user of this command
        warnings.simplefilter("ignore")
    main(prog_name="python -m reference_model")
