"""The command line: ``python -m reference_model COMMAND``."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from crossmodal_losses import LOSSES
from reference_model import InputError
from reference_model.config import CLIP_SECONDS, Config, Encoders, Precision, Size, clip_seconds

PAPER_LOSSES = ("triplet_sum", "triplet_max", "triplet_weighted", "nt_xent")
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
FOLDER = click.Path(path_type=Path, file_okay=False)


class _Group(click.Group):
    """Wrong input ends in one message and status 1; a bug in its traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (InputError, OSError) as error:
            raise click.ClickException(str(error)) from error


class _Several(click.Command):
    """Options that can be repeated take several values at once too: --seeds 0 1 2."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        repeatable = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        repeated: list[str] = []
        option = None
        for argument in args:
            if argument.startswith("-"):
                option = argument if argument in repeatable else None
                repeated.append(argument)
            else:
                if option is not None and repeated[-1] != option:
                    repeated.append(option)
                repeated.append(argument)
        return super().parse_args(context, repeated)


@click.group(
    cls=_Group,
    context_settings={"show_default": True, "max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
def main() -> None:
    """Audio-text retrieval with four metric learning losses: the experiment of Mei et al. 2022.

    \b
    Without data of your own, on a laptop:
        python -m reference_model synthesize --out data
        python -m reference_model reproduce --data data --dataset Synthetic --model tiny \\
            --encoders fine-tuned --epochs 3 --decay-every 2 --learning-rate 5e-4 --jobs 2 --out results

    \b
    With AudioCaps or Clotho on disk and ResNet38_mAP=0.434.pth from Zenodo, record 3987831:
        python -m reference_model train --data data --dataset AudioCaps --loss nt_xent \\
            --audio-checkpoint ResNet38_mAP=0.434.pth --out runs/first

    \b
    Data is expected, for every data set, as
        ROOT/NAME/csv_files/{train,val,test}.csv    file_name,caption or file_name,caption_1,...
        ROOT/NAME/waveforms/{train,val,test}/FILE_NAME

    Every command can be stopped and run again: it continues where it stopped.
    """
    # Tokenizers warn when processes are forked after they were used; they are used before, and not after.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@main.command()
@click.option("--out", type=FOLDER, required=True, help="Where to make the folder Synthetic.")
@click.option("--train", "train_clips", type=int, default=600, help="Clips to train on, each with five captions.")
@click.option("--val", "val_clips", type=int, default=200, help="Clips to select the best epoch on.")
@click.option("--test", "test_clips", type=int, default=200, help="Clips to report.")
@click.option("--seconds", type=float, default=1.5, help="Length of a clip.")
@click.option("--seed", type=int, default=0, help="Same seed, same files.")
def synthesize(out: Path, train_clips: int, val_clips: int, test_clips: int, seconds: float, seed: int) -> None:
    """Render a small corpus of sound scenes with captions.

    Scenes are one event, or one after another, or two at once; events are tones, buzzes, whistles, hiss, rumble,
    clicks and warbles; low, mid or high; quiet or loud. The files lie in the same layout as the real data sets.
    """
    from reference_model.synthesize import Corpus
    from reference_model.synthesize import synthesize as render_corpus

    corpus = Corpus(train=train_clips, val=val_clips, test=test_clips, seconds=seconds, seed=seed)
    folder = render_corpus(corpus, out)
    click.echo(f"{folder} holds {train_clips} + {val_clips} + {test_clips} clips")
    length = "" if seconds == CLIP_SECONDS["Synthetic"] else f" --clip-seconds {seconds}"
    click.echo(f"next: python -m reference_model reproduce --data {out} --dataset Synthetic --model tiny{length} ...")


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a run that train and reproduce share."""
    options = [
        click.option("--data", required=True, help="The folder that holds a folder for each data set."),
        click.option("--dataset", required=True, help="AudioCaps, Clotho, Synthetic, or another in the same layout."),
        click.option(
            "--encoders",
            type=click.Choice(get_args(Encoders)),
            default=DEFAULTS["encoders"],
            help="frozen: only the heads train, encoders stay in eval mode. fine-tuned: everything trains.",
        ),
        click.option(
            "--model",
            type=click.Choice(get_args(Size)),
            default=DEFAULTS["model"],
            help="full: ResNet-38 of PANNs and BERT. tiny: small ones with new weights, for two CPU cores.",
        ),
        click.option("--audio-checkpoint", help="For the full model: ResNet38_mAP=0.434.pth (Zenodo, record 3987831)."),
        click.option("--bert", default=DEFAULTS["bert"], help="For the full model: BERT by name, or its folder."),
        click.option("--batch-size", type=int, default=DEFAULTS["batch_size"], help="The paper: 32; 24 for Clotho."),
        click.option(
            "--gradient-cache-micro-batch", type=int,
            help="Embed so many pairs at a time, which takes the memory of as many, and one more forward pass.",
        ),
        click.option("--learning-rate", type=float, default=DEFAULTS["learning_rate"], help="Of Adam."),
        click.option("--epochs", type=int, default=DEFAULTS["epochs"], help="Each sees every caption once."),
        click.option("--decay-every", type=int, default=DEFAULTS["decay_every"], help="Epochs."),
        click.option("--decay-factor", type=float, default=DEFAULTS["decay_factor"], help="Of the learning rate."),
        click.option("--clip-seconds", type=float, help="AudioCaps 10, Clotho 30, Synthetic 1.5; others need it."),
        click.option(
            "--precision", type=click.Choice(get_args(Precision)), default=DEFAULTS["precision"],
            help="Mixed precision of the encoders; the losses are always computed in float32.",
        ),
        click.option("--workers", type=int, default=DEFAULTS["workers"], help="Processes that read audio."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_settings
@click.option("--loss", type=click.Choice(sorted(LOSSES)), required=True, help="With the paper's settings.")
@click.option("--seed", type=int, default=0, help="Of the weights, the order of the pairs, and dropout.")
@click.option("--out", type=FOLDER, required=True, help="The run's folder, new or this very run's.")
def train(out: Path, **settings: Any) -> None:
    """Train one configuration and measure its best epoch on the test set.

    The defaults are those of section 3.2 of the paper, for AudioCaps. The run's folder receives metrics.json,
    best.safetensors, config.json, log.txt, curves.png and tensorboard/. The best epoch is that with the highest sum of
    R@1, R@5 and R@10 of both directions on the validation set. A run that was interrupted continues after its last
    finished epoch; a finished one is not repeated. It uses the GPU if there is one; `accelerate launch
    --num_processes 2 -m reference_model train ...` divides every batch among several, or among processes.
    """
    from reference_model.train import summary
    from reference_model.train import train as train_run

    settings["clip_seconds"] = clip_seconds(settings["dataset"], settings["clip_seconds"])
    metrics = train_run(Config(**settings), out)
    click.echo(f"test: {summary(metrics['test'])}" + (" (collapsed)" if metrics["collapsed"] else ""))
    click.echo(f"{out}/ holds metrics.json, curves.png and best.safetensors; tensorboard --logdir {out} shows more")


@main.command()
@click.option("--run", type=FOLDER, required=True, help="The folder of a run with at least one finished epoch.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", help="Of the data set.")
@click.option("--data", help="Another place of the data; by default where it was at training.", show_default=False)
def evaluate(run: Path, split: str, data: str | None) -> None:
    """Measure a run's best weights again, on any split. Prints JSON; the run is left as it is."""
    import json

    from reference_model.evaluate import evaluate_run

    click.echo(json.dumps(evaluate_run(run, split=split, data=data), indent=1))


@main.command(cls=_Several)
@_settings
@click.option(
    "--losses", multiple=True, type=click.Choice(sorted(LOSSES)), default=PAPER_LOSSES,
    help="One or several: --losses nt_xent triplet_sum.",
)  # fmt: skip
@click.option("--seeds", multiple=True, type=int, default=(0, 1, 2), help="One or several: --seeds 0 1 2.")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Runs to train at a time, each in its own process.")
@click.option("--out", type=FOLDER, required=True, help="Where to put the table and the runs.")
def reproduce(out: Path, losses: tuple[str, ...], seeds: tuple[int, ...], jobs: int, **settings: Any) -> None:
    """Train losses x seeds and print the paper's table, with mean and standard deviation and a row for chance.

    Finished runs are not repeated, interrupted ones continue. Runs that collapsed (all similarities alike at the end)
    or diverged (the loss was no longer finite) are marked.
    """
    from reference_model.reproduce import reproduce as run_all

    settings["clip_seconds"] = clip_seconds(settings["dataset"], settings["clip_seconds"])
    config = Config(loss=losses[0], **settings)
    click.echo("\n" + run_all(config, losses=losses, seeds=seeds, out=out, jobs=jobs))
    click.echo(f"picture and table: {out}/table.png, {out}/table.md, {out}/table.json")
    click.echo(f"curves and metrics of every run: {out}/runs/*/curves.png, {out}/runs/*/metrics.json")
    click.echo(f"live: tensorboard --logdir {out}/runs")
    click.echo("next: more seeds (--seeds 0 1 2), more epochs, or your own data (python -m reference_model --help)")


if __name__ == "__main__":
    if not sys.warnoptions:  # of the libraries below us; they are no news to the user of this command
        warnings.simplefilter("ignore")
    main(prog_name="python -m reference_model")
