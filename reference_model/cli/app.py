"""The command line: ``python -m reference_model COMMAND``."""

import os

import click

from reference_model.cli import data, evaluate, reproduce, search, train
from reference_model.cli.group import CONTEXT, Group
from reference_model.cli.group import run as run_group


@click.group(cls=Group, context_settings=CONTEXT)
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
for _module in (data, train, evaluate, reproduce, search):
    for _command in vars(_module).values():
        if isinstance(_command, click.Command):
            main.add_command(_command)


def run() -> None:
    """Run the command line as a program."""
    run_group(main, "python -m reference_model")
